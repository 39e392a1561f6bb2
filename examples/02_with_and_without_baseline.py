"""REINFORCE with and without a baseline: the same episodes a rollout, a different variance.

python examples/02_with_and_without_baseline.py [steps] [seeds]
"""

import sys

import numpy as np

from sb3_pg import ReinforceBaseline, VanillaPG

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 40_000
n_seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
# Four episodes a rollout; weights not standardised, so that the baseline is all there is against the variance
common = dict(n_episodes=4, normalize_advantage=False, max_grad_norm=None, device="cpu")
contenders = {
    "no baseline": (VanillaPG, dict(weights="reward_to_go")),
    "running mean": (ReinforceBaseline, dict(baseline="running_mean")),
    "leave one out": (ReinforceBaseline, dict(baseline="leave_one_out")),
    "optimal constant": (ReinforceBaseline, dict(baseline="optimal")),
    "critic": (ReinforceBaseline, dict(baseline="value")),
}
for name, (cls, kwargs) in contenders.items():
    returns = []
    for seed in range(n_seeds):
        model = cls("MlpPolicy", "CartPole-v1", seed=seed, **common, **kwargs).learn(steps)
        returns.append(np.mean([episode["r"] for episode in model.ep_info_buffer]))
    print(f"{name:17s} mean return of the last 100 episodes: {np.mean(returns):6.1f} (seeds: {np.round(returns, 1)})")
