"""Benchmarks against the peers. ``sb3-pg benchmark --help``."""

#: The algorithms compared, by their names in rl-zoo3
LABELS = {"vpg": "VanillaPG", "reinforce": "ReinforceBaseline", "npg": "NaturalPG", "a2c": "A2C", "ppo": "PPO", "trpo": "TRPO"}
#: Environment steps and steps between two evaluations, the same for all algorithms
BUDGETS = {
    "CartPole-v1": (300_000, 10_000),
    "Acrobot-v1": (500_000, 25_000),
    "Pendulum-v1": (500_000, 25_000),
    "MountainCarContinuous-v0": (100_000, 5_000),
    "HalfCheetah-v5": (1_000_000, 50_000),
    "Hopper-v5": (1_000_000, 50_000),
}
