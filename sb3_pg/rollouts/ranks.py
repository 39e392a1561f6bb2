"""What several processes have played, put together: counts, episodes, and the statistics of ``VecNormalize``."""

from collections import deque
from itertools import chain, zip_longest
from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_pg import distributed
from sb3_pg.saving import moments_of_obs

_MISSING = object()


class Shared:
    """A rollout of several ranks from its beginning, where counts and statistics are the same on all of them.

    Until it ends a rank counts its own steps and episodes; steps of a cut rollout times the number of ranks, which all take
    as many.

    :param model: the algorithm that is to play
    :param normalizer: moments of ``VecNormalize`` that are the same on all ranks; None without it
    """

    def __init__(self, model: Any, normalizer: "Moments | None"):
        self._model, self._normalizer = model, normalizer
        self._num_timesteps, self._episodes = model.num_timesteps, model.ep_info_buffer
        self._successes = model.ep_success_buffer
        #: What a step of this rank is counted as
        self.count = 1 if model.whole_episodes else distributed.size()
        if distributed.size() > 1:
            model.ep_info_buffer = deque(maxlen=self._episodes.maxlen)
            model.ep_success_buffer = deque(maxlen=self._successes.maxlen)

    def end(self, stopped: bool) -> bool:
        """Put together what the ranks have played.

        :param stopped: whether a callback of this rank has stopped training
        :return: whether one of any rank has
        """
        if distributed.size() == 1:
            return stopped
        model = self._model
        n_own = (model.num_timesteps - self._num_timesteps) // self.count
        own = [(stopped, n_own, list(model.ep_info_buffer), list(model.ep_success_buffer))]
        has_stopped, n, episodes, successes = zip(*chain(*distributed.gather_items(own)), strict=True)
        model.num_timesteps = self._num_timesteps + sum(n)
        self._episodes.extend(_in_turn(episodes))
        self._successes.extend(_in_turn(successes))
        model.ep_info_buffer, model.ep_success_buffer = self._episodes, self._successes
        if self._normalizer is not None:
            self._normalizer.merge()
        return any(has_stopped)


def _in_turn(lists: Any) -> list[Any]:
    """One of each rank, then the next of each: the last hundred are of all ranks."""
    return [x for row in zip_longest(*lists, fillvalue=_MISSING) for x in row if x is not _MISSING]


class Moments:
    """The moments of ``VecNormalize``, the same on all ranks at the beginning of every rollout.

    :param env: the environments, under ``VecNormalize``
    """

    def __init__(self, env: VecNormalize):
        self._all = [*moments_of_obs(env).values(), env.ret_rms]
        self.begin()

    def begin(self) -> None:
        """Begin with those of rank 0."""
        for rms in self._all:
            rms.mean, rms.var, rms.count = distributed.of_first((rms.mean, rms.var, rms.count))
        self._remember()

    def _remember(self) -> None:
        self._before = [(np.array(rms.mean), np.array(rms.var), float(rms.count)) for rms in self._all]

    def merge(self) -> None:
        """Add what each rank has seen since the last time."""
        for rms, (mean, var, count) in zip(self._all, self._before, strict=True):
            _merge(rms, mean, var, count)
        self._remember()


def _merge(rms: RunningMeanStd, mean: np.ndarray, var: np.ndarray, count: float) -> None:
    # Sums over what is new, of deviations from the old mean
    shift = rms.mean - mean
    second = rms.count * (rms.var + shift**2) - count * var
    n = np.full_like(shift, float(rms.count) - count)
    n, first, second = distributed.total(np.stack([n, rms.count * shift, second]))
    rms.count = count + float(n.flat[0])
    rms.mean = mean + first / rms.count
    rms.var = (count * var + second) / rms.count - (first / rms.count) ** 2


def find_moments(env: VecEnv) -> Moments | None:
    """Moments of the environments' ``VecNormalize`` that several ranks have to merge; None if there are none."""
    normalize = unwrap_vec_normalize(env)
    return Moments(normalize) if normalize is not None and normalize.training and distributed.size() > 1 else None
