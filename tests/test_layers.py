"""The modules of the package import one way, keep to themselves what is their own, and can be read in one sitting."""

import ast
from collections.abc import Iterator
from pathlib import Path

import sb3_pg

PACKAGE = Path(sb3_pg.__file__).parent
# A part of the package may import those of its own line and of the lines above it
LAYERS = [
    {"estimators", "losses", "distributed", "finite", "evaluation", "loading", "saving", "vec_env", "replacing"},
    {"policies"},
    {"rollouts"},
    {"algorithms"},
    {""},  # sb3_pg itself, which gives the algorithms their public names
    {"checkpoints", "diagnostics", "zoo"},
    {"benchmark"},
    {"cli"},
    {"__main__", "buffers"},  # for the world outside
]
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def nodes_at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it but those under ``if TYPE_CHECKING:``."""
    yield node
    is_exempt = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    for child in node.orelse if is_exempt else ast.iter_child_nodes(node):  # type: ignore[attr-defined]
        yield from nodes_at_run_time(child)


def imports(source: str) -> Iterator[tuple[str, str | None, str]]:
    """Modules of the package that a module imports, the name it takes from them if it does, and what it calls it."""
    for node in nodes_at_run_time(ast.parse(source)):
        if isinstance(node, ast.Import):
            pairs = [(alias.name, None, alias.asname or alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, "relative imports are not understood here"
            taken = [(node.module, alias.name, alias.asname or alias.name) for alias in node.names]
            pairs = [(f"{m}.{name}", None, own) if f"{m}.{name}" in MODULES else (m, name, own) for m, name, own in taken]
        else:
            continue
        yield from (pair for pair in pairs if pair[0].split(".")[0] == "sb3_pg")


def layer(module: str) -> int:
    part = module.split(".")[1] if "." in module else ""
    (place,) = [i for i, parts in enumerate(LAYERS) if part in parts]
    return place


def test_the_reader_of_imports_misses_none() -> None:
    source = """
import numpy, sb3_pg.zoo as zoo
from sb3_pg import VanillaPG, losses as _losses
if TYPE_CHECKING:
    from sb3_pg.cli import main
else:
    import sb3_pg.finite
class C:
    def f(self):
        from sb3_pg.policies.steps import Steps
"""
    assert list(imports(source)) == [
        ("sb3_pg.zoo", None, "zoo"),
        ("sb3_pg", "VanillaPG", "VanillaPG"),
        ("sb3_pg.losses", None, "_losses"),
        ("sb3_pg.finite", None, "sb3_pg.finite"),
        ("sb3_pg.policies.steps", "Steps", "Steps"),
    ]
    assert layer("sb3_pg.policies.steps") < layer("sb3_pg.rollouts") < layer("sb3_pg") < layer("sb3_pg.cli.zoo")


def test_imports_run_one_way() -> None:
    found = [(name, module) for name, path in MODULES.items() for module, _, _ in imports(path.read_text())]
    assert len(found) > 50  # they were read
    assert [(name, module) for name, module in found if layer(module) > layer(name)] == []


def test_private_names_stay_in_their_module() -> None:
    for path in MODULES.values():
        source = path.read_text()
        imported = list(imports(source))
        assert [name for _, name, _ in imported if name is not None and name.startswith("_") and name[:2] != "__"] == [], path
        modules = {own for _, name, own in imported if name is None}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in modules:
                assert node.attr.startswith("__") or not node.attr.startswith("_"), (path, node.lineno, node.attr)


def test_no_file_is_long() -> None:
    paths = [*MODULES.values(), *Path(__file__).parent.rglob("*.py")]
    assert {str(path): n for path in paths if (n := len(path.read_text().splitlines())) > 400} == {}
