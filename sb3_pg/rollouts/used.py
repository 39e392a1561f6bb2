"""Whether somebody else has played in the training environments meanwhile."""

from operator import is_
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_pg.policies.steps import map_obs

# What SB3's vector environments and wrappers keep of their last step or reset
_INFOS = ("reset_infos", "buf_infos")
_ARRAYS = ("buf_obs", "old_obs", "episode_lengths")


class Footprint:
    """Where the environments were left, by what SB3's vector environments and wrappers keep of a step or a reset.

    A vector environment of the user's own takes part if it sets SB3's ``reset_infos`` to new dictionaries at every reset, or
    under ``VecNormalize`` and ``VecMonitor``.

    :param env: the environments
    :param observations: those that the environments have returned last
    """

    def __init__(self, env: VecEnv, observations: Any):
        self.env, self.observations = env, observations
        layers = [env]
        while isinstance(env, VecEnvWrapper):
            env = env.venv
            layers.append(env)
        self._infos = [(layer, name) for layer in layers for name in _INFOS if name in vars(layer)]
        self._arrays = [(layer, name) for layer in layers for name in _ARRAYS if name in vars(layer)]
        self._infos_then: list[Any] = []
        self._arrays_then = [map_obs(np.array, vars(layer)[name]) for layer, name in self._arrays]
        self.note()

    def note(self) -> None:
        """This is where they are, for :meth:`has_moved`."""
        self._infos_then = self._find_infos()

    def has_moved(self) -> bool:
        """Whether they have been stepped or reset since: at a glance, which environments that keep their infos escape."""
        return not all(map(is_, self._infos_then, self._find_infos()))

    def is_left(self) -> bool:
        """Whether they have been stepped or reset since."""
        return self.has_moved() or not all(
            _is_equal(then, vars(layer)[name]) for then, (layer, name) in zip(self._arrays_then, self._arrays, strict=True)
        )

    def _find_infos(self) -> list[Any]:
        return [info for layer, name in self._infos for info in vars(layer)[name]]


def _is_equal(x: Any, y: Any) -> bool:
    if isinstance(x, dict):
        return all(_is_equal(x[key], y[key]) for key in x)
    return np.array_equal(x, y, equal_nan=np.asarray(x).dtype.kind == "f")
