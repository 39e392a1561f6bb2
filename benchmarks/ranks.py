"""Where adding processes ends to pay: a model of the cost of a rollout against their number, fitted to one and two of them.

A rollout of K processes takes as long as the slowest of K plays, and its update adds for every sum over them a latency, which
grows with log₂ K, and the time of its bytes:

    T(K) = T₁ + σ √(2 ln K) + n · α · ⌈log₂ K⌉ + 2 (K − 1) / K · bytes / β

T₁ and σ: median and deviation of a rollout with its update in one process. n and bytes: sums of a rollout and their size,
counted with two processes. α and β: latency and bandwidth of a sum, timed between two. What two take is measured as well.

python benchmarks/ranks.py          measure, write benchmarks/ranks.csv and print the table
python benchmarks/ranks.py --table  print the table of what was measured
"""

import argparse
import csv
import math
import multiprocessing
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_pg import NaturalPG, VanillaPG, distributed
from sb3_pg.benchmark.ranks import become, find_port

FILE = Path(__file__).with_suffix(".csv")
CLASSES: dict[str, Any] = {"VanillaPG": VanillaPG, "NaturalPG": NaturalPG}
# Environment, environments a process, policy, arguments
SUBJECTS: dict[str, tuple[Any, int, str, dict[str, Any]]] = {
    "CartPole-v1 × 8": ("CartPole-v1", 8, "MlpPolicy", {}),
    "HalfCheetah-v5 × 8": ("HalfCheetah-v5", 8, "MlpPolicy", {}),
    "84 × 84 × 4 images × 8": ("images", 8, "CnnPolicy", {"n_steps": 32}),
}
ROLLOUTS = 12
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Images(gym.Env):
    """Images of noise, which cost next to nothing to make."""

    observation_space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    action_space = gym.spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode of 100 steps."""
        super().reset(seed=seed)
        self.t, self.image = 0, self.np_random.integers(0, 255, (84, 84, 4), dtype=np.uint8)
        return self.image, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """The same image again."""
        self.t += 1
        return self.image, float(action == 0), self.t == 100, False, {}


class Clock(BaseCallback):
    """When each rollout began."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.times.append(time.perf_counter())


def learn(name: str, subject: str) -> list[float]:
    """Seconds of rollouts with their updates, after a warm-up."""
    env_id, n_envs, policy, kwargs = SUBJECTS[subject]
    env = make_vec_env(Images if env_id == "images" else env_id, n_envs, seed=0)
    model, clock = CLASSES[name](policy, env, seed=0, device="cpu", **kwargs), Clock()
    model.learn(env.num_envs * model.n_steps * (ROLLOUTS + 2) * distributed.size(), callback=clock)
    return list(np.diff(clock.times)[1:])


def work(rank: int, port: int, name: str, subject: str, results: Any) -> None:
    """One of two processes: seconds of a rollout, sums of a rollout and their bytes, latency and bandwidth."""
    become(rank, 2, port)
    th.set_num_threads(1)
    distributed.join()
    sums, all_reduce = [], th.distributed.all_reduce

    def counting(x: th.Tensor, *args: Any, **kwargs: Any) -> Any:
        sums.append(x.numel() * x.element_size())
        return all_reduce(x, *args, **kwargs)

    th.distributed.all_reduce = counting
    seconds = learn(name, subject)
    th.distributed.all_reduce = all_reduce
    timings = []
    for size in (1, 4_000_000):
        x, times = th.zeros(size), []
        for _ in range(60):
            start = time.perf_counter()
            all_reduce(x)
            times.append(time.perf_counter() - start)
        timings.append(float(np.median(times)))
    if rank == 0:
        n = len(seconds) + 2
        results.put((float(np.median(seconds)), len(sums) / n, sum(sums) / n, timings[0], 16e6 / (timings[1] - timings[0])))
    results.close()
    results.join_thread()


def measure() -> None:
    """Write a row a class and subject."""
    context = multiprocessing.get_context("spawn")
    rows: list[dict[str, Any]] = []
    for subject in SUBJECTS:
        for name in CLASSES:
            th.set_num_threads(1)
            alone = learn(name, subject)
            port = find_port()
            results = context.Queue()
            processes = [context.Process(target=work, args=(rank, port, name, subject, results)) for rank in range(2)]
            for process in processes:
                process.start()
            two, n_sums, n_bytes, latency, bandwidth = results.get()
            for process in processes:
                process.join()
            row: dict[str, Any] = dict(algorithm=name, subject=subject, seconds=np.median(alone), deviation=np.std(alone))
            rows.append(row | dict(seconds_of_two=two, sums=n_sums, bytes=n_bytes, latency=latency, bandwidth=bandwidth))
            with FILE.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
            print(name, subject, flush=True)


def predict(row: dict[str, float], size: int) -> float:
    """Seconds of a rollout with its update by so many processes."""
    if size == 1:
        return row["seconds"]
    waiting = row["deviation"] * math.sqrt(2.0 * math.log(size))
    sums = row["sums"] * row["latency"] * math.ceil(math.log2(size))
    return row["seconds"] + waiting + sums + 2.0 * (size - 1) / size * row["bytes"] / row["bandwidth"]


def print_table() -> None:
    """Efficiency against the number of processes: of K, as many as count."""
    print(
        "| | | ms a rollout | sums | MB | of two: predicted, measured |",
        " | ".join(f"K = {k}" for k in SIZES[1:]),
        "| half at |",
    )
    print("|" + "---|" * (7 + len(SIZES) - 1))
    for text in csv.DictReader(FILE.open()):
        row = {key: float(value) for key, value in text.items() if key not in ("algorithm", "subject")}
        efficiencies = [row["seconds"] / predict(row, size) for size in SIZES[1:]]
        half = next((2**i for i in range(1, 24) if row["seconds"] / predict(row, 2**i) < 0.5), None)
        measured = row["seconds"] / row["seconds_of_two"]
        cells = [
            text["subject"],
            text["algorithm"],
            f"{1e3 * row['seconds']:.0f}",
            f"{row['sums']:.0f}",
            f"{row['bytes'] / 1e6:.1f}",
        ]
        cells += [f"{efficiencies[0]:.2f}, {measured:.2f}", *(f"{x:.2f}" for x in efficiencies), str(half or "> 2²³")]
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of what was measured")
    if not parser.parse_args().table:
        measure()
    print_table()
