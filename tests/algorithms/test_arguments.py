"""What is refused, and how: one sentence that says what to do."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from envs import ScriptedEnv
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.dqn.policies import DQNPolicy

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.rollouts.buffers import EpisodeRolloutBuffer

BAD: list[tuple[type[PolicyGradient], dict[str, Any], type[Exception], str]] = [
    (VanillaPG, dict(weights="advantage"), ValueError, 'weights must be "return"'),
    (VanillaPG, dict(gamma=1.1), ValueError, "gamma must be"),
    (VanillaPG, dict(gamma=float("nan")), ValueError, "gamma must be"),
    (VanillaPG, dict(gamma="0.9"), TypeError, "gamma must be a number"),
    (VanillaPG, dict(gae_lambda=-0.1), ValueError, "gae_lambda must be"),
    (VanillaPG, dict(n_steps=0), ValueError, "n_steps must be at least 1"),
    (VanillaPG, dict(n_steps=10**20), ValueError, "n_steps must be below"),
    (VanillaPG, dict(n_episodes=10**20), ValueError, "n_episodes must be at most"),
    (VanillaPG, dict(n_critic_updates=10**20), ValueError, "n_critic_updates must be at most"),
    (NaturalPG, dict(cg_max_steps=10**20), ValueError, "cg_max_steps must be at most"),
    (VanillaPG, dict(rollout_buffer_kwargs=dict(gama=1)), TypeError, "rollout_buffer_kwargs: EpisodeRolloutBuffer does not"),
    (VanillaPG, dict(rollout_buffer_kwargs=dict(gamma=1)), TypeError, "rollout_buffer_kwargs: EpisodeRolloutBuffer does not"),
    (VanillaPG, dict(policy_kwargs=dict(net_arc=[4])), TypeError, "policy_kwargs: ActorCriticPolicy .* mean 'net_arch'"),
    (NaturalPG, dict(critic_learning_rate=1e-3), TypeError, "the critic's rate is learning_rate"),
    (VanillaPG, dict(n_steps=2.5), TypeError, "n_steps must be an integer"),
    (VanillaPG, dict(n_episodes=0), ValueError, "n_episodes must be at least 1"),
    (VanillaPG, dict(n_episodes=-1), ValueError, "n_episodes must be at least 1"),
    (VanillaPG, dict(batch_size=0), ValueError, "batch_size must be at least 1"),
    (VanillaPG, dict(n_critic_updates=-1), ValueError, "n_critic_updates must be at least 0"),
    (VanillaPG, dict(ent_coef=float("inf")), ValueError, "ent_coef must be"),
    (VanillaPG, dict(max_grad_norm=0.0), ValueError, "max_grad_norm must be positive"),
    (VanillaPG, dict(learning_rate=-1e-3), ValueError, "learning_rate must be"),
    (VanillaPG, dict(learning_rate="lin_1e-3"), TypeError, "learning_rate must be a float or a schedule"),
    (VanillaPG, dict(learning_rate=np.float32(1e-3)), TypeError, "learning_rate must be a float"),
    (VanillaPG, dict(rollout_buffer_class=5), TypeError, "rollout_buffer_class must be a subclass"),
    (VanillaPG, dict(critic_learning_rate="lin_1e-3"), TypeError, "critic_learning_rate must be a float or a schedule"),
    (VanillaPG, dict(normalize_advantage="no"), TypeError, "normalize_advantage must be True or False"),
    (VanillaPG, dict(n_episodes=True), TypeError, "n_episodes must be an integer"),
    (VanillaPG, dict(sde_sample_freq="a"), TypeError, "sde_sample_freq must be an integer"),
    (VanillaPG, dict(weights="return", discounted_state_distribution=True), ValueError, "takes no γ"),
    (VanillaPG, dict(weights="return", rollout_buffer_class=RolloutBuffer), ValueError, "EpisodeRolloutBuffer"),
    (VanillaPG, dict(n_episodes=1, rollout_buffer_class=RolloutBuffer), ValueError, "EpisodeRolloutBuffer"),
    (ReinforceBaseline, dict(baseline="critic"), ValueError, 'baseline must be "value"'),
    (ReinforceBaseline, dict(weights="gae", baseline="optimal"), ValueError, 'baseline="value"'),
    (ReinforceBaseline, dict(baseline="leave_one_out"), ValueError, "n_episodes of at least 2"),
    (ReinforceBaseline, dict(baseline="leave_one_out", n_episodes=1), ValueError, "n_episodes of at least 2"),
]


@pytest.mark.parametrize("cls, kwargs, error, message", BAD)
def test_bad_arguments(cls: type[PolicyGradient], kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cls("MlpPolicy", "CartPole-v1", **kwargs)


def test_vectors_are_no_dictionaries() -> None:
    with pytest.raises(ValueError, match="takes dictionaries of observations, and these are Box"):
        VanillaPG("MultiInputPolicy", "CartPole-v1")


@pytest.mark.parametrize("steps", ["1000", float("nan"), -1, None])
def test_steps_that_cannot_be_counted(steps: Any) -> None:
    with pytest.raises(ValueError, match="total_timesteps must be a number of environment steps"):
        VanillaPG("MlpPolicy", "CartPole-v1").learn(steps)


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize(
    "saved_by, cls",
    [(A2C, VanillaPG), (VanillaPG, NaturalPG), (VanillaPG, ReinforceBaseline), (NaturalPG, ReinforceBaseline)],
)
def test_models_of_other_algorithms_are_refused(
    saved_by: type[BaseAlgorithm], cls: type[PolicyGradient], trusted: bool, tmp_path: Path
) -> None:
    saved_by("MlpPolicy", "CartPole-v1").save(tmp_path / "m")
    with pytest.raises(ValueError, match=f"m was not saved by {cls.__name__}: load it with the class"):
        cls.load(tmp_path / "m", trusted=trusted)


@pytest.mark.parametrize("name", ["gamma", "gae_lambda", "ent_coef", "max_grad_norm", "cg_damping"])
def test_numbers_of_any_kind_are_numbers(name: str) -> None:
    cls = NaturalPG if name == "cg_damping" else VanillaPG
    given = dict(n_steps=8, seed=3, rollout_buffer_class=RolloutBuffer)
    models = [cls("MlpPolicy", "CartPole-v1", **given, **{name: n}).learn(8) for n in (0.5, Fraction(1, 2))]
    a, b = (model.policy.state_dict() for model in models)
    assert all(th.equal(a[key], b[key]) for key in a)


def test_integers_of_numpy_are_integers() -> None:
    models = [VanillaPG("MlpPolicy", "CartPole-v1", n_steps=8, seed=n, stats_window_size=n).learn(8) for n in (3, np.int64(3))]
    a, b = (model.policy.state_dict() for model in models)
    assert all(th.equal(a[key], b[key]) for key in a)


def test_arguments_given_to_load_are_checked(tmp_path: Path) -> None:
    VanillaPG("MlpPolicy", "CartPole-v1").save(tmp_path / "m")
    with pytest.raises(ValueError, match="gamma must be"):
        VanillaPG.load(tmp_path / "m", gamma=2.0)


def test_whole_episodes_need_a_reset_that_resets() -> None:
    make = lambda: EpisodicLifeEnv(ScriptedEnv([5]))  # noqa: E731
    with pytest.raises(ValueError, match="terminal_on_life_loss=False"):
        ReinforceBaseline("MlpPolicy", DummyVecEnv([make])).learn(10)


def test_vector_environments_that_do_not_know_their_wrappers() -> None:
    class Unknowing(DummyVecEnv):
        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            raise NotImplementedError

    ReinforceBaseline("MlpPolicy", Unknowing([lambda: ScriptedEnv([5])]), n_steps=8).learn(10)


@pytest.mark.parametrize("policy", [DQNPolicy, th.nn.Linear])
def test_policies_of_other_algorithms_are_refused(policy: Any) -> None:
    with pytest.raises(TypeError, match=f"{policy.__name__} is no stochastic actor-critic policy"):
        VanillaPG(policy, "CartPole-v1")


def test_dictionaries_need_a_buffer_for_them() -> None:
    class DictEnv(ScriptedEnv):
        def __init__(self) -> None:
            super().__init__([2])
            self.observation_space = spaces.Dict({"a": self.observation_space})

    with pytest.raises(ValueError, match="EpisodeDictRolloutBuffer"):
        VanillaPG("MultiInputPolicy", DummyVecEnv([DictEnv]), rollout_buffer_class=EpisodeRolloutBuffer)


@pytest.mark.parametrize(
    "space, message",
    [
        (spaces.Discrete(3, start=5), "do not count from 0"),
        (spaces.MultiDiscrete([2, 3], start=[0, -1]), "do not count from 0"),
        (spaces.MultiDiscrete([[2, 3], [2, 2]]), "are not of one dimension"),
        (spaces.Box(-1, 1, (), np.float32), "have no dimension"),
        (spaces.Box(-1, 1, (0,), np.float32), "are empty"),
        (spaces.Tuple([spaces.Discrete(2)]), "are not supported"),
    ],
    ids=str,
)
def test_observations_that_sb3s_policies_cannot_take(space: spaces.Space, message: str) -> None:
    def make(space: spaces.Space) -> gym.Env:
        env = ScriptedEnv([2])
        env.observation_space = space
        env._obs = space.sample
        return env

    with pytest.raises(ValueError, match=f"Observations of .* {message}"):
        VanillaPG("MlpPolicy", make(space))
    if message == "are not supported":
        return
    with pytest.raises(ValueError, match=f"Observations of .* of 'x' {message}"):
        VanillaPG("MultiInputPolicy", make(spaces.Dict(x=space)))
    if message != "are empty":  # what the message says to do
        VanillaPG("MlpPolicy", gym.wrappers.FlattenObservation(make(spaces.Dict(x=space))), n_steps=8).learn(16)


def test_a_policy_of_the_users_own_may_know_what_to_do_with_observations() -> None:
    class FromFive(ActorCriticPolicy):
        def extract_features(self, obs: th.Tensor, features_extractor: Any = None) -> Any:
            return super().extract_features(obs - 5, features_extractor)

    class ColumnExtractor(BaseFeaturesExtractor):
        def __init__(self, observation_space: spaces.Space):
            super().__init__(observation_space, features_dim=1)

        def forward(self, obs: th.Tensor) -> th.Tensor:
            return obs.reshape(-1, 1)

    for policy, space, policy_kwargs in (
        (FromFive, spaces.Discrete(3, start=5), {}),
        ("MlpPolicy", spaces.Box(-1, 1, (), np.float32), dict(features_extractor_class=ColumnExtractor)),
    ):
        env = ScriptedEnv([4])
        env.observation_space, env._obs = space, lambda space=space: space.low + 1 if hasattr(space, "low") else 7
        VanillaPG(policy, env, n_steps=8, policy_kwargs=policy_kwargs).learn(16)


def test_nothing_to_choose() -> None:
    env = ScriptedEnv([2])
    env.action_space = spaces.Box(-1, 1, (0,), np.float32)
    with pytest.raises(ValueError, match="nothing to choose"):
        VanillaPG("MlpPolicy", env)


def test_unsupported_spaces_are_refused() -> None:
    class TupleActions(ScriptedEnv):
        def __init__(self) -> None:
            super().__init__([2])
            self.action_space = spaces.Tuple([spaces.Discrete(2)])

    with pytest.raises(AssertionError, match="only supports"):
        VanillaPG("MlpPolicy", DummyVecEnv([TupleActions]))
