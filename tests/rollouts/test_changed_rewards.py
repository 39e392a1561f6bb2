"""Callbacks that change the rewards of a rollout when it is over."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from envs import ScriptedEnv
from helpers import VARIANTS, changed, params
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_pg import ReinforceBaseline, VanillaPG
from sb3_pg.algorithms.policy_gradient import PolicyGradient

ALL: Any = [
    *VARIANTS,
    (ReinforceBaseline, dict(baseline="value", weights="return", n_episodes=1)),
    (ReinforceBaseline, dict(baseline="running_mean", weights="return", n_episodes=2)),
    (ReinforceBaseline, dict(weights="gae", n_episodes=2)),
    (VanillaPG, dict(n_steps=16, rollout_buffer_class=RolloutBuffer)),
]


class Changing(BaseCallback):
    def __init__(self, change: Callable[["Changing", float], None], bonus: float):
        super().__init__()
        self.change, self.bonus = change, bonus

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.change(self, self.bonus)


def as_with_sb3(callback: Changing, bonus: float) -> None:
    buffer = callback.locals["rollout_buffer"]
    buffer.rewards += np.float32(bonus)
    buffer.compute_returns_and_advantage(callback.locals["values"], callback.locals["dones"])


def by_assignment(callback: Changing, bonus: float) -> None:
    buffer = callback.locals["rollout_buffer"]
    buffer.rewards = buffer.rewards + bonus
    buffer.compute_returns_and_advantage(last_values=callback.locals["values"], dones=callback.locals["dones"])


def with_a_method(callback: Changing, bonus: float) -> None:
    for _ in range(2):  # once more changes nothing
        callback.model.rollout_buffer.rewards += np.float32(bonus / 2)
        callback.model.recompute_weights()


def after_a_look(callback: Changing, bonus: float) -> None:
    if (
        not isinstance(callback.model.rollout_buffer, RolloutBuffer)
        or callback.model.rollout_buffer_class is not RolloutBuffer
    ):
        list(callback.model.rollout_buffer.get(7))  # SB3's own buffer cannot be computed anew after that
    as_with_sb3(callback, bonus)


def make_env(bonus: float = 0.0) -> VecEnv:
    def make() -> gym.Env:  # time limits within the rollouts, and episodes that go on at their ends
        env = gym.make("CartPole-v1", max_episode_steps=11)
        return gym.wrappers.TransformReward(env, lambda reward: reward + bonus)

    return make_vec_env(make, 2, seed=0)


def state_of(model: PolicyGradient) -> Any:
    return [getattr(model, name, None) for name in ("_running_mean", "_optimal_moments")]


@pytest.mark.parametrize("change", [as_with_sb3, by_assignment, with_a_method, after_a_look])
@pytest.mark.parametrize("cls, kwargs", ALL)
def test_a_bonus_is_what_a_reward_of_the_environment_is(cls: Any, kwargs: Any, change: Any) -> None:
    for bonus in (0.0, 0.5):
        model = cls("MlpPolicy", make_env(), seed=0, **kwargs).learn(80, callback=Changing(change, bonus))
        expected = cls("MlpPolicy", make_env(bonus), seed=0, **kwargs).learn(80, callback=Changing(lambda *_: None, 0.0))
        if kwargs.get("rollout_buffer_class") is RolloutBuffer and bonus:  # its rewards contain γV: rounded otherwise
            th.testing.assert_close(params(model), params(expected), rtol=1e-4, atol=1e-4)
            continue
        assert not changed(params(model), expected)
        for name in ("rewards", "advantages", "returns"):
            np.testing.assert_array_equal(getattr(model.rollout_buffer, name), getattr(expected.rollout_buffer, name))
        np.testing.assert_equal(state_of(model), state_of(expected))


@pytest.mark.parametrize("buffer_class", [None, RolloutBuffer])
def test_locals_have_v_behind_the_last_step_as_a2c(buffer_class: Any) -> None:
    seen: list[tuple[th.Tensor, th.Tensor]] = []

    def look(callback: Changing, bonus: float) -> None:
        with th.no_grad():
            expected = callback.model.policy.predict_values(th.as_tensor(callback.locals["new_obs"]))
        seen.append((callback.locals["values"], expected))

    for cls, kwargs in ((VanillaPG, dict(rollout_buffer_class=buffer_class)), (A2C, {})):
        cls("MlpPolicy", make_env(), n_steps=16, seed=0, **kwargs).learn(64, callback=Changing(look, 0.0))
    assert len(seen) == 4
    for values, expected in seen:
        th.testing.assert_close(values, expected)


def test_a_bonus_for_steps_that_are_not_in_use_is_in_vain() -> None:
    def change(callback: Changing, bonus: float) -> None:
        buffer = callback.locals["rollout_buffer"]
        buffer.rewards[~buffer.mask] += bonus
        callback.model.recompute_weights()

    models = []
    for bonus in (0.0, 3.0):
        env = DummyVecEnv([lambda: ScriptedEnv([3]), lambda: ScriptedEnv([7])])
        model = VanillaPG("MlpPolicy", env, weights="reward_to_go", n_steps=4, seed=0)
        models.append(model.learn(30, callback=Changing(change, bonus)))
    assert not models[0].rollout_buffer.mask.all() and not changed(params(models[0]), models[1])


def test_weights_without_a_rollout() -> None:
    with pytest.raises(RuntimeError, match="no rollout"):
        VanillaPG("MlpPolicy", "CartPole-v1").recompute_weights()


def test_infinite_bonuses_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity in the weight"):
        VanillaPG("MlpPolicy", make_env(), n_steps=16).learn(32, callback=Changing(as_with_sb3, np.inf))
