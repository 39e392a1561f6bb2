"""Print where VanillaPG's training time goes, in microseconds a vector step. `python benchmarks/where_time_goes.py`."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_pg import VanillaPG

ENVS = [("CartPole-v1", 1), ("CartPole-v1", 8), ("Pendulum-v1", 8), ("HalfCheetah-v5", 8)]
seconds: defaultdict[str, float] = defaultdict(float)


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its running time added to ``seconds[name]``."""

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - start

    return call


def profile(env_id: str, n_envs: int, n_rollouts: int = 60) -> None:
    """Train for a number of rollouts and print a row of the table."""
    env: Any = make_vec_env(env_id, n_envs, seed=0)
    model: Any = VanillaPG("MlpPolicy", env, seed=0, device="cpu")
    model.learn(3 * model.n_steps * n_envs)  # warm up
    env.step = timed("environment", env.step)
    model.rollout_buffer.add = timed("buffer", model.rollout_buffer.add)
    model._evaluate_rollout = timed("values, log-probabilities, weights", model._evaluate_rollout)
    model._update_policy = timed("policy step", model._update_policy)
    model._update_critic = timed("critic", model._update_critic)
    make_sampler = model.kind.make_sampler
    model.kind.make_sampler = lambda *args, **kwargs: timed("actions", make_sampler(*args, **kwargs))
    seconds.clear()
    start = time.perf_counter()
    model.learn(n_rollouts * model.n_steps * n_envs)
    total = time.perf_counter() - start
    rest = total - sum(seconds.values())
    names = ["environment", "actions", "buffer", "values, log-probabilities, weights", "policy step", "critic"]
    cells = [f"{1e6 * x / n_rollouts / model.n_steps:.0f}" for x in [*(seconds[name] for name in names), rest, total]]
    print(f"| {env_id} × {n_envs} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    th.set_num_threads(1)
    print("| | environment | actions | buffer | values, log-probabilities, weights | policy step | critic | rest | all |")
    print("|---|---|---|---|---|---|---|---|---|")
    for pair in ENVS:
        profile(*pair)
