"""What the package promises as a package."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import sb3_pg


def test_version_and_names() -> None:
    assert version("sb3-pg") == sb3_pg.__version__
    assert all(hasattr(sb3_pg, name) for name in sb3_pg.__all__)
    assert (Path(sb3_pg.__file__).parent / "py.typed").is_file()


def test_import_pulls_in_no_extra() -> None:
    code = "import sys, sb3_pg; print([m for m in ('rl_zoo3', 'optuna', 'pandas', 'matplotlib', 'rich') if m in sys.modules])"
    # SB3's logger imports pandas and matplotlib itself: what counts is what we add
    ours = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    theirs = subprocess.run(
        [sys.executable, "-c", code.replace("sb3_pg", "stable_baselines3")], capture_output=True, text=True, check=True
    ).stdout
    assert ours == theirs


def test_import_asks_for_no_extra_itself() -> None:
    code = """
import builtins
original = builtins.__import__
def spy(name, scope=None, *rest, **kwargs):
    importer = str((scope or {}).get("__name__"))
    if importer.split(".")[0] == "sb3_pg":
        print(name)
    return original(name, scope, *rest, **kwargs)
builtins.__import__ = spy
import sb3_pg
"""
    imported = {
        name.split(".")[0]
        for name in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    }
    assert {"torch", "numpy", "sb3_pg"} <= imported
    assert not imported & {"rl_zoo3", "optuna", "pandas", "matplotlib", "rich"}
