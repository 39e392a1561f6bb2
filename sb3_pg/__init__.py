"""The policy gradient theorem's own algorithms for Stable-Baselines3."""

from sb3_pg.algorithms.natural_pg import NaturalPG
from sb3_pg.algorithms.reinforce_baseline import ReinforceBaseline
from sb3_pg.algorithms.vanilla_pg import VanillaPG

__version__ = "0.1.0"

__all__ = ["NaturalPG", "ReinforceBaseline", "VanillaPG", "__version__"]
