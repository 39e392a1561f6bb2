"""The critic in units of its targets' scale: what that changes, and what it must not."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from helpers import CLASSES, params
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_pg import NaturalPG, VanillaPG
from sb3_pg.algorithms.batch import make_batch
from sb3_pg.algorithms.critic import fit_critic
from sb3_pg.algorithms.policy_gradient import PolicyGradient

# A power of two: multiplying by it rounds nothing
FACTOR = 1024.0


class OwnWayToV(ActorCriticPolicy):
    """Has no linear layer whose output is known to be V."""

    def predict_values(self, obs: th.Tensor) -> th.Tensor:
        return super().predict_values(obs)


def make_scaled(
    factor: float, policy: Any = "MlpPolicy", cls: type[PolicyGradient] = VanillaPG, **kwargs: Any
) -> PolicyGradient:
    env = gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward: factor * (reward - 3.0))
    kwargs = dict(n_steps=64, seed=0, device="cpu") | kwargs
    model = cls(policy, env, **kwargs)
    with th.no_grad():
        for parameter in model.policy.value_net.parameters():
            parameter.zero_()  # a V that starts at another scale is another start
    return model


def test_rewards_of_another_scale_train_the_same() -> None:
    """γ and λ of 1 keep the targets whole numbers; with the option off the same test fails."""

    def weights(factor: float, **kwargs: Any) -> tuple[dict[str, th.Tensor], dict[str, th.Tensor]]:
        model = make_scaled(factor, **kwargs).learn(64 * 6)
        head = {name: x / factor for name, x in params(model).items() if name.startswith("value_net")}
        return head, {name: x for name, x in params(model).items() if not name.startswith("value_net")}

    for kwargs in ({}, dict(cls=NaturalPG), dict(policy="MlpLstmPolicy")):
        th.testing.assert_close(weights(1.0, **kwargs), weights(FACTOR, **kwargs), rtol=2e-4, atol=2e-5)
    with pytest.raises(AssertionError):
        th.testing.assert_close(
            weights(1.0, normalize_targets=False), weights(FACTOR, normalize_targets=False), rtol=2e-4, atol=2e-5
        )


@pytest.mark.parametrize("cls, kwargs", CLASSES)
def test_the_scale_alone_moves_no_value(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    """The last layer is divided and multiplied back; where no step was taken, bit for bit."""
    rates: dict[str, Any] = dict(learning_rate=0.0) if cls is NaturalPG else dict(critic_learning_rate=0.0)
    model = cls("MlpPolicy", "Pendulum-v1", n_critic_updates=3, seed=0, **kwargs, **rates)
    before = params(model)
    model.learn(64)
    for name, value in params(model).items():
        assert "value" not in name or th.equal(value, before[name])


@pytest.mark.parametrize("policy", ["MlpPolicy", OwnWayToV])
def test_the_critics_step_is_that_of_targets_divided_by_their_scale(policy: Any) -> None:
    """One step of SGD on the whole rollout, against the same by hand."""
    model = make_scaled(
        100.0, policy, policy_kwargs=dict(optimizer_class=th.optim.SGD), learning_rate=0.1, batch_size=64, max_grad_norm=None
    )
    model.learn(64)
    model.n_critic_updates = 0  # fill a rollout, and leave the critic to what follows
    model.learn(64, reset_num_timesteps=False)
    model.n_critic_updates = 1
    batch = make_batch(model)
    square, weight = model.target_moments
    targets, values = batch.returns.double().numpy(), batch.values.double().numpy()
    square = 0.9 * square + 0.1 * max(targets.var(), np.square(targets - values).mean())
    scale = (square / (0.9 * weight + 0.1)) ** 0.5
    before = params(model)
    metrics = fit_critic(model, batch)
    after = params(model)
    assert metrics["value_loss"] == pytest.approx(np.square(targets - values).mean(), rel=1e-4)  # in units of reward

    for name, parameter in model.policy.named_parameters():
        with th.no_grad():
            parameter.copy_(before[name])
    head = model.policy.value_net
    if policy == "MlpPolicy":
        with th.no_grad():
            head.weight /= scale
            head.bias /= scale
    v = model.policy.predict_values(batch.steps.observations).flatten() / (1.0 if policy == "MlpPolicy" else scale)
    parameters = model.kind.critic_parameters()
    gradients = th.autograd.grad((v - batch.returns / scale).square().mean(), parameters)
    with th.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= 0.1 * gradient
        if policy == "MlpPolicy":
            head.weight *= scale
            head.bias *= scale
    th.testing.assert_close(params(model), after, rtol=1e-4, atol=1e-5)
    assert not th.equal(after["value_net.weight"], before["value_net.weight"])


def test_a_critic_without_anything_to_learn_stays_finite() -> None:
    env = gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward: 0.0)
    model = VanillaPG("MlpPolicy", env, n_steps=32, learning_rate=1e-3, seed=0)
    observations = 0.1 * th.randn(64, 4, device=model.device)

    def size() -> float:
        return model.policy.predict_values(observations).square().mean().sqrt().item()

    before = size()
    model.learn(32 * 200)
    assert size() < 0.5 * before
    assert all(bool(x.isfinite().all()) for x in params(model).values())


def test_the_scale_is_saved_and_off_means_off(tmp_path: Path) -> None:
    model = VanillaPG("MlpPolicy", "Pendulum-v1", n_steps=32, seed=0).learn(96)
    model.save(tmp_path / "model")
    loaded = VanillaPG.load(tmp_path / "model")
    assert tuple(loaded.target_moments) == model.target_moments != (0.0, 0.0)
    off = VanillaPG("MlpPolicy", "Pendulum-v1", n_steps=32, seed=0, normalize_targets=False).learn(96)
    assert off.target_moments == (0.0, 0.0)


def test_a_head_that_is_not_the_critics_alone_is_left_alone() -> None:
    model = VanillaPG("MlpPolicy", "Pendulum-v1", n_steps=32, seed=0)
    assert model.kind.value_head() is model.policy.value_net
    model.policy.value_net.bias.requires_grad_(False)
    assert model.kind.value_head() is None
    before = params(model)
    model.learn(64)
    assert th.equal(params(model)["value_net.bias"], before["value_net.bias"])
    hooked = VanillaPG("MlpPolicy", "Pendulum-v1", n_steps=32, seed=0)
    hooked.policy.value_net.register_forward_hook(lambda module, args, output: output + 1.0)
    assert hooked.kind.value_head() is None
    replaced = VanillaPG("MlpPolicy", "Pendulum-v1", n_steps=32, seed=0)
    replaced.policy.value_net = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 1))
    assert replaced.kind.value_head() is None
    replaced.learn(64)
