"""Registers an environment that has to be told its length, as ``--gym-packages toy_env`` imports it."""

from typing import Any

import gymnasium as gym
import numpy as np


class ToyEnv(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, *, length: int, render_mode: str | None = None):
        self.length, self.render_mode, self.t = length, render_mode, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.low, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.observation_space.low, 1.0, self.t == self.length, False, {}

    def render(self) -> np.ndarray:
        return np.zeros((64, 64, 3), np.uint8)


gym.register("Toy-v0", entry_point=ToyEnv)
