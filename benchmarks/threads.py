"""What a second thread and torch.compile make of a training with 1,024 environments: steps a second, five turns each.

On an idle machine with two cores: `python benchmarks/threads.py`.
"""

import time
from statistics import median

import gymnasium as gym
import torch as th

from sb3_pg import VanillaPG

N_ENVS, N_STEPS, N_ROLLOUTS, N_TURNS = 1024, 16, 10, 5
# Threads, and whether the networks are compiled
VARIANTS = {"one thread": (1, False), "two threads": (2, False), "one thread, compiled": (1, True)}


def make(compiled: bool) -> VanillaPG:
    """A model with its environments, past its first rollout."""
    env = gym.make_vec("CartPole-v1", N_ENVS, vectorization_mode="vector_entry_point")
    model = VanillaPG("MlpPolicy", env, n_steps=N_STEPS, seed=0, device="cpu")  # type: ignore[arg-type]
    if compiled:
        extractor = model.policy.mlp_extractor
        extractor.forward_actor = th.compile(extractor.forward_actor)  # type: ignore[method-assign]
        extractor.forward_critic = th.compile(extractor.forward_critic)  # type: ignore[method-assign]
    start = time.perf_counter()
    model.learn(2 * N_ENVS * N_STEPS)
    print(
        f"{'compiled' if compiled else 'as it is'}: the first two rollouts took {time.perf_counter() - start:.1f} s",
        flush=True,
    )
    return model


models = {name: make(compiled) for name, (_, compiled) in VARIANTS.items()}
speeds: dict[str, list[float]] = {name: [] for name in VARIANTS}
for _ in range(N_TURNS):
    for name, (n_threads, _) in VARIANTS.items():
        th.set_num_threads(n_threads)
        start = time.perf_counter()
        models[name].learn(N_ROLLOUTS * N_ENVS * N_STEPS, reset_num_timesteps=False)
        speeds[name].append(N_ROLLOUTS * N_ENVS * N_STEPS / (time.perf_counter() - start))
for name, own in speeds.items():
    ratios = sorted(a / b for a, b in zip(own, speeds["one thread"], strict=True))
    print(f"| {name} | {median(own):,.0f} | {median(ratios):.2f} [{ratios[0]:.2f}–{ratios[-1]:.2f}] |")
