"""Train all algorithms at their class defaults, and nothing else, and write one row a run to benchmarks/defaults.csv.

One environment without wrappers, as a newcomer types it; mean return of 20 deterministic episodes after training. Finished
runs are kept: start it again to go on where it stopped, a seed of all before the next. `python benchmarks/defaults.py`, then
`--table`.
"""

import argparse
import multiprocessing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch as th
from rows import Rows
from scipy.stats import trim_mean
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG

ROWS = Rows(Path(__file__).with_suffix(".csv"), "algorithm", "env", "steps", "seed", "return")
OURS: dict[str, Any] = {"VanillaPG": VanillaPG, "ReinforceBaseline": ReinforceBaseline, "NaturalPG": NaturalPG}
PEERS: dict[str, Any] = {"A2C": A2C, "PPO": PPO}
ALGORITHMS = OURS | PEERS
SEEDS = range(500, 505)
# Algorithms, environment, steps, seeds
RUNS: list[tuple[Iterable[str], str, int, range]] = [
    (OURS, "CartPole-v1", 100_000, range(500, 510)),
    (["NaturalPG"], "CartPole-v1", 50_000, range(500, 510)),
    (PEERS, "CartPole-v1", 100_000, SEEDS),
    *((ALGORITHMS, env_id, steps, SEEDS) for env_id, steps in {
        "Pendulum-v1": 300_000, "Acrobot-v1": 150_000, "MountainCarContinuous-v0": 100_000, "LunarLander-v3": 300_000,
        "Hopper-v5": 500_000, "HalfCheetah-v5": 500_000, "BipedalWalker-v3": 500_000,
    }.items()),
]  # fmt: skip


Run = tuple[str, str, int, int]


def train(run: Run) -> tuple[Run, float]:
    """Mean return of 20 deterministic episodes after training on one environment."""
    th.set_num_threads(1)
    algorithm, env_id, steps, seed = run
    model = ALGORITHMS[algorithm]("MlpPolicy", env_id, seed=seed, device="cpu").learn(steps)
    return run, float(evaluate_policy(model, make_vec_env(env_id, 1, seed=1000 + seed), n_eval_episodes=20)[0])


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--envs", nargs="+", help="environments to run; all if not given")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, help="algorithms to run; all if not given")
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs")
    arguments = parser.parse_args()
    done = {(r["algorithm"], r["env"], int(r["steps"]), int(r["seed"])): float(r["return"]) for r in ROWS.read()}
    if arguments.table:
        for algorithms, env_id, steps, seeds in RUNS:
            for algorithm in algorithms:
                returns = [done[key] for key in ((algorithm, env_id, steps, seed) for seed in seeds) if key in done]
                if returns:
                    print(f"| {env_id} | {steps // 1000}k | {algorithm} | {len(returns)} | {trim_mean(returns, 0.25):.0f} | "
                          f"{min(returns):.0f} | {max(returns):.0f} |")  # fmt: skip
        return
    chosen = arguments.algorithms or ALGORITHMS
    runs = [(name, env_id, steps, seed) for names, env_id, steps, seeds in RUNS for seed in seeds for name in names
            if name in chosen and env_id in (arguments.envs or [env_id])]  # fmt: skip
    missing = sorted(set(runs) - set(done), key=lambda run: (run[3], runs.index(run)))
    with multiprocessing.get_context("spawn").Pool(arguments.jobs, maxtasksperchild=1) as pool:
        for run, result in pool.imap_unordered(train, missing):
            ROWS.add(*run, result)


if __name__ == "__main__":
    main()
