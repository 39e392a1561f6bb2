"""Configuration of the documentation site: ``make docs``."""

import sb3_pg

project = "sb3_pg"
author = copyright = "The sb3_pg developers"
release = sb3_pg.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "sb3_pg"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
exclude_patterns = ["_build"]
# Files of the repository that pages refer to are not pages; the diagram of design.md is drawn by GitHub
suppress_warnings = ["myst.xref_missing", "misc.highlighting_failure"]
