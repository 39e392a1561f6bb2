"""rl-zoo3's commands, in this process and with our algorithms registered."""

import argparse
import importlib
import runpy
import sys
from pathlib import Path

from sb3_pg.zoo import register

_LOADING = ("enjoy", "record_video")
_FOR_AGENTS = ("train", "enjoy", "record_video")
_PLOTTING = ("plot_train", "plot_from_file", "all_plots")


def run(command: str, arguments: list[str]) -> None:
    """Run a command of rl-zoo3, after registering our algorithms.

    :param command: its name
    :param arguments: its options
    :raises ValueError: if rl-zoo3 would train with other hyperparameters than the options ask for
    """
    _refuse_ignored_options(arguments)
    register()
    # Where rl-zoo3 has other defaults: PPO, and its collection of trained agents, which has none of ours. Later options win
    if command in _FOR_AGENTS:
        arguments = ["--algo", "vpg", *arguments]
    if command in _LOADING:
        arguments = ["-f", "logs", *arguments]
    sys.argv = [f"sb3-pg {command}", *arguments]
    if command == "record_video":
        runpy.run_module("rl_zoo3.record_video", run_name="__main__")
        return
    module = importlib.import_module("rl_zoo3.plots" if command in _PLOTTING else f"rl_zoo3.{command}")
    getattr(module, command)()
    if command in _PLOTTING:
        _save_figures(command)


def _option(arguments: list[str], name: str) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(name, dest="value")
    value: str | None = parser.parse_known_args(arguments)[0].value
    return value


def _refuse_ignored_options(arguments: list[str]) -> None:
    """Say so where rl-zoo3 would train with other hyperparameters than the user asked for."""
    trial_id = _option(arguments, "--trial-id")
    if trial_id is None:
        return
    if None in (_option(arguments, "--storage"), _option(arguments, "--study-name")):
        raise ValueError("--trial-id needs --storage and --study-name, which name the study the trial belongs to.")
    if trial_id.strip("0") == "":
        raise ValueError(
            "rl-zoo3 ignores --trial-id 0. Pass the trial by its place from the end, for example --trial-id -4 for the "
            "first of four."
        )


def _save_figures(command: str) -> None:
    """Write the figures that a machine without a display cannot show."""
    from matplotlib import pyplot as plt
    from matplotlib.backends.registry import BackendFilter, backend_registry

    if plt.get_backend().lower() in backend_registry.list_builtin(BackendFilter.INTERACTIVE):  # type: ignore[no-untyped-call]
        return
    for number in plt.get_fignums():
        path = Path(f"{command}-{number}.png")
        plt.figure(number).savefig(path, dpi=150)
        print(f"Figure written to {path}")
