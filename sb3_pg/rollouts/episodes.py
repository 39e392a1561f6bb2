"""Which episodes a rollout of parallel environments uses, settled before they are played."""

import numpy as np


class EpisodeSelection:
    """Tells, step by step, which environments play an episode that counts and when the rollout is over.

    Three kinds of rollout, all starting with every environment in use:

    - *cut* (``whole_episodes=False``): ``n_steps`` steps, whatever episodes they belong to;
    - *window*: every episode that begins within the first ``n_steps`` steps counts and is played to its end;
    - *quota* (``n_episodes`` given): the first ``n_episodes`` episodes of each environment count.

    None of them lets the length of an episode decide whether it counts. Taking the first N episodes to finish does, and so
    does dropping those that straddle the end of a window: both over-sample short episodes.

    :param n_envs: number of parallel environments
    :param n_steps: steps an environment, of a cut rollout or a window
    :param n_episodes: whole episodes an environment; overrides ``n_steps``
    :param whole_episodes: False for a cut rollout
    :param max_episode_steps: steps within which an episode that counts has to end; not used by cut rollouts
    """

    def __init__(self, n_envs: int, n_steps: int, n_episodes: int | None, whole_episodes: bool, max_episode_steps: int):
        self.n_steps = n_steps
        self.n_episodes = n_episodes
        self.whole_episodes = whole_episodes
        self.max_episode_steps = max_episode_steps
        #: Rows of the rollout so far, and those of each environment that were resets and no steps
        self.steps = 0
        self._n_resets: np.ndarray | int = 0
        #: Whether the current episode of each environment counts, ``(n_envs,)``
        self.in_use = np.ones(n_envs, dtype=bool)
        self.all_in_use = True
        self._finished = np.zeros(n_envs, dtype=np.int64)
        self._episode_start = np.zeros(n_envs, dtype=np.int64)
        self._deadline = max_episode_steps

    def step(self, dones: np.ndarray, was_reset: np.ndarray | None = None) -> bool:
        """Take note of a step of every environment.

        :param dones: whether the step ended an episode, ``(n_envs,)``
        :param was_reset: where it was a reset and no step, ``(n_envs,)``; None for nowhere. Windows count steps alone, or
            environments that spend rows on resets would play less than their share
        :return: whether the rollout goes on
        :raises RuntimeError: if an episode that counts has gone on for ``max_episode_steps``
        """
        self.steps += 1
        if not self.whole_episodes:
            return self.steps < self.n_steps
        if was_reset is not None:
            self._n_resets = self._n_resets + was_reset
        if np.count_nonzero(dones):
            self._finished += dones
            self._episode_start[dones] = self.steps
            if self.n_episodes is not None:
                self.in_use = self._finished < self.n_episodes
            elif self.steps >= self.n_steps:
                self.in_use = self.in_use & ~(dones & (self.steps - self._n_resets >= self.n_steps))
            self.all_in_use = bool(self.in_use.all())
            if not self.in_use.any():
                return False
        if self.steps >= self._deadline:
            self._check_deadline()
        return True

    def _check_deadline(self) -> None:
        oldest = np.where(self.in_use, self._episode_start, self.steps).argmin()
        self._deadline = int(self._episode_start[oldest]) + self.max_episode_steps
        if self.steps >= self._deadline:
            raise RuntimeError(
                f"The episode of environment {oldest} did not end within {self.max_episode_steps} steps, and this estimator "
                "needs whole episodes. Give the environment a time limit (gymnasium.wrappers.TimeLimit), or use VanillaPG "
                'with weights="gae" and n_episodes=None, which learns from unfinished episodes. (If episodes are that long, '
                "raise MAX_EPISODE_STEPS of the class.)"
            )
