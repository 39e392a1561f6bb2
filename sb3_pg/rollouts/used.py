"""Whether somebody else has played in the training environments meanwhile."""

from collections.abc import Callable, Iterator
from operator import is_
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg.policies.steps import map_obs
from sb3_pg.vec_env import find_layers

# What SB3's vector environments and wrappers keep of their last step or reset
_INFOS = ("reset_infos", "buf_infos")
_NO_INFOS = (None,)
_ARRAYS = ("buf_obs", "old_obs", "episode_lengths")
# What wrappers of single environments count, which another vector environment may hold as well
_COUNTS = ("_elapsed_steps", "total_steps")


class Footprint:
    """Where the environments were left, by what SB3's vector environments and wrappers keep of a step or a reset.

    A vector environment of the user's own takes part if it sets SB3's ``reset_infos`` to new dictionaries at every reset, or
    under ``VecNormalize`` and ``VecMonitor``.

    :param env: the environments
    :param observations: those that the environments have returned last
    """

    def __init__(self, env: VecEnv, observations: Any):
        self.env, self.observations = env, observations
        layers = find_layers(env)
        self._infos = [(layer, name) for layer in layers for name in _INFOS if name in vars(layer)]
        self._arrays = [(layer, name) for layer in layers for name in _ARRAYS if name in vars(layer)]
        self._base = layers[-1]
        self._infos_then, self._counts_then = self._find_infos(), self._find_counts()
        self._arrays_then = [map_obs(np.array, vars(layer)[name]) for layer, name in self._arrays]

    def is_left(self) -> bool:
        """Whether they have been stepped or reset since."""
        return not (
            all(map(is_, self._infos_then, self._find_infos()))
            and self._counts_then == self._find_counts()
            and all(
                _is_equal(then, vars(layer)[name]) for then, (layer, name) in zip(self._arrays_then, self._arrays, strict=True)
            )
        )

    def _find_infos(self) -> list[Any]:
        return [info for layer, name in self._infos for info in vars(layer)[name]]

    def _find_counts(self) -> list[Any]:
        layers = (vars(layer) for env in vars(self._base).get("envs", ()) for layer in _wrappers(env))
        return [layer[name] for layer in layers for name in _COUNTS if name in layer]


def _wrappers(env: Any) -> Iterator[gym.Wrapper]:
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


def glance(env: VecEnv) -> Callable[[], tuple[Any, Any]]:
    """Objects that are others when the environments have been stepped or reset, for a look at every step."""
    infos = vars(env.unwrapped)
    return lambda: ((infos.get("reset_infos") or _NO_INFOS)[0], (infos.get("buf_infos") or _NO_INFOS)[0])


def _is_equal(x: Any, y: Any) -> bool:
    if isinstance(x, dict):
        return all(_is_equal(x[key], y[key]) for key in x)
    return np.array_equal(x, y, equal_nan=np.asarray(x).dtype.kind == "f")
