"""Memory of a training on images of many environments: peak of the process over the size of a rollout's observations.

python benchmarks/images.py 1024 1; python benchmarks/images.py 64 50      environments, rollouts of 128 steps each
"""

import resource
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_pg import VanillaPG

N_STEPS = 128


class Images(gym.vector.VectorEnv):
    """The same noise at every step, 84 × 84 × 4 bytes an environment: what is kept is what matters."""

    def __init__(self, num_envs: int):
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
        self.single_observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        self.single_action_space = gym.spaces.Discrete(4)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.images = np.random.default_rng(0).integers(0, 256, self.observation_space.shape, np.uint8)  # type: ignore[arg-type]

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin episodes that do not end."""
        return self.images, {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Whatever the actions."""
        nothing = np.zeros(self.num_envs, bool)
        return self.images, np.ones(self.num_envs), nothing, nothing, {}


class Tiny(BaseFeaturesExtractor):
    """One convolution, to 16 numbers."""

    def __init__(self, observation_space: gym.spaces.Box):
        super().__init__(observation_space, 16)
        self.convolution = th.nn.Conv2d(4, 1, kernel_size=21, stride=21)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Features of ``(n, 4, 84, 84)``."""
        return self.convolution(observations).flatten(1)


def peak() -> float:
    """GiB, of the process until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Report(BaseCallback):
    """Prints the peak after the update of every tenth rollout, and of the first."""

    def __init__(self, before: float, size: float):
        super().__init__()
        self.before, self.size, self.n_rollouts = before, size, 0

    def report(self) -> None:
        """Print a line."""
        if self.n_rollouts == 1 or self.n_rollouts % 10 == 0:
            grown = peak() - self.before
            print(
                f"{self.n_rollouts} rollouts: {grown:.2f} GiB beside the program, {grown / self.size:.2f} of the observations"
            )

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.n_rollouts > 0:
            self.report()
        self.n_rollouts += 1

    def _on_training_end(self) -> None:
        self.report()


n_envs, n_rollouts = int(sys.argv[1]), int(sys.argv[2])
th.set_num_threads(1)
before = peak()
policy_kwargs = dict(features_extractor_class=Tiny, net_arch=[8])
model = VanillaPG("CnnPolicy", Images(n_envs), n_steps=N_STEPS, policy_kwargs=policy_kwargs, seed=0, device="cpu")  # type: ignore[arg-type]
model.learn(n_rollouts * N_STEPS * n_envs, callback=Report(before, n_envs * N_STEPS * 84 * 84 * 4 / 2**30))
