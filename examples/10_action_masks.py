"""Actions that are not always legal: the policy is shown which are, and gives the others no probability.

python examples/10_action_masks.py [steps]
"""

import sys
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env

from sb3_pg import VanillaPG
from sb3_pg.evaluation import evaluate_policy


class Nim(gym.Env):
    """Take 1 to 3 of the stones in turn with an opponent who plays at random; whoever takes the last one wins."""

    observation_space = gym.spaces.Discrete(16)
    action_space = gym.spaces.Discrete(3)

    def action_masks(self) -> np.ndarray:
        return np.arange(1, 4) <= self.stones

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.stones = int(self.np_random.integers(4, 16))
        return self.stones, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        assert action < self.stones
        self.stones -= int(action) + 1
        if self.stones == 0:
            return 0, 1.0, True, False, {}
        self.stones -= int(self.np_random.integers(1, min(3, self.stones) + 1))
        return self.stones, -1.0 if self.stones == 0 else 0.0, self.stones == 0, False, {}


steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
model = VanillaPG("MaskableMlpPolicy", make_vec_env(Nim, 8, seed=0), n_steps=64, seed=0, device="cpu")
for done in (0, steps):
    model.learn(max(done, 1))
    mean, _ = evaluate_policy(model, make_vec_env(Nim, 4, seed=100), n_eval_episodes=400)  # with the masks
    print(f"return after {done:6d} steps: {mean:5.2f} (1: every game is won)")
