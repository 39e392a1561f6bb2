"""The policy gradient theorem's own algorithms for Stable-Baselines3."""

from sb3_pg.reinforce_baseline import ReinforceBaseline
from sb3_pg.vanilla_pg import VanillaPG

__version__ = "0.1.0"

__all__ = ["ReinforceBaseline", "VanillaPG", "__version__"]
