"""CartPole without its velocities: one observation does not tell where the pole is going, a memory does.

python examples/09_memory.py [steps]
"""

import sys

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_pg import VanillaPG


class Positions(gym.ObservationWrapper):
    """Position of the cart and angle of the pole, without the rates at which they change."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[::2]


def make() -> gym.Env:
    return Positions(gym.make("CartPole-v1"))


steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
for policy, policy_kwargs in [("MlpPolicy", {}), ("MlpLstmPolicy", {"lstm_hidden_size": 64})]:
    model = VanillaPG(policy, make_vec_env(make, 8, seed=0), n_steps=128, policy_kwargs=policy_kwargs, seed=0, device="cpu")
    model.learn(steps)
    # SB3's evaluation carries the memory from step to step
    mean, std = evaluate_policy(model, make_vec_env(make, 4, seed=100), n_eval_episodes=20)
    print(f"{policy:14s} return {mean:5.1f} ± {std:.1f}")
