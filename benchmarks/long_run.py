"""Ten million steps without a restart: memory and speed, a row every tenth of them, in benchmarks/long_run.csv.

python benchmarks/long_run.py [steps]
"""

import csv
import resource
import sys
import time
from pathlib import Path

import gymnasium as gym
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_pg import VanillaPG


class Watch(BaseCallback):
    """Writes a row at the first rollout after every ``every`` steps."""

    def __init__(self, every: int, file: Path):
        super().__init__()
        self.every, self.next, self.file = every, every, file
        self.rows: list[list[object]] = [["steps", "steps_per_second", "resident_MiB", "peak_MiB"]]
        self.last = 0, time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps >= self.next:
            self.next += self.every
            now, (steps, then) = time.perf_counter(), self.last
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rate = (self.num_timesteps - steps) / (now - then)
            self.rows.append(
                [self.num_timesteps, round(rate), round(pages * resource.getpagesize() / 2**20, 1), round(peak, 1)]
            )
            self.last = self.num_timesteps, now
            with self.file.open("w", newline="") as file:
                csv.writer(file).writerows(self.rows)
            print(*self.rows[-1], flush=True)


steps = int(float(sys.argv[1])) if len(sys.argv) > 1 else 10_000_000
th.set_num_threads(1)
env = gym.make_vec("CartPole-v1", 64, vectorization_mode="vector_entry_point")
model = VanillaPG("MlpPolicy", env, n_steps=128, seed=0, device="cpu")
model.learn(steps, callback=Watch(steps // 10, Path(__file__).with_suffix(".csv")))
