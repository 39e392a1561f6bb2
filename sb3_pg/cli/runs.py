"""What the folder of a run says about how it was made."""

import importlib
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from sb3_pg.loading import NotTrustedError, read_settings


def read_args(folder: Path, trusted: bool) -> dict[str, Any]:
    """The options a run was trained with, as ``args.yml`` has them.

    :param folder: of the settings of a run, ``ENV_NUMBER/ENV``
    :param trusted: whether Python objects may be made of them, of any kind
    :return: by name; empty if the run has no such file
    :raises ValueError: if the file is not trusted and asks for such objects, or damaged
    """
    path = folder / "args.yml"
    if not path.is_file():
        return {}
    args = yaml.load(path.read_text(encoding="utf-8"), yaml.UnsafeLoader) if trusted else read_settings(path)
    return args if isinstance(args, dict) else {}


def check_packages(names: Any, run: Path) -> None:
    """Refuse packages that a file of a run names, if they lie in its folder or the working directory, or are Python's own.

    To import a package is to run it: what is installed, or on ``PYTHONPATH``, the user has put there.

    :param names: of modules
    :param run: folder of the run
    :raises NotTrustedError: naming the package
    """
    if not isinstance(names, list):
        raise ValueError(f"The gym_packages of {run} are no list.")
    for name in map(str, names):
        top = name.partition(".")[0]
        is_name = all(part.isidentifier() and not part.startswith("_") for part in name.split("."))
        if is_name and top not in sys.stdlib_module_names:
            spec = find_spec(top)  # None: import_packages says that it is not there
            places = [] if spec is None else spec.submodule_search_locations or [spec.origin or ""]
            homes = [Path(place).resolve().parent for place in places]
            if not any(home == Path.cwd() or run.resolve() in (home, *home.parents) for home in homes):
                continue
        raise NotTrustedError(
            f"the run was trained with --gym-packages {name[:100]!r}, which is not imported because a file says so: name it "
            "yourself with --gym-packages"
        )


def import_packages(names: Iterable[str]) -> None:
    """Import the packages that a run's environment came from.

    :param names: of modules
    :raises ValueError: if one of them is not there
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (name, name.split(".")[0]):
                raise
            raise ValueError(
                f"The run was trained with --gym-packages {name}, which cannot be found from here: name another package with "
                "--gym-packages, or add the folder it is in to PYTHONPATH."
            ) from error
