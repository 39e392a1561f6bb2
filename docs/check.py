"""Check the built site: links within it, and with ``--browser`` what headless Chromium makes of every page.

python docs/check.py [--browser]. The browser is ``chromium``, or what $CHROMIUM names.
"""

import html
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote

SITE = Path(__file__).parent / "_build"
# Asked of a page of the width of a phone, in light and in dark
QUESTIONS = """
<script>
const answers = {};
async function ask(name) {
  for (const scheme of ["light", "dark"]) {
    const frame = document.createElement("iframe");
    frame.width = 390; frame.height = 800; frame.src = name;
    document.body.appendChild(frame);
    await new Promise(done => frame.onload = done);
    const page = frame.contentDocument;
    page.body.dataset.theme = scheme;
    const view = frame.contentWindow;
    if (view.MathJax && view.MathJax.startup) await view.MathJax.startup.promise;
    const style = view.getComputedStyle(page.body);
    answers[name + " " + scheme] = {
      width: page.documentElement.scrollWidth,
      formulas: page.querySelectorAll("span.math, div.math").length,
      drawn: page.querySelectorAll("mjx-container").length,
      errors: page.querySelectorAll("mjx-merror, [data-mjx-error]").length,
      broken: [...page.images].filter(x => x.complete && !x.naturalWidth).map(x => x.src),
      colours: [style.color, style.backgroundColor],
    };
    frame.remove();
  }
}
(async () => {
  for (const name of PAGES) await ask(name);
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(answers);
  document.body.appendChild(result);
})();
</script>
"""


def find_broken_links() -> list[str]:
    """Links within the site that lead nowhere, and pages that load something from elsewhere."""
    pages = {path.relative_to(SITE).as_posix(): path.read_text(encoding="utf-8") for path in SITE.rglob("*.html")}
    anchors = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
    broken = []
    for name, text in pages.items():
        for kind, link in re.findall(r'\b(href|src)="([^"]+)"', text):
            target, _, anchor = unquote(html.unescape(link)).partition("#")
            if re.match(r"\w+:|//", target):
                if kind == "src":
                    broken.append(f"{name} loads {link}")
                continue
            path = ((SITE / name).parent / target.partition("?")[0]).resolve() if target else (SITE / name).resolve()
            known = path.relative_to(SITE.resolve()).as_posix() if path.is_relative_to(SITE.resolve()) else ""
            if not path.is_file() or (anchor and known in anchors and anchor not in anchors[known]):
                broken.append(f"{name}: {link}")
    return broken


def look() -> list[str]:
    """What is wrong with the pages, seen by a browser."""
    names = sorted(p.relative_to(SITE).as_posix() for p in SITE.rglob("*.html") if "_modules" not in p.parts)
    names = [name for name in names if name not in ("genindex.html", "py-modindex.html", "search.html")]
    page = SITE / "look.html"
    page.write_text(f"<body><script>const PAGES = {json.dumps(names)};</script>{QUESTIONS}</body>", encoding="utf-8")
    try:
        with tempfile.TemporaryDirectory() as profile:
            command = [os.environ.get("CHROMIUM", "chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                       "--allow-file-access-from-files", "--disable-background-networking", f"--user-data-dir={profile}",
                       "--virtual-time-budget=600000", "--dump-dom", page.as_uri()]  # fmt: skip
            dom = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=600).stdout
    finally:
        page.unlink()
    found = re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)
    if found is None:
        return ["the browser has not answered"]
    answers, wrong, colours = json.loads(html.unescape(found[1])), [], {}
    for name, seen in answers.items():
        if seen["width"] > 390:
            wrong.append(f"{name}: {seen['width']} pixels wide on a phone of 390")
        if seen["drawn"] != seen["formulas"] or seen["errors"]:
            wrong.append(f"{name}: {seen['drawn']} of {seen['formulas']} formulas drawn, {seen['errors']} with errors")
        wrong += [f"{name}: {image} is not shown" for image in seen["broken"]]
        colours.setdefault(name.split()[0], []).append(tuple(seen["colours"]))
    wrong += [f"{name}: the same colours in light and dark" for name, pair in colours.items() if len(set(pair)) < 2]
    print(f"{len(answers)} views of {len(names)} pages, {sum(x['drawn'] for x in answers.values())} formulas")
    return wrong


if __name__ == "__main__":
    problems = look() if "--browser" in sys.argv else find_broken_links()
    print("\n".join(problems) or "the site is in order")
    sys.exit(bool(problems))
