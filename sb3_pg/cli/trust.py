"""rl-zoo3's commands, kept from running what the files of a run hold.

rl-zoo3 unpickles models, statistics and results, builds Python objects of YAML and evaluates strings. In a process of ours it
reads them with :mod:`sb3_pg.loading` instead, unless the user says ``--trust``.
"""

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import yaml
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize

from sb3_pg.algorithms.model import Model
from sb3_pg.loading import (
    NotTrustedError,
    load_model,
    load_vec_normalize,
    parse_normalize,
    read_pickle,
    read_settings,
    settings_loader,
)
from sb3_pg.replacing import replacing
from sb3_pg.zoo import register

# Wrappers that a run may name, but for those that write files where they are told to
_WRAPPERS = (
    *("gymnasium.wrappers", "rl_zoo3.wrappers", "sb3_contrib.common.wrappers", "minigrid.wrappers"),
    *("stable_baselines3.common.atari_wrappers", "stable_baselines3.common.vec_env"),
)
_WRITERS = ("RecordVideo", "VecVideoRecorder", "VecMonitor")
# What the whole numbers among the arguments of all wrappers may multiply to, and those of one shape
_MAX_FRAMES, _MAX_PIXELS = 2**16, 2**20


def take_trust(arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether ``--trust`` is among the options of a command, and the others."""
    others = [argument for argument in arguments if argument != "--trust"]
    return len(others) < len(arguments), others


@contextmanager
def distrusting(command: str) -> Iterator[None]:
    """Have rl-zoo3 read the files of runs without running anything of them.

    :param command: of ours or rl-zoo3's
    """
    import rl_zoo3
    from rl_zoo3 import utils

    register()  # what is registered later would trust
    get_saved_hyperparams = utils.get_saved_hyperparams

    @wraps(get_saved_hyperparams)
    def get_checked_hyperparams(stats_path: str, *args: Any, **kwargs: Any) -> Any:
        check_settings(Path(stats_path))
        return get_saved_hyperparams(stats_path, *args, **kwargs)

    replaced: list[tuple[Any, str, Any]] = [
        (VecNormalize, "load", staticmethod(load_vec_normalize)),
        (yaml, "UnsafeLoader", settings_loader()),
        (utils, "get_saved_hyperparams", get_checked_hyperparams),
        (rl_zoo3, "get_saved_hyperparams", get_checked_hyperparams),
    ]
    if command == "plot_from_file":
        module = importlib.import_module("rl_zoo3.plots.plot_from_file")
        replaced.append((module, "pickle", SimpleNamespace(load=lambda file: read_pickle(file.name))))
    algorithms = dict(utils.ALGOS)
    with replacing(*replaced):
        utils.ALGOS.update({name: _distrustful(cls) for name, cls in algorithms.items()})
        try:
            yield
        finally:
            utils.ALGOS.update(algorithms)


def _distrustful(algorithm: type[Any]) -> type[Any]:
    """The algorithm, whose ``load`` does not trust files. What is made of it is the algorithm's own."""

    def new(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
        return algorithm(*args, **kwargs)

    def load(cls: type[Any], /, path: Any, **kwargs: Any) -> Any:
        # rl-zoo3 goes on with what lies beside the agent
        if hasattr(algorithm, "load_replay_buffer") and Path(path).with_name("replay_buffer.pkl").exists():
            raise NotTrustedError(f"{Path(path).with_name('replay_buffer.pkl')} is read by pickle, which runs what it holds")
        if issubclass(algorithm, Model):
            return algorithm.load(path, trusted=False, **kwargs)
        return load_model(algorithm, path, **kwargs)

    attributes = {"__new__": new, "load": classmethod(load), "__module__": algorithm.__module__, "__doc__": algorithm.__doc__}
    return type(algorithm.__name__, (algorithm,), attributes)


def check_settings(folder: Path) -> None:
    """Refuse the settings of a run if rl-zoo3 would run something of them.

    :param folder: that has ``config.yml`` and ``args.yml``
    :raises NotTrustedError: naming what they ask for
    :raises ValueError: if they are damaged
    """
    config = read_settings(folder / "config.yml") if (folder / "config.yml").is_file() else {}
    if isinstance(config.get("normalize"), str):
        parse_normalize(config["normalize"])
    arguments: list[Any] = [{"frame_stack": config.get("frame_stack")}]
    for key in ("env_wrapper", "vec_env_wrapper"):
        entries = config.get(key) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            name, of_wrapper = next(iter(entry.items()), ("", None)) if isinstance(entry, dict) else (entry, None)
            _check_wrapper(name)
            arguments.append(of_wrapper)
    _check_sizes(arguments)
    if (folder / "args.yml").is_file():
        args = read_settings(folder / "args.yml")
        for key, missing in (("env_kwargs", False), ("eval_env_kwargs", None)):
            kwargs = args.get(key, missing)
            if not (kwargs is None or (isinstance(kwargs, dict) and all(str(name).isidentifier() for name in kwargs))):
                raise ValueError(f"{folder / 'args.yml'} does not say which {key} the environment was made with.")


def _check_wrapper(name: Any) -> None:
    """Refuse what is no wrapper of the libraries."""
    module, _, name_in_module = str(name).rpartition(".")
    if any(module == known or module.startswith(f"{known}.") for known in _WRAPPERS):
        wrapper = getattr(importlib.import_module(module), name_in_module, None)
        if isinstance(wrapper, type) and issubclass(wrapper, gym.Wrapper | VecEnvWrapper) and wrapper.__name__ not in _WRITERS:
            return
    raise NotTrustedError(f"the run asks for the wrapper {str(name)[:100]!r}, which files that are not trusted do not get")


def _check_sizes(arguments: list[Any]) -> None:
    """Refuse wrappers that would make observations of any size. Numbers of steps may be large."""
    frames = 1
    for of_wrapper in arguments:
        for name, value in of_wrapper.items() if isinstance(of_wrapper, dict) else ():
            numbers = value if isinstance(value, list | tuple) else [value]
            size = math.prod(max(abs(n), 1) for n in numbers if isinstance(n, int))
            if str(name).endswith("steps"):
                continue
            frames *= 1 if numbers is value else size
            if frames > _MAX_FRAMES or size > _MAX_PIXELS:
                raise NotTrustedError(f"the run asks for a wrapper with {str(name)[:40]} {str(value)[:80]}, which is too much")
