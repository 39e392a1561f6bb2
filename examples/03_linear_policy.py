"""The textbook's policy on CartPole: π(right∣s) = 1 / (1 + exp(−(θ·s + b))), learned by REINFORCE.

python examples/03_linear_policy.py [steps]
"""

import sys

import gymnasium as gym
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_pg import VanillaPG

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 60_000
model = VanillaPG(
    "MlpPolicy",
    "CartPole-v1",
    weights="reward_to_go",
    n_episodes=8,
    learning_rate=0.05,
    policy_kwargs=dict(net_arch=[]),  # no hidden layer: the logits are linear in the observation
    seed=0,
).learn(steps)

# A softmax over two linear logits is the logistic function of their difference
net = model.policy.action_net
theta = (net.weight[1] - net.weight[0]).tolist()
bias = (net.bias[1] - net.bias[0]).item()
for name, weight in zip(["cart position", "cart velocity", "pole angle", "pole angular velocity"], theta, strict=True):
    print(f"θ[{name}] = {weight:+.2f}")
print(f"b = {bias:+.2f}")
mean, std = evaluate_policy(model, Monitor(gym.make("CartPole-v1")), n_eval_episodes=20)
print(f"Mean return of 20 episodes: {mean:.1f} ± {std:.1f}")
