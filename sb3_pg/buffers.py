"""The buffers under the name that scripts and models saved by 0.1.0 know them by."""

from sb3_pg.rollouts.buffers import EpisodeDictRolloutBuffer, EpisodeRolloutBuffer

__all__ = ["EpisodeDictRolloutBuffer", "EpisodeRolloutBuffer"]
