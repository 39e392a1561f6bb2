"""Configuration of the documentation site: ``make docs``."""

import posixpath
from typing import Any

from docutils import nodes

import sb3_pg

project = "sb3_pg"
author = copyright = "The sb3_pg developers"
release = sb3_pg.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_static_path = ["_static"]
# Bundled, so that formulas are there without a network
mathjax_path = "mathjax/tex-svg.js"
html_css_files = ["site.css"]
html_title = "sb3_pg"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
exclude_patterns = ["_build", "_static"]
# Files of the repository that pages refer to are not pages: see link_pages
suppress_warnings = ["myst.xref_missing"]


def link_pages(app: Any, doctree: nodes.document, page: str) -> None:
    """Links of the repository's files lead to the page of the site, where there is one, and are plain text elsewhere."""
    own = {name for node in doctree.findall(nodes.Element) for name in node["ids"]}
    for node in list(doctree.findall(nodes.reference)):
        target = node.get("refuri", f"#{node.get('refid', '')}")
        if not target.startswith("#") or target[1:] in own:
            continue
        path, _, anchor = target[1:].partition("#")
        # Relative to the page, or to the root of the repository, from which some pages are included
        homes = [posixpath.dirname(f"docs/{page}"), ""]
        names = [posixpath.normpath(posixpath.join(home, path)) for home in homes]
        included = {"CHANGELOG.md": "changelog", "CONTRIBUTING.md": "contributing", "SECURITY.md": "security"}
        pages = [included.get(name, name.removeprefix("docs/").removesuffix(".md")) for name in names]
        known = [name for name in pages if name in app.env.found_docs]
        if known:
            node.attributes.pop("refid", None)
            node["refuri"] = app.builder.get_relative_uri(page, known[0]) + (f"#{anchor}" if anchor else "")
        else:
            node.replace_self(node.children)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("doctree-resolved", link_pages)
