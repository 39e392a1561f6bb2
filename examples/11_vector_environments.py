"""CartPole, 64 at a time: Gymnasium's vector environments are environments like all others.

python examples/11_vector_environments.py [steps]
"""

import sys
import time

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_pg import VanillaPG

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
for name, env, n_steps in [
    ("DummyVecEnv × 8", make_vec_env("CartPole-v1", 8, seed=0), 256),
    ("native × 64", gym.make_vec("CartPole-v1", num_envs=64, vectorization_mode="vector_entry_point"), 32),
]:
    model = VanillaPG("MlpPolicy", env, n_steps=n_steps, seed=0, device="cpu")
    start = time.perf_counter()
    model.learn(steps)
    seconds = time.perf_counter() - start
    mean, std = evaluate_policy(model, make_vec_env("CartPole-v1", 4, seed=100), n_eval_episodes=20)
    print(f"{name:15s} return {mean:5.1f} ± {std:.1f} after {seconds:.0f} s, {model.num_timesteps / seconds:,.0f} steps/s")
