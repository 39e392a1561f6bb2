"""rl-zoo3's commands, in this process and with our algorithms registered."""

import argparse
import difflib
import importlib
import runpy
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import Any

from sb3_pg.cli.help import epilog, next_steps
from sb3_pg.cli.plots import check_plot, count_abandoned_steps, own_title
from sb3_pg.cli.ranks import sharing
from sb3_pg.cli.resume import resuming, take_resume
from sb3_pg.cli.runs import check_packages, import_packages, read_args
from sb3_pg.cli.trust import distrusting, take_trust
from sb3_pg.cli.vec_env import take_vec_env, training_in
from sb3_pg.replacing import replacing
from sb3_pg.zoo import ALGORITHMS, act_in_test_envs, pass_env_kwargs_of_file, register

_LOADING = ("enjoy", "record_video")
_FOR_AGENTS = ("train", "enjoy", "record_video")
_PLOTTING = ("plot_train", "plot_from_file", "all_plots")


def run(command: str, arguments: list[str]) -> None:
    """Run a command of rl-zoo3, after registering our algorithms.

    :param command: its name
    :param arguments: its options
    :raises ValueError: if rl-zoo3 would train with other hyperparameters than the options ask for
    """
    trusted, arguments = take_trust(arguments)
    _refuse_ignored_options(arguments)
    register()
    _check_algo(arguments)
    resumed, arguments = take_resume(arguments) if command == "train" else (None, arguments)
    with resuming(resumed, arguments, trusted) as arguments:
        _run(command, arguments, trusted)
    if command in _PLOTTING:
        _save_figures(command)


def _run(command: str, arguments: list[str], trusted: bool) -> None:
    vec_env, arguments = take_vec_env(arguments) if command == "train" else (None, arguments)
    # Where rl-zoo3 has other defaults: PPO, and its collection of trained agents, which has none of ours. Later options win
    if command in _FOR_AGENTS:
        arguments = ["--algo", "vpg", *arguments]
    if command in _LOADING:
        arguments = ["-f", "logs", *arguments]
    with suppress(argparse.ArgumentError):  # left to rl-zoo3, which says how its command is used
        if command in _FOR_AGENTS:
            arguments = _import_packages(command, arguments, trusted)
        if command in _PLOTTING:
            check_plot(command, arguments)
        if command == "plot_train":
            arguments = count_abandoned_steps(arguments)
    sys.argv = [f"sb3-pg {command}", *arguments]
    stops = _stop_at_signals() if command == "train" else []
    if command in _LOADING:
        act_in_test_envs()
    if command == "record_video":
        pass_env_kwargs_of_file()
    with (
        showing_help(command),
        telling_next(),
        sharing(),
        training_in(vec_env),
        own_title() if command == "plot_from_file" else nullcontext(),
        nullcontext() if trusted else distrusting(command),
    ):
        if command == "record_video":
            runpy.run_module("rl_zoo3.record_video", run_name="__main__")
        else:
            module = importlib.import_module("rl_zoo3.plots" if command in _PLOTTING else f"rl_zoo3.{command}")
            getattr(module, command)()
    if stops:
        sys.exit(128 + stops[0])


def _stop_at_signals() -> list[int]:
    """Have a training that is told to end do what rl-zoo3 does at Ctrl-C alone: save the agent.

    :return: the signals that have come
    """
    stops: list[int] = []

    def stop(number: int, _: Any) -> None:
        stops.append(number)
        raise KeyboardInterrupt

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
    return stops


@contextmanager
def showing_help(command: str) -> Iterator[None]:
    """Say what rl-zoo3's help does not."""
    try:
        yield
    except SystemExit as end:
        if not end.code and {"-h", "--help"} & set(sys.argv):
            print(f"\n{epilog(command, trusting=True)}")
        raise


@contextmanager
def telling_next() -> Iterator[None]:
    """Say after a training what to type next."""
    from rl_zoo3.exp_manager import ExperimentManager

    manager: Any = ExperimentManager
    save_trained_model = manager.save_trained_model

    @wraps(save_trained_model)
    def save(self: Any, model: Any) -> None:
        save_trained_model(self, model)
        if model.num_timesteps < self.n_timesteps and not hasattr(self, "resumed"):
            can_go_on = self.algo in ALGORITHMS and any(Path(self.save_path).glob("*_steps.zip"))
            print(f"Stopped at {model.num_timesteps:,} of {self.n_timesteps:,.0f} steps.", end=" ")
            print(f"Go on: sb3-pg train --resume {self.save_path}" if can_go_on else "")
        print(next_steps(self.algo, self.env_name.gym_id, Path(self.save_path)))

    with replacing((manager, "save_trained_model", save)):
        yield


def _import_packages(command: str, arguments: list[str], trusted: bool) -> list[str]:
    """Have the packages imported that register the environment: those named, or those the run was trained with.

    :return: the arguments, as rl-zoo3's command takes them
    """
    import gymnasium as gym
    from huggingface_sb3 import EnvironmentName
    from rl_zoo3.utils import get_latest_run_id

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--gym-packages", nargs="+")
    packages, without = parser.parse_known_args(arguments)
    parser.add_argument("--algo", default="vpg")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("-f", "--folder", default="logs")
    parser.add_argument("--exp-id", type=int, default=0)
    parser.add_argument("-i", "--trained-agent", default="")
    options, _ = parser.parse_known_args(arguments)
    env_name = EnvironmentName(options.env)
    if command == "train":
        if not options.trained_agent:
            return arguments
        run = Path(options.trained_agent).parent
    else:
        folder = Path(options.folder) / options.algo
        exp_id = options.exp_id or get_latest_run_id(str(folder), env_name)
        run = folder / f"{env_name}_{exp_id}" if exp_id > 0 else folder
    names = packages.gym_packages
    if names is None:
        names = read_args(run / env_name, trusted).get("gym_packages") or []
        if not trusted:
            check_packages(names, run)
        import_packages(names)
        if command != "train" and run.is_dir() and env_name.gym_id not in gym.registry:
            raise ValueError(f"{env_name.gym_id} is not registered: name the package that does it with --gym-packages.")
    if command == "record_video":  # rl-zoo3's takes none
        for name in names:
            importlib.import_module(name)
        return without
    return [*without, *(["--gym-packages", *names] if names else [])]


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


def _check_algo(arguments: list[str]) -> None:
    from rl_zoo3.utils import ALGOS

    algo = _option(arguments, "--algo")
    if algo is not None and algo not in ALGOS:
        close = difflib.get_close_matches(algo, ALGOS, n=1)
        raise ValueError(
            f"There is no algorithm {algo!r}: {f'did you mean {close[0]}?' if close else 'there are ' + ', '.join(ALGOS)}"
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
