"""Train all algorithms at their class defaults, and nothing else, and write one row a run to benchmarks/defaults.csv.

One environment without wrappers, as a newcomer types it; mean return of 20 deterministic episodes after training. Finished
runs are kept: start it again to go on where it stopped. `python benchmarks/defaults.py`, then `--table`.
"""

import argparse
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


def train(algorithm: str, env_id: str, steps: int, seed: int) -> float:
    """Mean return of 20 deterministic episodes after training on one environment."""
    model = ALGORITHMS[algorithm]("MlpPolicy", env_id, seed=seed, device="cpu").learn(steps)
    return float(evaluate_policy(model, make_vec_env(env_id, 1, seed=1000 + seed), n_eval_episodes=20)[0])


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs")
    parser.add_argument("--envs", nargs="+", help="environments to run; all if not given")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, help="algorithms to run; all if not given")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    done = {(r["algorithm"], r["env"], int(r["steps"]), int(r["seed"])): float(r["return"]) for r in ROWS.read()}
    if arguments.table:
        for algorithms, env_id, steps, seeds in RUNS:
            for algorithm in algorithms:
                returns = [done[key] for key in ((algorithm, env_id, steps, seed) for seed in seeds) if key in done]
                if returns:
                    print(f"| {env_id} | {steps // 1000}k | {algorithm} | {len(returns)} | {trim_mean(returns, 0.25):.0f} | "
                          f"{min(returns):.0f} | {max(returns):.0f} |")  # fmt: skip
        return
    for algorithms, env_id, steps, seeds in [run for run in RUNS if run[1] in (arguments.envs or [run[1]])]:
        for algorithm in [name for name in algorithms if name in (arguments.algorithms or [name])]:
            for seed in seeds:
                if (algorithm, env_id, steps, seed) not in done:
                    ROWS.add(algorithm, env_id, steps, seed, train(algorithm, env_id, steps, seed))


if __name__ == "__main__":
    main()
