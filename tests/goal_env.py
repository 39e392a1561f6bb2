"""Registers an environment with Dict observations, as ``--gym-packages goal_env`` imports it."""

from typing import Any

import gymnasium as gym
import numpy as np


class GoalEnv(gym.Env):
    observation_space = gym.spaces.Dict({"x": gym.spaces.Box(-1, 1, (2,)), "goal": gym.spaces.Discrete(2)})
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.goal, self.t = int(self.np_random.integers(2)), 0
        return self._obs(), {}

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self._obs(), float(action == self.goal), self.t == 10, False, {}

    def _obs(self) -> dict[str, Any]:
        return {"x": self.np_random.uniform(-1, 1, 2).astype(np.float32), "goal": self.goal}


gym.register("Goal-v0", entry_point=GoalEnv)
