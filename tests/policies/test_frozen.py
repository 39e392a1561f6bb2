"""Parts of a policy that the user has frozen."""

from typing import Any

import pytest
import torch as th
from helpers import VARIANTS, changed, params, variants
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_pg import NaturalPG, ReinforceBaseline
from sb3_pg.algorithms.policy_gradient import PolicyGradient


def make_env() -> VecEnv:
    return make_vec_env("CartPole-v1", 2, seed=0)


@variants
def test_a_frozen_actor(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    model = cls("MlpPolicy", make_env(), seed=0, **kwargs)
    for p in model.kind.actor_parameters():
        p.requires_grad_(False)
    before = params(model)
    updated = changed(before, model.learn(64))
    assert all("value" in name for name in updated) and bool(updated) == model.uses_critic
    assert model.logger.name_to_value["train/grad_norm"] == 0.0


@variants
def test_a_frozen_critic(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    model = cls("MlpPolicy", make_env(), seed=0, **kwargs)
    for p in model.kind.critic_parameters():
        p.requires_grad_(False)
    before = params(model)
    updated = changed(before, model.learn(64))
    assert "action_net.weight" in updated and not any("value" in name for name in updated)


@pytest.mark.parametrize("cls, kwargs", [VARIANTS[0], (ReinforceBaseline, dict(baseline="optimal", n_steps=16)), VARIANTS[-2]])
def test_all_is_frozen_but_what_nothing_depends_on(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    model = cls("MlpPolicy", make_env(), seed=0, **kwargs)
    model.policy.requires_grad_(False)
    model.policy.unused = nn.Parameter(th.zeros(3))
    before = params(model)
    assert not changed(before, model.learn(64))


def test_frozen_memory() -> None:
    model = NaturalPG("MlpLstmPolicy", make_env(), n_steps=16, policy_kwargs=dict(lstm_hidden_size=8), seed=0)
    model.policy.lstm_actor.requires_grad_(False)
    before = params(model)
    updated = changed(before, model.learn(64))
    assert "action_net.weight" in updated and not any("lstm_actor" in name for name in updated)
