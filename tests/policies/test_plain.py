"""Policies of the user's own: overridden methods, replaced, compiled and frozen parts."""

from typing import Any

import gymnasium as gym
import pytest
import torch as th
from helpers import Recorder, changed, params
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import explained_variance
from torch import nn

from sb3_pg import ReinforceBaseline, VanillaPG
from sb3_pg.algorithms.batch import make_batch
from sb3_pg.algorithms.policy_gradient import PolicyGradient


class ConstantValue(ActorCriticPolicy):
    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, th.full_like(values, 3.0), log_prob - 0.5


def test_an_overridden_forward_is_believed() -> None:
    recorder = Recorder()
    VanillaPG(ConstantValue, "CartPole-v1", n_steps=16, seed=0).learn(32, callback=recorder)
    assert all((fields["values"] == 3.0).all() and (fields["log_probs"] < -0.5).all() for fields in recorder.filled)


class Scaled(ActorCriticPolicy):
    calls = 0

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        type(self).calls += 1
        return super().evaluate_actions(obs, actions)


def test_an_overridden_evaluate_actions_is_used() -> None:
    model = VanillaPG(Scaled, "CartPole-v1", n_steps=16, seed=0)
    calls = Scaled.calls
    model.learn(16)
    assert Scaled.calls > calls


class OwnPosition(ActorCriticPolicy):
    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        return super().extract_features(obs * th.tensor([0.0, 0.0, -20.0, 0.0]), features_extractor)


def test_the_critic_that_is_trained_is_the_one_that_is_used() -> None:
    # SB3's predict_values skips extract_features
    model = VanillaPG(
        OwnPosition, "CartPole-v1", gamma=0.9, gae_lambda=1.0, learning_rate=1e-9, critic_learning_rate=1e-2,
        n_critic_updates=20, batch_size=64, seed=0,
    )  # fmt: skip
    samples, *_ = model.learn(6000).rollout_buffer.samples()
    with th.no_grad():
        values = model.policy.evaluate_actions(samples.observations, samples.actions.flatten())[0].flatten()
    assert explained_variance(values.numpy(), samples.returns.numpy()) > 0.4


class OwnFeatures(ActorCriticPolicy):
    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        return super().extract_features(obs * th.tensor([0.0, 0.0, 0.0, 30.0]), features_extractor)


def test_an_overridden_extract_features_is_used_throughout() -> None:
    # SB3's get_distribution skips it, its forward and evaluate_actions do not
    model = VanillaPG(OwnFeatures, "CartPole-v1", n_steps=64, seed=0, max_grad_norm=None, n_critic_updates=0)
    model.learn(64)
    gradient = [p.grad.clone() for p in model.kind.actor_parameters()]
    batch = make_batch(model)
    model.policy.load_state_dict(VanillaPG(OwnFeatures, "CartPole-v1", n_steps=64, seed=0).policy.state_dict())
    _, log_prob, _ = model.policy.evaluate_actions(batch.steps.observations, batch.steps.actions)
    th.testing.assert_close(log_prob.detach(), model.rollout_buffer.samples()[0].old_log_prob)
    expected = th.autograd.grad(-(log_prob * batch.weights).mean(), model.kind.actor_parameters())
    th.testing.assert_close(gradient, list(expected))


class SquashedMeans(ActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Sequential(self.action_net, nn.Tanh())


class NoCritic(ActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.mlp_extractor.value_net, self.value_net = nn.Sequential(), None
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        distribution = self.get_distribution(obs)
        return th.zeros(len(obs), 1), distribution.log_prob(actions), distribution.entropy()


def test_an_actor_of_ones_own() -> None:
    model = VanillaPG(SquashedMeans, "Pendulum-v1", n_steps=16, seed=0)
    before = params(model)
    assert "action_net.0.weight" in changed(before, model.learn(32))


def test_a_policy_without_critic() -> None:
    model = VanillaPG(NoCritic, "CartPole-v1", weights="return", n_steps=16, seed=0)
    before = params(model)
    assert "action_net.weight" in changed(before, model.learn(32))
    with pytest.raises(ValueError, match="no parameters of its own"):
        VanillaPG(NoCritic, "CartPole-v1")


def test_a_compiled_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, seed=0)
    before = params(model)
    model.policy = th.compile(model.policy, backend="eager")
    model.learn(32)
    after = model.get_parameters()["policy"]
    assert not th.equal(before["action_net.weight"], after["action_net.weight"])
    assert not th.equal(before["value_net.weight"], after["value_net.weight"])


def test_a_replaced_policy_is_trained() -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, seed=0).learn(16)
    model.policy = ActorCriticPolicy(model.observation_space, model.action_space, model.lr_schedule)
    before = params(model)
    assert {"action_net.weight", "value_net.weight"} <= changed(before, model.learn(16))


@pytest.mark.parametrize(
    "name", ["log_std", "mlp_extractor.policy_net.0.weight", "value_net.weight", "mlp_extractor.value_net.0.bias"]
)
@pytest.mark.parametrize(
    "cls, kwargs", [(VanillaPG, {}), (ReinforceBaseline, {}), (ReinforceBaseline, dict(baseline="optimal"))]
)
def test_frozen_parameters_stay(cls: type[PolicyGradient], kwargs: dict[str, Any], name: str) -> None:
    model = cls("MlpPolicy", gym.make("Pendulum-v1", max_episode_steps=8), n_steps=16, seed=0, **kwargs)
    dict(model.policy.named_parameters())[name].requires_grad_(False)
    before = params(model)
    updated = changed(before, model.learn(64))
    assert "action_net.weight" in updated and name not in updated


def test_a_frozen_critic() -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, seed=0)
    for p in model.kind.critic_parameters():
        p.requires_grad_(False)
    before = params(model)
    updated = changed(before, model.learn(32))
    assert "action_net.weight" in updated and not any("value" in key for key in updated)


class Direction(FlattenExtractor):
    """NaN where the observation is zero."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations) / observations.norm(dim=1, keepdim=True)


def test_policies_without_a_value_at_zero() -> None:
    validates = th.distributions.Distribution._validate_args
    policy_kwargs = dict(features_extractor_class=Direction)
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=32, policy_kwargs=policy_kwargs, seed=0)
    assert th.distributions.Distribution._validate_args is validates
    before = params(model)
    model.learn(32)
    assert changed(before, model) == set(before)
