"""The command line of the benchmarks."""

import argparse
import re
from functools import partial
from pathlib import Path

import gymnasium as gym

from sb3_pg.benchmark import BUDGETS, LABELS
from sb3_pg.cli.help import Formatter, epilog

ROWS = ["CartPole-v1:1", "CartPole-v1:8", "Pendulum-v1:8", "HalfCheetah-v5:8"]
ROWS += ["CartPole-v1:8:lstm64", "CartPole-v1:64:lstm128", "CartPole-v1:8:masked"]
ROWS += ["CartPole-v1:64:native", "CartPole-v1:1024:native", "CartPole-v1:8:ranks2", "HalfCheetah-v5:8:ranks2"]


def _row(text: str) -> tuple[str, int, str]:
    parts = re.fullmatch(r"(.+?):([1-9]\d*)(?::(lstm[1-9]\d*|masked|native|envpool|ranks[1-9]\d*))?", text)
    if parts is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not of the form ENVIRONMENT:NUMBER, as in CartPole-v1:8, with :lstm64 or :masked for such policies, "
            "with :native or :envpool for Gymnasium's vector environments, and with :ranks2 for several processes"
        )
    return parts[1], int(parts[2]), parts[3] or ""


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _env_with_budget(text: str) -> tuple[str, int | None]:
    env_id, colon, n_timesteps = text.partition(":")
    return env_id, _positive(n_timesteps) if colon else None


def main(argv: list[str] | None = None) -> None:
    """Run a benchmark.

    :param argv: arguments; those of the process if None
    """
    parser = argparse.ArgumentParser(
        prog="sb3-pg benchmark",
        description="Benchmarks of sb3_pg against its peers.",
        formatter_class=Formatter,
        epilog=epilog("benchmark"),
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add_command = partial(commands.add_parser, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    speed = add_command(
        "speed",
        help="environment steps per second, training included, beside A2C and PPO in one run",
        description="Environment steps per second, training included, of sb3_pg, A2C, PPO and the bare vector environment, in "
        "one process, interleaved. Absolute figures are the machine's; the ratios are what counts.",
    )
    speed.add_argument("--envs", nargs="+", type=_row, default=[_row(row) for row in ROWS], metavar="ENV:N[:POLICY]",
                       help="environments, each with its number of parallel copies; with :lstm64 policies with a memory of so "
                       "many units beside RecurrentPPO, with :masked policies with masks beside MaskablePPO; with :native or "
                       ":envpool the environment's own vectorisation or EnvPool's; :ranks2 several processes")  # fmt: skip
    speed.add_argument("--steps", type=_positive, default=20_000, help="environment steps of one measurement, at least")
    speed.add_argument("--repetitions", type=_positive, default=5, help="interleaved repetitions; the table shows medians")
    speed.add_argument("--threads", type=_positive, default=1, help="threads of torch")
    speed.add_argument("--seed", type=int, default=0, help="seed of models and environments")
    speed.add_argument("--output", type=Path, default=Path("speed.csv"), help="CSV file of the single measurements")
    run = add_command(
        "run",
        help="train algorithms × environments × seeds through rl-zoo3; finished runs are kept when it is started again",
        description="Train algorithms × environments × seeds through rl-zoo3, each algorithm with its hyperparameter file, "
        "and evaluate on a schedule. Finished runs are kept: start it again to go on where it stopped.",
    )
    run.add_argument("--algos", nargs="+", default=list(LABELS), metavar="ALGO",
                     help="algorithms, ours and rl-zoo3's")  # fmt: skip
    run.add_argument("--envs", nargs="+", type=_env_with_budget, default=[(env_id, None) for env_id in BUDGETS],
                     metavar="ENV[:STEPS]", help="environments; the default ones have a budget")  # fmt: skip
    run.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5], help="seeds")
    run.add_argument("--jobs", type=_positive, default=2, help="runs at a time")
    run.add_argument("--folder", type=Path, default=Path("benchmarks/runs"), help="folder of the finished runs")

    report = add_command(
        "report",
        help="tables and figures of the finished runs",
        description="Tables and figures of the finished runs, with confidence intervals.",
    )
    report.add_argument("--folder", type=Path, default=Path("benchmarks/runs"), help="folder of the finished runs")
    report.add_argument("--throughput", type=Path, default=Path("benchmarks/throughput.csv"),
                        help="CSV file of the throughput benchmark; without it there is no time axis")  # fmt: skip
    report.add_argument("--output", type=Path, default=Path("benchmarks"), help="folder of REPORT.md, CSV files and figures")

    throughput = add_command(
        "throughput",
        help="environment steps per second of every algorithm with its hyperparameter file, in one run",
        description="Environment steps per second, training included, of every algorithm with its hyperparameter file, in one "
        "process, interleaved: the report's time axis.",
    )
    throughput.add_argument("--algos", nargs="+", default=list(LABELS), metavar="ALGO",
                            help="algorithms, ours and rl-zoo3's")  # fmt: skip
    throughput.add_argument("--envs", nargs="+", default=list(BUDGETS), metavar="ENV", help="environments")
    throughput.add_argument("--steps", type=_positive, default=8_000, help="environment steps of one measurement, at least")
    throughput.add_argument("--repetitions", type=_positive, default=3, help="interleaved repetitions")
    throughput.add_argument("--seed", type=int, default=0, help="seed of models and environments")
    throughput.add_argument("--output", type=Path, default=Path("benchmarks/throughput.csv"), help="CSV file")

    arguments = parser.parse_args(argv)
    try:
        {"speed": _speed, "run": _run, "report": _report, "throughput": _throughput}[arguments.command](arguments)
    except ModuleNotFoundError as error:
        parser.exit(1, f"{error.name} is missing: pip install '.[benchmark]' in a checkout of sb3_pg\n")
    except (gym.error.Error, ValueError) as error:  # an environment unknown, its package missing, a wrong argument
        parser.exit(1, f"{error}\n")


def _speed(arguments: argparse.Namespace) -> None:
    from sb3_pg.benchmark.speed import run_speed

    run_speed(arguments.envs, arguments.steps, arguments.repetitions, arguments.threads, arguments.seed, arguments.output)


def _run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from sb3_pg.benchmark.run import plan, run_all

    runs = plan(arguments.algos, arguments.envs, arguments.seeds)
    failed = run_all(runs, arguments.folder, arguments.jobs, Console())
    if failed:
        raise ValueError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(str(run.name) for run in failed)}")


def _report(arguments: argparse.Namespace) -> None:
    from sb3_pg.benchmark.report import write_report

    write_report(arguments.folder, arguments.throughput, arguments.output)


def _throughput(arguments: argparse.Namespace) -> None:
    from sb3_pg.benchmark.speed import run_throughput

    run_throughput(arguments.algos, arguments.envs, arguments.steps, arguments.repetitions, arguments.seed, arguments.output)
