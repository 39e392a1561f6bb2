"""What must not get past the environments: values that spoil normalisers, and workers that have died."""

from math import isfinite
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, unwrap_vec_normalize

from sb3_pg.saving import moments_of_obs, normalizer_state, set_statistics

# Rewards whose squares float32 does not hold
_LARGEST_REWARD = 1e18
# Seconds between two looks at whether a silent worker lives
_PATIENCE = 1.0


class NormalizerGuard:
    """Keeps the statistics of ``VecNormalize`` as they were, if an environment returns what spoils them.

    :param env: the environments, with or without ``VecNormalize``
    """

    def __init__(self, env: VecEnv):
        normalize = unwrap_vec_normalize(env)
        self._normalize = normalize if normalize is not None and normalize.training else None
        self._before = None if self._normalize is None else normalizer_state(self._normalize)
        self._of_observations = [] if self._normalize is None else list(moments_of_obs(self._normalize).values())

    def check(self, step: int) -> None:
        """Look at what the environments have just returned.

        :param step: of the rollout
        :raises ValueError: naming the environment; the statistics are then those of the start of the rollout
        """
        normalize = self._normalize
        if normalize is None:
            return
        is_bounded = float(np.abs(normalize.old_reward).max()) <= _LARGEST_REWARD  # not where it is NaN
        if is_bounded and all(isfinite(rms.mean.sum()) for rms in self._of_observations):
            return
        assert self._before is not None
        set_statistics(normalize, self._before)
        if not is_bounded:
            env = int(np.argmax(~(np.abs(normalize.old_reward) <= _LARGEST_REWARD)))
            what = f"Found a reward of {normalize.old_reward[env]:g} in"
        else:
            old: Any = normalize.old_obs
            parts = [old[key] for key in normalize.obs_rms] if isinstance(old, dict) else [old]  # type: ignore[attr-defined]
            bad = np.any([~np.isfinite(part.reshape(len(part), -1)).all(axis=1) for part in parts], axis=0)
            env = int(bad.argmax())
            what = "Found NaN or infinity in the observation of"
        raise ValueError(
            f"{what} environment {env}, step {step} of the rollout, which VecNormalize cannot take in; its statistics are "
            "those of the start of the rollout, and no update was made: the model can be saved."
        )


def watch_workers(env: VecEnv) -> None:
    """Have a ``SubprocVecEnv`` say so when one of its processes has died, where it would wait for ever.

    :param env: the environments, under any wrappers
    """
    base: Any = env.unwrapped
    if isinstance(base, SubprocVecEnv) and not isinstance(base.remotes[0], _Remote):
        base.remotes = tuple(_Remote(base, i) for i in range(len(base.remotes)))  # type: ignore[assignment]


class _Remote:
    """The connection to a process that may die."""

    def __init__(self, env: SubprocVecEnv, number: int):
        self._env, self._number = env, number
        self._remote, self._process = env.remotes[number], env.processes[number]

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_remote"], name)

    def recv(self) -> Any:
        try:
            # Forked processes hold each other's ends open: the death of one is not seen at the connection
            while not self._remote.poll(_PATIENCE):
                if not self._process.is_alive():
                    raise EOFError
            return self._remote.recv()
        except (EOFError, ConnectionError) as error:
            raise self._give_up() from error

    def send(self, message: Any) -> None:
        try:
            self._remote.send(message)
        except ConnectionError as error:
            if message[0] != "close":
                raise self._give_up() from error

    def _give_up(self) -> RuntimeError:
        self._process.join(_PATIENCE)
        for process in self._env.processes:
            process.kill()
        self._env.waiting = False  # close() would wait for answers
        return RuntimeError(
            f"The process of environment {self._number} has died (exit code {self._process.exitcode}); the other processes "
            "are ended. What it printed, and the memory of the machine, may say why. The model can be saved."
        )
