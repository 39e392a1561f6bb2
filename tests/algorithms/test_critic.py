"""The critic: its own rate, its own parameters, batch statistics that are not its own; Adam in one kernel."""

import gymnasium as gym
import pytest
import torch as th
from gymnasium import spaces
from helpers import changed, params
from stable_baselines3.common.envs import (
    FakeImageEnv,
)
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from sb3_pg import VanillaPG
from sb3_pg.algorithms.batch import make_batch


def test_critic_has_its_own_rate() -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, critic_learning_rate=LinearSchedule(1e-2, 5e-3, 1.0)).learn(32)
    assert model.policy.optimizer.param_groups[0]["lr"] == model.learning_rate
    assert model.critic_optimizer.param_groups[0]["lr"] == pytest.approx(5e-3)
    frozen = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, critic_learning_rate=0.0)
    before = params(frozen)
    updated = changed(before, frozen.learn(32))
    assert "action_net.weight" in updated and not any("value" in name for name in updated)
    none = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, n_critic_updates=0)
    before = params(none)
    assert not any("value" in name for name in changed(before, none.learn(32)))


def test_the_critic_follows_a_schedule_that_the_user_has_replaced() -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16).learn(16)
    model.lr_schedule = lambda progress_remaining: 5e-5
    model.learn(16)
    for optimizer in (model.policy.optimizer, model.critic_optimizer):
        assert optimizer.param_groups[0]["lr"] == 5e-5
    assert model.logger.name_to_value["train/critic_learning_rate"] == 5e-5
    own = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, critic_learning_rate=1e-2)
    own.lr_schedule = lambda progress_remaining: 5e-5
    own.learn(16)
    assert own.logger.name_to_value["train/critic_learning_rate"] == 1e-2
    assert own.logger.name_to_value["train/learning_rate"] == 5e-5
    own.critic_lr_schedule = lambda progress_remaining: 5e-6
    assert own.learn(16).logger.name_to_value["train/critic_learning_rate"] == 5e-6
    without = VanillaPG("MlpPolicy", "CartPole-v1", weights="return", n_steps=16).learn(16)
    assert "train/critic_learning_rate" not in without.logger.name_to_value


def test_shared_features_are_the_actors() -> None:
    """The critic's loss must not reach a shared extractor, whose parameters the policy gradient trains."""
    env = gym.wrappers.TimeLimit(FakeImageEnv(36, 36, discrete=True), 8)
    shared = VanillaPG("CnnPolicy", env, n_steps=16, seed=0)
    critic = {id(p) for p in shared.kind.critic_parameters()}
    assert critic == {id(p) for name, p in shared.policy.named_parameters() if "value_net" in name}
    separate = VanillaPG("CnnPolicy", env, n_steps=16, seed=0, policy_kwargs=dict(share_features_extractor=False))
    critic = {id(p) for p in separate.kind.critic_parameters()}
    assert critic == {id(p) for name, p in separate.policy.named_parameters() if "value_net" in name or "vf_features" in name}
    shared.learn(8)
    before = params(shared)
    shared._update_critic(make_batch(shared))
    assert changed(before, shared) == {"value_net.weight", "value_net.bias"}


class Standardized(FlattenExtractor):
    """Features through a batch norm."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space)
        self.norm = nn.BatchNorm1d(self.features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.norm(super().forward(observations))


@pytest.mark.parametrize("n_critic_updates", [1, 7])
def test_the_critic_leaves_the_batch_statistics_of_a_shared_extractor_alone(n_critic_updates: int) -> None:
    kwargs = dict(n_steps=32, batch_size=16, n_critic_updates=n_critic_updates)
    policy_kwargs = dict(features_extractor_class=Standardized)
    model = VanillaPG("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs, seed=0, **kwargs).learn(64)
    assert model.policy.features_extractor.norm.num_batches_tracked == 2


class Transposed(FlattenExtractor):
    """A linear layer whose weight has a gradient in column-major order."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space)
        self.weight = nn.Parameter(th.linspace(-1.0, 1.0, self.features_dim**2).reshape(self.features_dim, -1))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations) @ self.weight.t().contiguous()


class Slice(FlattenExtractor):
    """Its parameter is a part of a larger tensor."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space)
        self.weight = nn.Parameter(th.ones(3, 2 * self.features_dim)[:, : self.features_dim])

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations) * self.weight.sum(dim=0)


@pytest.mark.parametrize("extractor", [Transposed, Slice])
def test_fused_steps_are_those_of_plain_adam(extractor: type[FlattenExtractor]) -> None:
    parameters = []
    for optimizer_kwargs in ({}, dict(fused=False)):
        policy_kwargs = dict(
            features_extractor_class=extractor, share_features_extractor=False, optimizer_kwargs=optimizer_kwargs
        )
        model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=32, policy_kwargs=policy_kwargs, seed=0).learn(64)
        parameters.append(model.policy.state_dict())
    th.testing.assert_close(*parameters)
