"""Train VanillaPG on CartPole, show its return before and after, save it and load it again.

python examples/01_quickstart.py [steps]
"""

import sys
import tempfile
from pathlib import Path

import gymnasium as gym
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_pg import VanillaPG

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
eval_env = Monitor(gym.make("CartPole-v1"))

model = VanillaPG("MlpPolicy", "CartPole-v1", seed=0)
before, _ = evaluate_policy(model, eval_env, n_eval_episodes=20, deterministic=False)
model.learn(steps, progress_bar=True)
after, spread = evaluate_policy(model, eval_env, n_eval_episodes=20, deterministic=False)
print(f"Mean return of 20 episodes: {before:.1f} before, {after:.1f} ± {spread:.1f} after {steps} steps")

with tempfile.TemporaryDirectory() as folder:
    model.save(Path(folder) / "cartpole")
    loaded = VanillaPG.load(Path(folder) / "cartpole")
obs, _ = eval_env.reset()
print("The loaded agent's first action:", loaded.predict(obs, deterministic=True)[0])
print("Next:  source .venv/bin/activate && sb3-pg train --algo vpg --env CartPole-v1    (README.md, docs/guides)")
