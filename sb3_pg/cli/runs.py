"""What the folder of a run says about how it was made."""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads what rl-zoo3 writes, an OrderedDict, and makes nothing of any other Python object."""


def _ordered_dict(loader: yaml.SafeLoader, node: Any) -> dict[str, Any]:
    (pairs,) = loader.construct_sequence(node, deep=True)
    return dict(pairs)


_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered_dict)
_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, tag, node: None)


def read_args(folder: Path) -> dict[str, Any]:
    """The options a run was trained with, as ``args.yml`` has them.

    :param folder: of the settings of a run, ``ENV_NUMBER/ENV``
    :return: by name; empty if the run has no such file
    """
    path = folder / "args.yml"
    args = yaml.load(path.read_text(encoding="utf-8"), _Loader) if path.is_file() else {}
    return args if isinstance(args, dict) else {}


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
