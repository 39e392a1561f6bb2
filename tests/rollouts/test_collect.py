"""The rollout loop: callbacks, clocks, memory, and NaN from the environment."""

import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch as th
from envs import BrokenEnv, ScriptedEnv
from gymnasium import spaces
from helpers import Recorder, changed, params, variants
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import (
    IdentityEnvBox,
)
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_pg import ReinforceBaseline, VanillaPG
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.policies.steps import Steps


@variants
def test_callbacks(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    recorder = Recorder()
    model = cls("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), seed=0, **kwargs).learn(200, callback=recorder)
    assert recorder.events[0] == "start" and recorder.events[-1] == "end"
    assert recorder.events.count("start") == recorder.events.count("end") > 1
    assert recorder.events.count("step") * 2 == model.num_timesteps
    for fields in recorder.filled:
        assert (fields["log_probs"] != 0).any() and (fields["returns"] != 0).any() and (fields["advantages"] != 0).any()
        assert (fields["values"] != 0).any() == model.uses_critic
    # Listening changes nothing
    silent = cls("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), seed=0, **kwargs).learn(200)
    assert not changed(params(model), silent)


@variants
def test_a_callback_stops_at_once(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    model = cls("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), seed=0, **kwargs)
    before = params(model)
    recorder = Recorder(stop_after=3)
    model.learn(200, callback=CallbackList([recorder]))
    assert model.num_timesteps == 6 and "end" not in recorder.events and not changed(before, model)
    # The next learn() goes on where this one stopped: from an episode start where whole episodes are collected
    follow_up = Recorder()
    model.learn(100, callback=follow_up, reset_num_timesteps=False)
    assert model.num_timesteps > 100
    assert (model.rollout_buffer.timesteps[0] == 0).all() or not model.whole_episodes


def test_the_clock_of_cut_rollouts_carries_over() -> None:
    env = DummyVecEnv([lambda: ScriptedEnv([3]), lambda: ScriptedEnv([7])])
    model = VanillaPG("MlpPolicy", env, n_steps=4, discounted_state_distribution=True, seed=0)
    clocks: list[np.ndarray] = []

    class Clock(Recorder):
        def _on_rollout_end(self) -> None:
            clocks.append(self.model.rollout_buffer.timesteps.copy())

    model.learn(32, callback=Clock())
    model.learn(16, callback=Clock(stop_after=5), reset_num_timesteps=False)  # stops within a rollout
    model.learn(16, callback=Clock(), reset_num_timesteps=False)
    t = np.arange(24)
    expected = np.stack([t % 3, t % 7], axis=1)
    np.testing.assert_array_equal(np.concatenate(clocks)[:20], expected[:20])
    np.testing.assert_array_equal(
        clocks[-1][0], np.stack([np.arange(40) % 3, np.arange(40) % 7], axis=1)[21 + 4 * (len(clocks) - 6)]
    )


def test_a_callback_may_change_the_policy_before_the_rollout() -> None:
    class Quiet(BaseCallback):
        def _on_rollout_start(self) -> None:
            self.model.policy.log_std.data.fill_(-6.0)

        def _on_step(self) -> bool:
            return True

    model = VanillaPG("MlpPolicy", IdentityEnvBox(ep_length=8), n_steps=64, seed=0).learn(64, callback=Quiet())
    assert model.rollout_buffer.actions.std() < 0.1
    assert model.rollout_buffer.log_probs.mean() == pytest.approx(-0.5 * (1 + np.log(2 * np.pi)) + 6.0, abs=0.3)


def test_context_of_the_sampler_reaches_every_scoring_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    env = DummyVecEnv([lambda: ScriptedEnv([2]), lambda: ScriptedEnv([5])])
    model = ReinforceBaseline("MlpPolicy", env, baseline="optimal", n_steps=4, seed=0)
    make_sampler, score, sizes = model.kind.make_sampler, model.kind.log_prob_and_entropy, set()

    def make_sampler_with_context(*args: Any, **kwargs: Any) -> Any:
        sample = make_sampler(*args, **kwargs)
        return lambda obs, starts: sample(obs, starts)._replace(context={"shown": obs.copy(), "start": starts.copy()})

    def score_with_context(steps: Steps) -> Any:
        if steps.context:  # PlainKind fills the buffer without
            assert th.equal(steps.context["shown"], steps.observations)
            assert th.equal(steps.context["start"], steps.observations[:, 1] == 0)  # (episode, t)
            sizes.add(len(steps))
        return score(steps)

    monkeypatch.setattr(model.kind, "make_sampler", make_sampler_with_context)
    monkeypatch.setattr(model.kind, "log_prob_and_entropy", score_with_context)
    model.learn(30)
    assert model._n_updates == 3 and {2, 5, 9} <= sizes  # single episodes, and all that are used


class TypedObservations(ScriptedEnv):
    def __init__(self, dtype: type) -> None:
        super().__init__([8])
        low, high = (0, 1) if dtype is np.bool_ else (-100, 100)
        self.observation_space = spaces.Box(low, high, (3,), dtype)

    def _obs(self) -> np.ndarray:
        return np.array([self.t % 2, self.t % 3 == 0, 1], dtype=self.observation_space.dtype)


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.int64, np.float16, np.float32])
@pytest.mark.parametrize("buffer_class", [None, RolloutBuffer])
def test_normalised_observations_are_scored_as_they_were_seen(dtype: type, buffer_class: Any) -> None:
    env = VecNormalize(DummyVecEnv([lambda: TypedObservations(dtype)]))
    model = VanillaPG("MlpPolicy", env, n_steps=16, rollout_buffer_class=buffer_class, seed=0)
    seen: list[np.ndarray] = []

    class Seen(BaseCallback):
        def _on_rollout_start(self) -> None:
            seen[:] = [self.model._last_obs]

        def _on_step(self) -> bool:
            seen.append(self.locals["new_obs"])
            return True

    model.learn(32, callback=Seen())
    assert not np.isin(seen[:-1], [0.0, 1.0]).all()
    np.testing.assert_array_equal(model.rollout_buffer.observations.reshape(16, 1, 3), seen[:-1])


class IntegerActions(ScriptedEnv):
    def __init__(self) -> None:
        super().__init__([8])
        self.action_space = spaces.Box(-5, 5, (1,), np.int32)


def test_integer_box_actions_are_scored_as_sampled() -> None:
    model = VanillaPG("MlpPolicy", DummyVecEnv([IntegerActions]), n_steps=16, seed=0).learn(16)
    actions = model.rollout_buffer.actions
    assert (actions != np.round(actions)).any()


@pytest.mark.parametrize("kwargs", [dict(n_steps=8), dict(n_steps=8, weights="reward_to_go")])
def test_memory_does_not_grow(kwargs: dict[str, Any]) -> None:
    env = DummyVecEnv([lambda: ScriptedEnv([5, 7])] * 2)  # without a Monitor, which remembers all episodes
    model = VanillaPG("MlpPolicy", env, seed=0, **kwargs)
    model.learn(50 * 16)
    tracemalloc.start()
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    model.learn(200 * 16)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 100_000


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy, on the way to the error
@variants
@pytest.mark.parametrize("what", ["reward", "observation"])
def test_not_finite_from_the_environment(cls: type[PolicyGradient], kwargs: dict[str, Any], what: str) -> None:
    env = DummyVecEnv([lambda: BrokenEnv("nothing", 0), lambda: BrokenEnv(what, 45)])
    model = cls("MlpPolicy", env, seed=0, **kwargs)
    before = None

    class Snapshot(BaseCallback):
        def _on_rollout_start(self) -> None:
            nonlocal before
            before = params(self.model)

        def _on_step(self) -> bool:
            return True

    with pytest.raises(ValueError, match=f"NaN or infinity in the {what} of environment 1"):
        model.learn(1000, callback=Snapshot())
    assert not changed(before, model) and model._n_updates > 0


class Padded(FlattenExtractor):
    def forward(self, obs: th.Tensor) -> th.Tensor:
        return super().forward(obs.nan_to_num(0.0, 0.0, 0.0))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_is_the_users_own_affair_in_an_extractor_of_their_own() -> None:
    env = DummyVecEnv([lambda: BrokenEnv("observation", 5)])
    model = VanillaPG("MlpPolicy", env, n_steps=16, policy_kwargs=dict(features_extractor_class=Padded))
    assert model.learn(32)._n_updates == 2


def test_not_finite_terminal_observation() -> None:
    class Ends(ScriptedEnv):
        def step(self, action: Any) -> Any:
            obs, reward, terminated, truncated, info = super().step(action)
            return (obs * np.nan if truncated else obs), reward, terminated, truncated, info

    env = DummyVecEnv([lambda: ScriptedEnv([30]), lambda: Ends([30], truncate=True)])
    with pytest.raises(ValueError, match="terminal observation of environment 1, step 29"):
        VanillaPG("MlpPolicy", env, n_steps=64, seed=0).learn(128)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_not_finite_on_the_general_path() -> None:
    env = DummyVecEnv([lambda: BrokenEnv("observation", 5)])
    with pytest.raises(ValueError, match="in the observation of environment 0, step 5"):
        VanillaPG("MlpPolicy", env, n_steps=16, policy_kwargs=dict(activation_fn=nn.ELU)).learn(100)
