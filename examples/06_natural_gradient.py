"""The same gradient with and without the Fisher matrix, at the same number of steps.

python examples/06_natural_gradient.py [steps] [seeds]
"""

import sys

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_pg import NaturalPG, VanillaPG

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
n_seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
common = dict(n_steps=128, gamma=0.95, device="cpu")
for cls, own in [(VanillaPG, {}), (NaturalPG, {"target_kl": 0.02})]:
    returns = []
    for seed in range(n_seeds):
        model = cls("MlpPolicy", make_vec_env("Pendulum-v1", 8, seed=seed), seed=seed, **common, **own).learn(steps)
        returns.append(evaluate_policy(model, make_vec_env("Pendulum-v1", seed=seed + 100), n_eval_episodes=10)[0])
        kl = model.logger.name_to_value["train/approx_kl"]
        print(f"{cls.__name__:10s} seed {seed}: return {returns[-1]:7.1f}, KL of the last step {kl:.4f}")
