"""Print what an update of NaturalPG costs beside one of VanillaPG on a rollout of the same size, everything else at defaults.

`python benchmarks/update_cost.py`. Both train in turn in one process; the ratio is taken turn by turn, and its median counts.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_pg import NaturalPG, VanillaPG
from sb3_pg.benchmark.speed import interleave

# Environment, copies, steps a rollout of each
ROLLOUTS = [("CartPole-v1", 1, 1024), ("CartPole-v1", 8, 256), ("Pendulum-v1", 8, 256), ("HalfCheetah-v5", 4, 1024)]
REPETITIONS = 50


def run_updates(model: Any, updates: int) -> int:
    """Train so often on the rollout that the model holds."""
    for _ in range(updates):
        model.train()
    return updates


def updates_per_second(env_id: str, n_envs: int, n_steps: int) -> pd.DataFrame:
    """A row a turn, a column an algorithm."""
    contenders = {}
    for cls in (VanillaPG, NaturalPG):
        model = cls("MlpPolicy", make_vec_env(env_id, n_envs, seed=0), n_steps=n_steps, seed=0, device="cpu")
        contenders[cls.__name__] = partial(run_updates, model.learn(n_steps * n_envs))
    rows = pd.DataFrame(interleave(contenders, 1, REPETITIONS))
    return rows.pivot_table(index="repetition", columns="algorithm", values="steps_per_second")


if __name__ == "__main__":
    th.set_num_threads(1)
    print("| | VanillaPG, ms | NaturalPG, ms | ratio |")
    print("|---|---|---|---|")
    for env_id, n_envs, n_steps in ROLLOUTS:
        rates = updates_per_second(env_id, n_envs, n_steps)
        low, ratio, high = np.quantile(rates.VanillaPG / rates.NaturalPG, [0.25, 0.5, 0.75])
        medians = " | ".join(f"{1e3 / rates[name].median():.1f}" for name in ("VanillaPG", "NaturalPG"))
        print(f"| {env_id} × {n_envs}, {n_steps} steps each | {medians} | {ratio:.1f} [{low:.1f}–{high:.1f}] |")
