"""The command ``sb3-pg``: rl-zoo3's commands, with our algorithms among its own, and ours. One file a command."""

import argparse
import sys

import sb3_pg
from sb3_pg import distributed
from sb3_pg.cli.errors import explain
from sb3_pg.cli.help import suggesting_options

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
        if distributed.size() > 1 and command != "train":
            raise ValueError("it runs in one process: torchrun is for sb3-pg train, and for scripts of your own.")
        with suggesting_options():
            _run(command, arguments)
    except Exception as error:
        if own.traceback:
            raise
        sys.exit(f"sb3-pg {command}: error: {explain(error, command)}")


def _run(command: str, arguments: list[str]) -> None:
    if command == "benchmark":
        from sb3_pg.cli.benchmark import main as benchmark

        benchmark(arguments)
    elif command == "estimators":
        from sb3_pg.cli.estimators import main as estimators

        estimators(arguments)
    else:
        from sb3_pg.cli.zoo import run

        run(command, arguments)
