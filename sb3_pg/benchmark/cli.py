"""The command line of the benchmarks."""

import argparse
from pathlib import Path

import gymnasium as gym

PAIRS = ["CartPole-v1:1", "CartPole-v1:8", "Pendulum-v1:8", "HalfCheetah-v5:8"]


def _pair(text: str) -> tuple[str, int]:
    env_id, _, n_envs = text.rpartition(":")
    if not env_id or not n_envs.isdigit() or int(n_envs) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form ENVIRONMENT:NUMBER, as in CartPole-v1:8")
    return env_id, int(n_envs)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def main(argv: list[str] | None = None) -> None:
    """Run a benchmark.

    :param argv: arguments; those of the process if None
    """
    parser = argparse.ArgumentParser(prog="sb3-pg benchmark", description="Benchmarks of sb3_pg against its peers.")
    commands = parser.add_subparsers(dest="command", required=True)
    speed = commands.add_parser(
        "speed",
        help="environment steps per second, training included, beside A2C and PPO in one run",
        description="Environment steps per second, training included, of sb3_pg, A2C, PPO and the bare vector environment, in "
        "one process, interleaved. Absolute figures are the machine's; the ratios are what counts.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    speed.add_argument("--envs", nargs="+", type=_pair, default=[_pair(p) for p in PAIRS], metavar="ENV:N",
                       help="environments, each with its number of parallel copies")  # fmt: skip
    speed.add_argument("--steps", type=_positive, default=20_000, help="environment steps of one measurement, at least")
    speed.add_argument("--repetitions", type=_positive, default=5, help="interleaved repetitions; the table shows medians")
    speed.add_argument("--threads", type=_positive, default=1, help="threads of torch")
    speed.add_argument("--seed", type=int, default=0, help="seed of models and environments")
    speed.add_argument("--output", type=Path, default=Path("speed.csv"), help="CSV file of the single measurements")
    arguments = parser.parse_args(argv)
    try:
        from sb3_pg.benchmark.speed import run_speed
    except ModuleNotFoundError as error:
        parser.exit(1, f"{error.name} is missing: pip install 'sb3-pg[benchmark]'\n")
    try:
        run_speed(arguments.envs, arguments.steps, arguments.repetitions, arguments.threads, arguments.seed, arguments.output)
    except gym.error.Error as error:  # unknown, or its package is missing
        parser.exit(1, f"{error}\n")
