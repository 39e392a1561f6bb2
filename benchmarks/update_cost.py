"""Print what an update of NaturalPG costs beside one of VanillaPG on a rollout of the same size, everything else at defaults.

`python benchmarks/update_cost.py`. Both train in turn in one process; the ratio is taken turn by turn, and its median counts.
"""

import time
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_pg import NaturalPG, VanillaPG

# Environment, copies, steps a rollout of each
ROLLOUTS = [("CartPole-v1", 1, 512), ("CartPole-v1", 8, 256), ("Pendulum-v1", 8, 256), ("HalfCheetah-v5", 4, 1024)]
REPETITIONS = 50


def update_seconds(env_id: str, n_envs: int, n_steps: int) -> np.ndarray:
    """Seconds an update of VanillaPG and of NaturalPG, ``(REPETITIONS, 2)``."""
    models: list[Any] = []
    for cls in (VanillaPG, NaturalPG):
        models.append(cls("MlpPolicy", make_vec_env(env_id, n_envs, seed=0), n_steps=n_steps, seed=0, device="cpu"))
        models[-1].learn(n_steps * n_envs)
    seconds = np.empty((REPETITIONS, 2))
    for repetition in range(REPETITIONS):
        for i, model in enumerate(models):
            start = time.perf_counter()
            model.train()
            seconds[repetition, i] = time.perf_counter() - start
    return seconds


if __name__ == "__main__":
    th.set_num_threads(1)
    print("| | VanillaPG, ms | NaturalPG, ms | ratio |")
    print("|---|---|---|---|")
    for rollout in ROLLOUTS:
        vanilla, natural = (seconds := update_seconds(*rollout)).T
        env_id, n_envs, n_steps = rollout
        low, ratio, high = np.quantile(natural / vanilla, [0.25, 0.5, 0.75])
        medians = " | ".join(f"{1e3 * x:.1f}" for x in np.median(seconds, axis=0))
        print(f"| {env_id} × {n_envs}, {n_steps} steps each | {medians} | {ratio:.1f} [{low:.1f}–{high:.1f}] |")
