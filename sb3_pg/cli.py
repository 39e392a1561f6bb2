"""The command ``sb3-pg``: rl-zoo3's commands, with our algorithms among its own, and the benchmarks."""

import argparse
import difflib
import importlib
import inspect
import re
import runpy
import sys
import traceback
from pathlib import Path

import sb3_pg

_LOADING = ("enjoy", "record_video", "estimators")
_FOR_AGENTS = ("train", "enjoy", "record_video")
# Hyperparameters of A2C and PPO, and what there is in their place
_ELSEWHERE = {
    "vf_coef": "the critic has an optimizer of its own, with critic_learning_rate.",
    "n_epochs": "there is one policy step a rollout; the critic's passes are n_critic_updates.",
    "clip_range": "one step on fresh data needs no clipping.",
    "clip_range_vf": "one step on fresh data needs no clipping.",
    "use_rms_prop": 'the optimizer is chosen by policy_kwargs:"dict(optimizer_class=…)".',
    "rms_prop_eps": 'the optimizer is chosen by policy_kwargs:"dict(optimizer_class=…, optimizer_kwargs=…)".',
}
_PLOTTING = ("plot_train", "plot_from_file", "all_plots")
_COMMANDS = {
    "train": "train an agent, continue (-i) or search for hyperparameters (-optimize)",
    "enjoy": "watch a trained agent",
    "record_video": "record a video of a trained agent",
    "plot_train": "plot the training returns of runs",
    "all_plots": "plot the evaluations of runs, with a table, and gather them in a file",
    "plot_from_file": "compare what all_plots has gathered (bars, rliable)",
    "estimators": "which estimator is best on this problem: variance, bias, batch size",
    "benchmark": "measure against A2C, PPO and TRPO",
}


def main(argv: list[str] | None = None) -> None:
    """Run a command. A user's error ends in one line on the standard error and exit status 1.

    :param argv: arguments; those of the process if None
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="sb3-pg",
        description="Policy gradients for Stable-Baselines3: vpg (VanillaPG), reinforce (ReinforceBaseline) and npg "
        "(NaturalPG) in rl-zoo3's commands, beside the algorithms it has (--algo a2c, ppo, trpo, …).",
        epilog="sb3-pg COMMAND --help shows the options of a command: rl-zoo3's own, of the same meaning.",
    )
    parser.add_argument("--version", action="version", version=f"sb3-pg {sb3_pg.__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from, not only what it says")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, description in _COMMANDS.items():
        commands.add_parser(name, help=description, add_help=False)
    # What follows the command is the command's
    n_own = next((i + 1 for i, argument in enumerate(argv) if not argument.startswith("-")), len(argv))
    own = parser.parse_args(argv[:n_own])
    command, arguments = own.command, argv[n_own:]
    try:
        if command == "benchmark":
            from sb3_pg.benchmark.cli import main as benchmark

            benchmark(arguments)
        elif command == "estimators":
            from sb3_pg.estimators_command import main as estimators

            estimators(arguments)
        else:
            _run_zoo(command, arguments)
    except Exception as error:
        if own.traceback:
            raise
        sys.exit(f"sb3-pg {command}: error: {_explain(error, command)}")


def _run_zoo(command: str, arguments: list[str]) -> None:
    """Run a command of rl-zoo3 in this process, after registering our algorithms."""
    from sb3_pg.zoo import register

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


def _explain(error: Exception, command: str) -> str:
    """One line that says what is wrong and what to do."""
    message = " ".join(str(error).split())
    # Raised by rl-zoo3, or by a value that it evaluates, and not by the user's environment
    origin = traceback.extract_tb(error.__traceback__)[-1].filename
    of_settings = command == "train" and ("rl_zoo3" in origin or origin == "<string>")
    if isinstance(error, ModuleNotFoundError) and str(error.name).split(".")[0] == "rl_zoo3":
        return "rl-zoo3 is missing: pip install 'sb3-pg[zoo]'"
    if of_settings and isinstance(error, NameError | SyntaxError):
        return (
            f"{message}. Hyperparameters are written -params NAME:VALUE; values are Python expressions, with text in quotes: "
            "-params weights:\"'reward_to_go'\""
        )
    if "Record does not exist" in message:
        return "the storage has no such study: check --study-name and --storage"
    if command == "train" and isinstance(error, IndexError) and "--trial-id" in sys.argv:
        return "the study has no such trial: check --trial-id"
    if of_settings and isinstance(error, KeyError):
        return f"{message} is missing from the hyperparameters"
    unexpected = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    if unexpected:
        return _explain_hyperparameter(*unexpected.groups())
    if command in _LOADING and re.search(r"No model found|folder was not found", message):
        return (
            f"{message}. Train an agent first (sb3-pg train), or say where it is with -f FOLDER and --exp-id NUMBER: the "
            "latest run may be a search or one that ended early."
        )
    if command == "plot_from_file" and "empty sequence" in message:
        return "an algorithm has fewer than two complete runs in every environment (see -min of all_plots)"
    if isinstance(error, ValueError | TypeError | AssertionError) and message:
        return message
    return f"{type(error).__name__}: {message}"


def _explain_hyperparameter(class_name: str, name: str) -> str:
    from rl_zoo3.utils import ALGOS

    for algorithm in ALGOS.values():
        if algorithm.__name__ == class_name:
            known = list(inspect.signature(algorithm).parameters)
            if name in _ELSEWHERE:
                return f"{class_name} has no hyperparameter {name!r}: {_ELSEWHERE[name]}"
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known[2:-1])}."
            return f"{class_name} has no hyperparameter {name!r}: {hint}"
    return f"{class_name} does not take {name!r}"
