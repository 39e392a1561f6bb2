"""Seconds until CartPole is learnt, with 8, 64 and 256 environments: VanillaPG beside A2C and PPO, one thread, one row a run.

Learnt: the last 100 episodes of the training returned 475 on average, at the end of a rollout. All with the defaults of
their classes, but for rollouts of 2,048 steps (A2C: its five steps of each environment), and at most 500,000 of them. Rows in
benchmarks/to_475.csv; finished runs are kept. On an idle machine: `python benchmarks/to_475.py`, then `--table`.
"""

import itertools
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym
import torch as th
from rows import Rows
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_pg import VanillaPG
from sb3_pg.vec_env import GymnasiumVecEnv

ROWS = Rows(Path(__file__).with_suffix(".csv"), "class", "n_envs", "seed", "seconds", "steps", "learnt")
CLASSES: dict[str, Any] = {"VanillaPG": VanillaPG, "A2C": A2C, "PPO": PPO}
N_ENVS = (8, 64, 256)
SEEDS = range(800, 803)
STEPS = 500_000


class Until475(BaseCallback):
    """Ends the training once CartPole is learnt."""

    is_learnt = False

    def _on_rollout_end(self) -> None:
        returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        self.is_learnt = len(returns) == 100 and sum(returns) / 100 >= 475

    def _on_step(self) -> bool:
        return not self.is_learnt


def train(name: str, n_envs: int, seed: int) -> tuple[float, int, bool]:
    """Seconds and steps that a training took, and whether it was the last."""
    if n_envs == 8:
        env: Any = make_vec_env("CartPole-v1", n_envs, seed=seed)
    else:
        native = gym.make_vec("CartPole-v1", n_envs, vectorization_mode="vector_entry_point")
        env = GymnasiumVecEnv(native, reset_rows="skip" if name == "VanillaPG" else "keep")
    n_steps = {} if name == "A2C" else {"n_steps": 2048 // n_envs}
    model = CLASSES[name]("MlpPolicy", env, seed=seed, device="cpu", **n_steps)
    callback, start = Until475(), time.perf_counter()
    model.learn(STEPS, callback=callback)
    return time.perf_counter() - start, model.num_timesteps, callback.is_learnt


def main() -> None:
    """Run what is missing, or print the table."""
    done = {
        (r["class"], int(r["n_envs"]), int(r["seed"])): (float(r["seconds"]), int(r["steps"]), r["learnt"] == "True")
        for r in ROWS.read()
    }
    if "--table" in sys.argv:
        for n_envs in N_ENVS:
            for name in CLASSES:
                results = [done[name, n_envs, seed] for seed in SEEDS if (name, n_envs, seed) in done]
                if results:
                    each = ", ".join(f"{s:.1f}" if learnt else "–" for s, _, learnt in results)
                    times = [s if learnt else float("inf") for s, _, learnt in results]
                    steps = [steps if learnt else float("inf") for _, steps, learnt in results]
                    of_median = f"{median(times):.1f} | {each} | {median(steps):,.0f}".replace("inf", "–")
                    print(f"| {n_envs} | {name} | {of_median} |")
        return
    th.set_num_threads(1)
    # Classes interleaved: what the machine does besides meets all of them
    for n_envs, seed, name in itertools.product(N_ENVS, SEEDS, CLASSES):
        if (name, n_envs, seed) not in done:
            ROWS.add(name, n_envs, seed, *train(name, n_envs, seed))


if __name__ == "__main__":
    main()
