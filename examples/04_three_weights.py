"""The three weights side by side: learning curves on CartPole, mean and 95% confidence band over seeds.

python examples/04_three_weights.py [steps] [seeds] [figure]
"""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from stable_baselines3.common.env_util import make_vec_env

from sb3_pg import VanillaPG

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 60_000
n_seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
figure = sys.argv[3] if len(sys.argv) > 3 else "three_weights.png"
grid = np.linspace(0, steps, 100)

for weights in ("return", "reward_to_go", "gae"):
    curves = []
    for seed in range(n_seeds):
        env = make_vec_env("CartPole-v1", seed=seed)
        VanillaPG("MlpPolicy", env, weights=weights, seed=seed, device="cpu").learn(steps)
        lengths, returns = env.env_method("get_episode_lengths")[0], env.env_method("get_episode_rewards")[0]
        smooth = np.convolve(returns, np.ones(20) / 20, mode="valid")
        curves.append(np.interp(grid, np.cumsum(lengths)[-len(smooth) :], smooth))
    mean, error = np.mean(curves, axis=0), 1.96 * np.std(curves, axis=0, ddof=1) / np.sqrt(n_seeds)
    (line,) = plt.plot(grid, mean, label=f'weights="{weights}"')
    plt.fill_between(grid, mean - error, mean + error, color=line.get_color(), alpha=0.2)
    print(f"{weights:13s} return at the end: {mean[-1]:.0f} ± {error[-1]:.0f}")

plt.xlabel("environment steps")
plt.ylabel("return of an episode (mean of 20)")
plt.title(f"VanillaPG on CartPole-v1, {n_seeds} seeds")
plt.legend()
plt.savefig(figure, dpi=120)
