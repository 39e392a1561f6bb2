"""Every example and every Python snippet of README and docs runs."""

import json
import pkgutil
import re
import sys
from pathlib import Path

import pytest
from helpers import run_process

ROOT = Path(__file__).parent.parent
ARGUMENTS = {
    "01": ["600"],
    "02": ["300", "1"],
    "03": ["600"],
    "04": ["2000", "2", "figure.png"],
    "05": ["--algo", "vpg", "-n", "600"],
    "06": ["2048", "1"],
    "07": [],
    "08": [],
    "09": ["600"],
    "10": ["600"],
    "11": ["600"],
    "12": ["600"],
}
# What an example prints: text, or a number below a bound
PRINTS = {"05": "Saving to logs/vpg", "07": (r"largest error of the mean ([\d.]+)", 0.05), "08": (r"f\(mean\) = (\d+)", 5.0)}
SNIPPETS = [
    (f"{path.stem} {i}", snippet)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    for i, snippet in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL))
]


def run(arguments: list[str], folder: Path) -> str:
    result = run_process([sys.executable, *arguments], cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 50
    out = run([str(path), *ARGUMENTS[path.name[:2]]], tmp_path)
    expected = PRINTS.get(path.name[:2], "return")
    if isinstance(expected, str):
        assert expected in out
    else:
        pattern, bound = expected
        assert float(re.findall(pattern, out)[0]) < bound
    if "figure.png" in ARGUMENTS[path.name[:2]]:
        assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    notebook = json.loads((ROOT / "examples/policy_gradients.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 9 and not any(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    shorter = re.sub(r"\d+_000\b", "600", "\n\n".join(cells)).replace("iterations=60", "iterations=3")
    out = run(["-c", f"import matplotlib; matplotlib.use('Agg')\n{shorter}"], tmp_path)
    assert "λ = 1.0: " in out and "Recommended: " in out


def test_readme_and_docs_have_snippets() -> None:
    assert {"README 0", "README 1", "memory_and_masks 2", "resuming 1"} <= {name for name, _ in SNIPPETS}


@pytest.mark.parametrize("snippet", [snippet for _, snippet in SNIPPETS], ids=[name for name, _ in SNIPPETS])
def test_snippet(snippet: str, tmp_path: Path) -> None:
    # Shorter training, the same code
    run(["-c", re.sub(r"\d+_000\b", "600", snippet)], tmp_path)


def test_what_the_theorem_cites_exists() -> None:
    page = (ROOT / "docs/theorem.md").read_text()
    tests = re.findall(r"\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\)", page)
    functions = re.findall(r"\{py:\w+\}`~([\w.]+)`", page)
    assert len(tests) > 20 and len(functions) > 10
    for test, path in tests:
        assert re.search(rf"^def {test}\(", (ROOT / path).read_text(), flags=re.MULTILINE), test
    for name in functions:
        assert pkgutil.resolve_name(name).__doc__, name


def test_the_theorems_numbers_are_what_its_snippet_prints(tmp_path: Path) -> None:
    page = (ROOT / "docs/theorem.md").read_text()
    [(snippet, printed)] = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, flags=re.DOTALL)
    assert run(["-c", snippet], tmp_path) == printed


def test_the_readmes_commands_exist() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^make (\w+)", readme, flags=re.MULTILINE))
    assert {"train", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
    assert "make test" in (ROOT / ".ci/run").read_text()
