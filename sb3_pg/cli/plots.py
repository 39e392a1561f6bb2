"""rl-zoo3's plots: looked at beforehand, for they draw an empty figure of nothing, and told of steps in no episode."""

import argparse
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results
from stable_baselines3.common.results_plotter import X_TIMESTEPS, ts2xy

from sb3_pg.replacing import replacing


def check_plot(command: str, arguments: list[str]) -> None:
    """Refuse to draw nothing, and say on stderr what will be missing.

    :param command: of rl-zoo3
    :param arguments: its options
    :raises ArgumentError: if the command would not take them
    :raises ValueError: if there are no runs of an environment, or too short ones
    """
    if command == "plot_from_file":
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        parser.add_argument("-i", "--input", type=Path)
        file = parser.parse_known_args(arguments)[0].input
        if file is not None and not (file.is_file() or Path(f"{file}.pkl").is_file()):
            raise ValueError(f"There is no file {file}: sb3-pg all_plots -o NAME writes NAME.pkl.")
        return
    if command not in ("plot_train", "all_plots"):
        return
    several = "+" if command == "all_plots" else None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-a", "--algo", "--algos", dest="algos", nargs=several)
    parser.add_argument("-e", "--env", dest="envs", nargs="+")
    parser.add_argument("-f", "--exp-folder", "--exp-folders", dest="folders", nargs=several)
    parser.add_argument("-w", "--episode-window", type=int, default=100)
    options, _ = parser.parse_known_args(arguments)
    if not (options.algos and options.envs and options.folders):
        return
    if command == "plot_train":
        algos, folders = [options.algos], [options.folders]
    else:
        algos, folders = [algo.lower() for algo in options.algos], options.folders
    for env in options.envs:
        runs = [run for folder in folders for algo in algos for run in _find_runs(Path(folder) / algo, env)]
        where = f"{env} by {', '.join(algos)} in {', '.join(folders)}"
        if command == "plot_train":
            n_episodes = [_count_episodes(run) for run in runs]
            if not any(n_episodes):
                raise ValueError(
                    f"There is no episode of {where}: train an agent first (sb3-pg train), or check -a, -e and -f."
                )
            if max(n_episodes) < options.episode_window:
                raise ValueError(
                    f"No run of {where} has the {options.episode_window} episodes of a point of the curve: "
                    f"-w {max(n_episodes)} would draw one."
                )
            _say_missing([run.name for run, n in zip(runs, n_episodes, strict=True) if n < options.episode_window],
                         f"not drawn, having fewer than {options.episode_window} episodes (-w)")  # fmt: skip
        else:
            n_evaluations = [_count_evaluations(run) for run in runs]
            if not any(n_evaluations):
                raise ValueError(
                    f"There is no evaluation of {where}: train an agent first (sb3-pg train, with --eval-freq), or check "
                    "-a, -e and -f."
                )
            if max(n_evaluations) < 2:
                raise ValueError(f"Every run of {where} was evaluated once: a curve takes two (a smaller --eval-freq).")
            evaluated = {run.parent for run, n in zip(runs, n_evaluations, strict=True) if n >= 2}
            series = [Path(folder) / algo for algo in algos for folder in folders]
            _say_missing([f"{env} in {path}" for path in series if path not in evaluated],
                         "no results (0.0 in the table), having no run with two evaluations")  # fmt: skip


def _say_missing(names: list[str], what: str) -> None:
    if names:
        print(f"{', '.join(names)}: {what}.", file=sys.stderr)


def _find_runs(folder: Path, env: str) -> list[Path]:
    """Folders that rl-zoo3's plots would look into."""
    return [path for path in folder.iterdir() if env in path.name and path.is_dir()] if folder.is_dir() else []


def _count_episodes(run: Path) -> int:
    try:
        return len(load_results(str(run)))
    except LoadMonitorResultsError:
        return 0


def _count_evaluations(run: Path) -> int:
    path = run / "evaluations.npz"
    if not path.is_file():
        return 0
    with np.load(path) as evaluations:
        return len(evaluations["timesteps"])


@contextmanager
def own_title() -> Iterator[None]:
    """Have plot_from_file's bars not say that every environment is PyBullet's."""
    from matplotlib import pyplot as plt

    set_title = plt.title

    def title(label: str, **kwargs: Any) -> Any:
        return set_title("Final evaluations" if label == "PyBullet envs" else label, **kwargs)

    with replacing((plt, "title", title)):
        yield


def count_abandoned_steps(arguments: list[str]) -> list[str]:
    """Have plot_train's axis of steps, and its limit, count those of abandoned episodes, where Monitor's files have them.

    :param arguments: of plot_train
    :return: the arguments, without the limit
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-max", "--max-timesteps", type=int)
    options, others = parser.parse_known_args(arguments)
    plot_train: Any = importlib.import_module("rl_zoo3.plots.plot_train")

    def load(path: str) -> Any:
        table = load_results(path)
        abandoned = table["abandoned"].fillna(0) if "abandoned" in table else 0
        table["played"] = (table["l"] + abandoned).cumsum()
        return table if options.max_timesteps is None else table[table["played"] <= options.max_timesteps]

    def to_xy(table: Any, x_axis: str) -> Any:
        x, y = ts2xy(table, x_axis)
        return (table["played"].to_numpy() if x_axis == X_TIMESTEPS else x), y

    plot_train.load_results, plot_train.ts2xy = load, to_xy
    return others
