"""Train the default hyperparameters on four environments and write one row a run to benchmarks/defaults.csv.

Finished runs are kept: start it again to go on where it stopped. `python benchmarks/defaults.py`, then `--table`.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG

FILE = Path(__file__).with_suffix(".csv")
ALGORITHMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "VanillaPG": (VanillaPG, {}),
    "ReinforceBaseline": (ReinforceBaseline, {}),
    "VanillaPG(weights='reward_to_go')": (VanillaPG, dict(weights="reward_to_go")),
    "NaturalPG": (NaturalPG, {}),
}
FIRST_ORDER = [name for name in ALGORITHMS if name != "NaturalPG"]
# Algorithms, environment, steps, seeds, and what is changed from the defaults
RUNS: list[tuple[list[str], str, int, range, dict[str, Any]]] = [
    (FIRST_ORDER, "CartPole-v1", 100_000, range(10), {}),
    (["NaturalPG"], "CartPole-v1", 50_000, range(10), {}),
    (FIRST_ORDER, "Acrobot-v1", 150_000, range(3), {}),
    (FIRST_ORDER, "Pendulum-v1", 200_000, range(3), {}),
    (FIRST_ORDER, "Pendulum-v1", 200_000, range(3), dict(gamma=0.95, n_critic_updates=10)),
    (FIRST_ORDER, "LunarLander-v3", 200_000, range(1), {}),
]


def train(algorithm: str, env_id: str, steps: int, seed: int, changes: dict[str, Any]) -> float:
    """Mean return of 20 deterministic episodes after training on one environment."""
    cls, kwargs = ALGORITHMS[algorithm]
    model = cls("MlpPolicy", env_id, seed=seed, device="cpu", **kwargs, **changes).learn(steps)
    return float(evaluate_policy(model, make_vec_env(env_id, 1, seed=1000 + seed), n_eval_episodes=20)[0])


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs")
    parser.add_argument("--envs", nargs="+", help="environments to run; all if not given")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    rows = list(csv.DictReader(FILE.open())) if FILE.exists() else []
    done = {(r["algorithm"], r["env"], r["changes"], int(r["seed"])): float(r["return"]) for r in rows}
    if arguments.table:
        for algorithms, env_id, steps, seeds, changes in RUNS:
            for algorithm in algorithms:
                returns = [r for key, r in done.items() if key[:3] == (algorithm, env_id, str(changes)) and key[3] in seeds]
                if returns:
                    print(f"| {env_id} | {steps // 1000}k | {algorithm} | {changes or ''} | {len(returns)} | "
                          f"{np.median(returns):.0f} | {min(returns):.0f} | {max(returns):.0f} |")  # fmt: skip
        return
    with FILE.open("a", newline="") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(["algorithm", "env", "steps", "changes", "seed", "return"])
        for algorithms, env_id, steps, seeds, changes in [run for run in RUNS if run[1] in (arguments.envs or [run[1]])]:
            for seed in seeds:
                for algorithm in algorithms:
                    if (algorithm, env_id, str(changes), seed) not in done:
                        result = train(algorithm, env_id, steps, seed, changes)
                        writer.writerow([algorithm, env_id, steps, str(changes), seed, result])
                        file.flush()
                        print(algorithm, env_id, changes, seed, result, flush=True)


if __name__ == "__main__":
    main()
