"""Evaluation of every kind of policy, with SB3's functions: memory and action masks included.

SB3's ``evaluate_policy`` and ``EvalCallback`` carry a policy's memory and know no masks; sb3-contrib's know masks and drop the
memory. These here have SB3's arguments and serve both.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from stable_baselines3.common import callbacks, evaluation
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

_env: ContextVar[VecEnv | None] = ContextVar("env", default=None)


def act_in(env: VecEnv | None) -> None:
    """From here on ``predict`` takes what it is not given, such as action masks, from this environment.

    :param env: None to go back to what ``predict`` is given
    """
    _env.set(env)


def acted_in() -> VecEnv | None:
    """The environment of :func:`act_in` or :func:`acting_in`."""
    return _env.get()


@contextmanager
def acting_in(env: VecEnv | None) -> Iterator[None]:
    """As :func:`act_in`, within a ``with`` statement."""
    token = _env.set(env)
    try:
        yield
    finally:
        _env.reset(token)


def evaluate_policy(model: BaseAlgorithm, env: GymEnv, *args: Any, **kwargs: Any) -> Any:
    """SB3's ``evaluate_policy``, with the masks of the environment if the policy takes any.

    :param model: the model
    :param env: a Gymnasium or vector environment
    :return: mean and standard deviation of the return, or with ``return_episode_rewards=True`` returns and lengths

    Other parameters are those of :func:`stable_baselines3.common.evaluation.evaluate_policy`.
    """
    vec_env = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])  # type: ignore[list-item, return-value]
    with acting_in(vec_env):
        return evaluation.evaluate_policy(model, vec_env, *args, **kwargs)


class EvalCallback(callbacks.EvalCallback):
    """SB3's ``EvalCallback``, with the masks of the environment if the policy takes any. Parameters are SB3's."""

    def _init_callback(self) -> None:
        super()._init_callback()
        # Callbacks of the user's own act where they say
        for child in (self.callback, self.callback_on_new_best):
            if child is not None:
                child.on_step = partial(_outside, type(child).on_step, child)  # type: ignore[method-assign]

    def _on_step(self) -> bool:
        with acting_in(self.eval_env):
            return super()._on_step()


def _outside(on_step: Callable[[Any], bool], callback: Any) -> bool:
    with acting_in(None):
        return on_step(callback)
