"""Policies with memory as a user of SB3 and contrib meets them."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from envs import ScriptedEnv
from gymnasium import spaces
from helpers import CLASSES, collect
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from stepwise import Stepwise, make
from torch import nn

from sb3_pg import NaturalPG, VanillaPG

ENVS: dict[str, tuple[Any, str]] = {
    "CartPole": (lambda: gym.make("CartPole-v1", max_episode_steps=30), "MlpLstmPolicy"),
    "Pendulum": (lambda: gym.make("Pendulum-v1", max_episode_steps=10), "MlpLstmPolicy"),
    "image": (lambda: gym.wrappers.TimeLimit(FakeImageEnv(36, 36, discrete=True), 8), "CnnLstmPolicy"),
    "Dict": (lambda: gym.wrappers.TimeLimit(SimpleMultiObsEnv(), 8), "MultiInputLstmPolicy"),
}


@pytest.mark.parametrize("name", ENVS)
@pytest.mark.parametrize("cls, kwargs", CLASSES)
def test_spaces(cls: type[VanillaPG], kwargs: dict[str, Any], name: str, tmp_path: Path) -> None:
    factory, policy = ENVS[name]
    env = make_vec_env(factory, 2, seed=0)
    model = cls(policy, env, seed=0, ent_coef=0.01, batch_size=16, policy_kwargs=dict(lstm_hidden_size=8), **kwargs)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.learn(150)
    updated = {key for key, value in model.policy.state_dict().items() if not th.equal(before[key], value)}
    assert {"lstm_actor.weight_hh_l0", "action_net.weight"} <= updated
    assert ("lstm_critic.weight_hh_l0" in updated) == ("value_net.weight" in updated) == model.uses_critic
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=env)
    obs = env.reset()
    state, starts = None, np.ones(2, dtype=bool)
    other_state = None
    for _ in range(3):
        action, state = model.predict(obs, state, starts, deterministic=True)
        other, other_state = loaded.predict(obs, other_state, starts, deterministic=True)
        np.testing.assert_array_equal(action, other)
        obs, _, starts, _ = env.step(action)
    loaded.learn(60, reset_num_timesteps=False)
    evaluate_policy(loaded, make_vec_env(factory, 1), n_eval_episodes=1, warn=False)


@pytest.mark.parametrize("cls, kwargs", CLASSES)
def test_gsde(cls: type[VanillaPG], kwargs: dict[str, Any]) -> None:
    env = make_vec_env(ENVS["Pendulum"][0], 2, seed=0)
    model = cls(
        "MlpLstmPolicy", env, use_sde=True, sde_sample_freq=1, seed=0, policy_kwargs=dict(lstm_hidden_size=8), **kwargs
    )
    before = model.policy.log_std.clone()
    assert not th.equal(before, model.learn(100).policy.log_std)


def test_the_same_seed_and_other_vector_environments() -> None:
    results = []
    for vec_env_cls in (DummyVecEnv, DummyVecEnv, SubprocVecEnv):
        env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0, vec_env_cls=vec_env_cls))
        model = VanillaPG("MlpLstmPolicy", env, seed=0, n_steps=32, device="cpu").learn(300)
        results.append(th.cat([p.detach().flatten() for p in model.policy.parameters()]))
        env.close()
    assert th.equal(results[0], results[1]) and th.equal(results[0], results[2])


def test_eval_callback_carries_the_memory(tmp_path: Path) -> None:
    callback = EvalCallback(make_vec_env("CartPole-v1", 1), eval_freq=60, n_eval_episodes=2, log_path=str(tmp_path), verbose=0)
    VanillaPG("MlpLstmPolicy", "CartPole-v1", n_steps=32, seed=0).learn(130, callback=callback)
    assert len(np.load(tmp_path / "evaluations.npz")["timesteps"]) == 2


class OwnForward(RecurrentActorCriticPolicy):
    """Its values are its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        actions, values, log_prob, states = super().forward(*args, **kwargs)
        return actions, th.full_like(values, 3.0), log_prob, states


class OwnEvaluation(RecurrentActorCriticPolicy):
    def evaluate_actions(self, *args: Any, **kwargs: Any) -> Any:
        values, log_prob, entropy = super().evaluate_actions(*args, **kwargs)
        return 2.0 * values, log_prob, entropy


def test_policies_of_the_users_own() -> None:
    model = make(policy=OwnForward)
    stepwise = Stepwise(model)
    _, callback = model._setup_learn(10**6)
    for _ in range(3):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        assert (model.rollout_buffer.values == 3.0).all()
        np.testing.assert_allclose(model.rollout_buffer.log_probs, stepwise.over(model.rollout_buffer)[0], atol=1e-5)
    model = make(policy=OwnEvaluation)
    collect(model)
    stepwise = Stepwise(model)
    log_probs, values = stepwise.over(model.rollout_buffer)
    np.testing.assert_allclose(model.rollout_buffer.values, values, atol=1e-5)
    np.testing.assert_allclose(model.rollout_buffer.log_probs, log_probs, atol=1e-5)
    with pytest.raises(ValueError, match="OwnEvaluation overrides"):
        NaturalPG(OwnEvaluation, "CartPole-v1")


def test_sb3s_buffer_is_refused() -> None:
    from stable_baselines3.common.buffers import RolloutBuffer

    with pytest.raises(ValueError, match="does not keep what RecurrentActorCriticPolicy needs"):
        VanillaPG("MlpLstmPolicy", "CartPole-v1", rollout_buffer_class=RolloutBuffer)


# What an independent reading found


class Standardized(FlattenExtractor):
    """Features through a batch norm."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space)
        self.norm = nn.BatchNorm1d(self.features_dim, momentum=1.0)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.norm(super().forward(observations))


@pytest.mark.parametrize("share", [True, False])
def test_batch_norm_sees_the_steps_and_no_padding(share: bool) -> None:
    env = DummyVecEnv([lambda: ScriptedEnv([1, 15, 9])])
    policy_kwargs = dict(lstm_hidden_size=8, features_extractor_class=Standardized, share_features_extractor=share)
    model = VanillaPG("MlpLstmPolicy", env, n_steps=25, batch_size=8, learning_rate=0.0, policy_kwargs=policy_kwargs, seed=0)
    model.learn(25)
    seen = model.rollout_buffer.observations.reshape(25, 2).mean(axis=0)
    for extractor in (model.policy.pi_features_extractor, model.policy.vf_features_extractor):
        np.testing.assert_allclose(extractor.norm.running_mean.numpy(), seen, atol=1e-5)


def test_after_a_stop_the_critic_does_not_go_on_with_another_episodes_memory() -> None:
    model = make(env=DummyVecEnv([lambda: ScriptedEnv([20])]))
    model.learn(16)
    model.learn(16, callback=lambda locals_, _: locals_["n_steps"] < 13, reset_num_timesteps=False)
    begun = model.kind._actor_memory[0].copy()
    model.learn(16, reset_num_timesteps=False)
    assert np.abs(begun).sum() > 0.0 and (model.kind._initial.vf[0] == 0.0).all()


class Scaled(RecurrentActorCriticPolicy):
    @staticmethod
    def _process_sequence(features: th.Tensor, *args: Any) -> Any:
        return RecurrentActorCriticPolicy._process_sequence(5.0 * features, *args)


def test_a_sequence_of_the_users_own_is_carried_over() -> None:
    model = make(policy=Scaled, n_steps=8)
    stepwise = Stepwise(model)
    _, callback = model._setup_learn(10**6)
    for _ in range(4):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        np.testing.assert_allclose(model.rollout_buffer.values, stepwise.over(model.rollout_buffer)[1], atol=1e-5)


@pytest.mark.parametrize("lstm_kwargs", [dict(bidirectional=True), dict(proj_size=4), dict(batch_first=True)])
def test_lstms_that_contrib_cannot_step_are_refused(lstm_kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cannot step an LSTM with"):
        VanillaPG("MlpLstmPolicy", "CartPole-v1", policy_kwargs=dict(lstm_kwargs=lstm_kwargs))


def test_multi_discrete_observations_are_refused_clearly() -> None:
    class Counts(ScriptedEnv):
        def __init__(self) -> None:
            super().__init__([5])
            self.observation_space = spaces.MultiDiscrete([3, 3])

    with pytest.raises(ValueError, match="does not take MultiDiscrete observations"):
        VanillaPG("MlpLstmPolicy", DummyVecEnv([Counts]))
