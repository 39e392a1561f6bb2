"""What is not finite goes nowhere: not into parameters, environments or normalisers; and what was there is kept."""

import os
import signal
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from helpers import CLASSES, changed, params
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg.algorithms.policy_gradient import PolicyGradient


class Fragile(gym.Env):
    """Returns what it is told at one step of its life, and keeps the actions it was given."""

    observation_space, action_space = gym.spaces.Box(-np.inf, np.inf, (2,)), gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, at: int = -1, reward: float = 0.0, observation: float = 0.0):
        self.at, self.bad = at, (reward, observation)
        self.life, self.t, self.actions = 0, 0, []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        self.actions.append(action.copy())
        self.life, self.t = self.life + 1, self.t + 1
        reward, observation = self.bad if self.life == self.at else (float(action[0]), 0.1 * self.t)
        return np.full(2, observation, np.float32), reward, self.t >= 5, False, {}


def everything(model: PolicyGradient) -> dict[str, Any]:
    return {"parameters": deepcopy(model.get_parameters()), "moments": model.target_moments}


@pytest.mark.parametrize("cls, kwargs", CLASSES)
def test_a_schedule_that_returns_nan_takes_no_step(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    model = cls("MlpPolicy", Fragile(), seed=0, **kwargs)
    model.learn(64)
    before = everything(model)
    model.lr_schedule = lambda progress: float("nan")
    if cls is NaturalPG:
        model.target_kl_schedule = lambda progress: float("nan")
    with pytest.raises(ValueError, match=r"nan"):
        model.learn(64)
    th.testing.assert_close(everything(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("rate", [-1.0, float("inf")])
def test_rates_that_are_none(rate: Any) -> None:
    model = VanillaPG("MlpPolicy", Fragile(), n_steps=16, critic_learning_rate=lambda p: 1e-3 if p == 1.0 else rate, seed=0)
    with pytest.raises(ValueError, match=r"The schedule of the critic's learning rate returned"):
        model.learn(64)
    assert model.num_timesteps == 16  # the policy's step, which came before, was taken back with it
    with pytest.raises((ValueError, TypeError), match="learning_rate must be"):
        VanillaPG("MlpPolicy", Fragile(), learning_rate=lambda p: rate)


def test_an_optimizer_whose_state_is_spoilt_steps_nowhere() -> None:
    model = VanillaPG("MlpPolicy", Fragile(), n_steps=16, seed=0).learn(32)
    next(iter(model.policy.optimizer.state.values()))["exp_avg"].fill_(float("nan"))
    before = {name: p.clone() for name, p in model.policy.named_parameters()}
    with pytest.raises(ValueError, match=r"Found NaN or infinity in the policy's .*; the update is taken back"):
        model.learn(16, reset_num_timesteps=False)
    th.testing.assert_close(dict(model.policy.named_parameters()), before, rtol=0, atol=0)


@pytest.mark.parametrize("reward", [1e20, 1e38])
def test_a_reward_too_large_for_the_critic_leaves_the_policy_as_it_was(reward: float) -> None:
    model = VanillaPG("MlpPolicy", Fragile(at=20, reward=reward), n_steps=16, seed=0, normalize_targets=False).learn(16)
    before = everything(model)
    with pytest.raises(ValueError, match="the update is taken back"):
        model.learn(16, reset_num_timesteps=False)
    th.testing.assert_close(everything(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("cls, kwargs", CLASSES)
def test_a_policy_that_is_nan_does_not_act(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    env = Fragile()
    model = cls("MlpPolicy", env, seed=0, **kwargs)
    with th.no_grad():
        model.policy.log_std.fill_(float("nan"))
    with pytest.raises(ValueError, match="Found NaN or infinity in the policy's log_std"):
        model.learn(64)
    assert env.actions == []


@pytest.mark.filterwarnings("ignore:overflow")
def test_actions_that_overflow_and_policies_that_break_within_a_rollout_do_not_act() -> None:
    env = Fragile()
    model = VanillaPG("MlpPolicy", env, n_steps=16, seed=0)
    with th.no_grad():
        model.policy.log_std.fill_(1e4)  # finite, unlike its exponential
    with pytest.raises(ValueError, match="The policy chose an action that is NaN or infinite in environment 0, step 0"):
        model.learn(16)
    assert env.actions == []

    class Break(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 3:
                with th.no_grad():
                    self.model.policy.mlp_extractor.policy_net[0].bias.fill_(float("nan"))
            return True

    env = Fragile()
    with pytest.raises(ValueError, match="which a callback has changed and which is not played"):
        VanillaPG("MlpPolicy", env, n_steps=16, seed=0).learn(16, callback=Break())
    assert len(env.actions) == 3


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(reward=float("nan")), "a reward of nan in environment 1, step 2"),
        (dict(reward=1e38), r"a reward of 1e\+38 in environment 1"),
        (dict(observation=float("inf")), "NaN or infinity in the observation of environment 1, step 2"),
    ],
)
def test_normalisers_are_not_spoilt(bad: dict[str, float], message: str) -> None:
    made = [Fragile(), Fragile(at=19, **bad)]
    env = VecNormalize(DummyVecEnv([lambda i=i: made[i] for i in range(2)]))
    model = VanillaPG("MlpPolicy", env, n_steps=16, seed=0).learn(32)
    with pytest.raises(ValueError, match=message):
        model.learn(32, reset_num_timesteps=False)
    assert np.isfinite(env.obs_rms.mean).all() and np.isfinite(env.obs_rms.var).all() and np.isfinite(env.ret_rms.var)
    assert env.obs_rms.count == pytest.approx(2 * 17, abs=1) and env.ret_rms.var < 100.0
    made[1].at = -1
    env.reset()
    model._last_obs = None
    model.learn(64)
    assert np.isfinite(model.policy.log_std.item())


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_worker_that_is_killed_is_named(start_method: str) -> None:
    """And nothing hangs, in a rollout or in close()."""
    env = make_vec_env("CartPole-v1", 3, vec_env_cls=SubprocVecEnv, vec_env_kwargs=dict(start_method=start_method), seed=0)

    class Kill(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 5:
                os.kill(env.processes[1].pid, signal.SIGKILL)
            return True

    model = ReinforceBaseline("MlpPolicy", env, n_steps=32, seed=0)
    with pytest.raises(RuntimeError, match=r"The process of environment 1 has died \(exit code -9\)"):
        model.learn(1_000, callback=Kill())
    env.close()
    assert not any(process.is_alive() for process in env.processes)


def test_a_step_beyond_all_distributions_is_taken_back() -> None:
    model = VanillaPG("MlpPolicy", "Pendulum-v1", n_steps=8, learning_rate=1e5, seed=0, device="cpu")
    before = params(model)
    with pytest.raises(
        ValueError, match=r"no distribution of actions after the step; the update is taken back.*smaller learning"
    ):
        model.learn(8)
    assert not changed(before, model)
    for name in ("learning_rate", "critic_learning_rate", "ent_coef"):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            VanillaPG("MlpPolicy", "Pendulum-v1", **{name: 1e20})
