"""Public names are documented: what they do, their parameters, what they return and raise."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sb3_pg

ROOT = Path(__file__).parent.parent
# What the site has of the package, and the names everybody imports
MODULES = ("sb3_pg", "sb3_pg.vec_env", "sb3_pg.checkpoints", "sb3_pg.evaluation", "sb3_pg.loading", "sb3_pg.estimators",
           "sb3_pg.losses", "sb3_pg.diagnostics", "sb3_pg.zoo", "sb3_pg.distributed")  # fmt: skip


def public(module: Any) -> Iterator[tuple[str, Any]]:
    """Functions and classes of ours, and the methods that a class defines itself."""
    for name in getattr(module, "__all__", None) or vars(module):
        thing = getattr(module, name)
        ours = getattr(thing, "__module__", "").startswith("sb3_pg") and (inspect.isclass(thing) or inspect.isfunction(thing))
        is_here = hasattr(module, "__path__") or getattr(thing, "__module__", "") == module.__name__
        if name.startswith("_") or not ours or not is_here:
            continue
        yield f"{module.__name__}.{name}", thing
        if inspect.isclass(thing):
            for key, member in vars(thing).items():
                if inspect.isfunction(member) and not key.startswith("_"):
                    yield f"{module.__name__}.{name}.{key}", member


def parameters_of(thing: Any) -> set[str]:
    if inspect.isclass(thing) and "__init__" not in vars(thing):
        return set()
    parameters = list(inspect.signature(thing).parameters.values())
    return {p.name for p in parameters if p.name not in ("self", "cls") and not p.name.startswith("_")}


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_documented(module: str) -> None:
    undocumented = {}
    for name, thing in public(importlib.import_module(module)):
        doc = inspect.getdoc(thing)
        assert doc, name
        # What the classes above it say of the same thing holds as well
        above = [getattr(base, thing.__name__, None) for base in _bases(thing)] if inspect.isfunction(thing) else thing.__mro__
        documented = set(
            re.findall(r":param \**(\w+):", "\n".join([doc, *(getattr(x, "__doc__", None) or "" for x in above)]))
        )
        if "VanillaPG" in doc:  # whose other parameters it has
            documented |= parameters_of(sb3_pg.VanillaPG)
        missing = parameters_of(thing) - documented - {"args", "kwargs"}
        # One line is enough of what takes a single obvious argument
        if missing and ("\n" in doc or len(parameters_of(thing)) > 1):
            undocumented[name] = sorted(missing)
    assert not undocumented


def _bases(thing: Any) -> list[Any]:
    owner = thing.__qualname__.rpartition(".")[0]
    cls = getattr(importlib.import_module(thing.__module__), owner, None) if owner else None
    return list(cls.__mro__[1:]) if inspect.isclass(cls) else []


def test_every_module_says_what_it_is() -> None:
    for info in pkgutil.walk_packages(sb3_pg.__path__, "sb3_pg."):
        if not info.name.endswith("__main__"):
            assert importlib.import_module(info.name).__doc__, info.name


def test_the_sites_pages_are_all_in_a_table_of_contents() -> None:
    index = (ROOT / "docs/index.md").read_text()
    listed = set(re.findall(r"^([\w/]+)$", index, flags=re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages - listed - {"index"} == set()
