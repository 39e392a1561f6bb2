"""The oracle for policies with memory and masks: the mean update of the real classes against exact gradients."""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th
from oracle import (
    DISCOUNTED,
    EXACT,
    PLAIN,
    QUOTA,
    SIGNIFICANCE,
    WINDOW,
    GradientStep,
    hotelling,
    mean_updates,
    without_direction,
)
from partial import MaskedMDP, MaskedVecEnv, Pomdp, PomdpVecEnv
from torch import nn

from sb3_pg import ReinforceBaseline, VanillaPG
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.policies import masked, recurrent

GAE = (VanillaPG, dict(weights="gae", gae_lambda=1.0, **DISCOUNTED))
VALUE_GAE = (ReinforceBaseline, dict(weights="gae", gae_lambda=1.0, **DISCOUNTED))


def p_value(model: PolicyGradient, exact: np.ndarray, n_rollouts: int, n_directions: int) -> float:
    """Along random directions: the scores span fewer dimensions than there are parameters."""
    directions = np.random.default_rng(0).normal(size=(len(exact), n_directions))
    parameters = model.kind.actor_parameters()
    updates = mean_updates(model, n_rollouts, lambda: th.cat([p.detach().flatten() for p in parameters])) @ directions
    exact = exact @ directions
    if model.n_episodes is None:  # the window holds a number of episodes that scales the gradient
        return hotelling(without_direction(updates, exact), np.zeros(n_directions - 1))
    return hotelling(updates, exact)


def pomdp_p_value(
    cls: type[PolicyGradient],
    seed: int = 0,
    with_masks: bool = False,
    layout: Any = None,
    n_rollouts: int = 250,
    **kwargs: Any,
) -> float:
    pomdp = Pomdp(seed)
    if with_masks:
        pomdp = Pomdp(seed, n_actions=3)
        pomdp.legal = ~np.eye(pomdp.n_obs, pomdp.n_actions, dtype=bool)
    policy_kwargs = {**PLAIN["policy_kwargs"], "lstm_hidden_size": 3, **(layout or {})}
    policy = "MaskableMlpLstmPolicy" if with_masks else "MlpLstmPolicy"
    n_envs = 16 if kwargs.get("baseline") == "optimal" else 64  # two gradients an episode
    model = cls(policy, PomdpVecEnv(pomdp, n_envs, seed), seed=seed, **{**PLAIN, **kwargs, "policy_kwargs": policy_kwargs})
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for p in model.policy.parameters():  # far from uniform, and a critic that is wrong
            p.copy_(0.8 * th.randn(p.shape, generator=generator))
    exact_policy = copy.deepcopy(model.policy).double()
    of_actor = {id(p) for p in model.kind.actor_parameters()}
    names = [name for name, p in model.policy.named_parameters() if id(p) in of_actor]
    parameters = [dict(exact_policy.named_parameters())[name] for name in names]
    gradient = th.autograd.grad(pomdp.objective(exact_policy, model.gamma), parameters)
    exact = th.cat([g.flatten() for g in gradient]).numpy()
    return p_value(model, exact, n_rollouts, n_directions=10)


@pytest.mark.parametrize("cls, kwargs", [*EXACT, GAE, VALUE_GAE])
def test_exact_rows_with_memory(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    assert pomdp_p_value(cls, **kwargs, **QUOTA) > SIGNIFICANCE


@pytest.mark.parametrize("cls, kwargs", [EXACT[0], EXACT[1], EXACT[3]])
def test_exact_rows_with_memory_in_a_window(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    assert pomdp_p_value(cls, **kwargs, **WINDOW) > SIGNIFICANCE


@pytest.mark.parametrize(
    "layout", [dict(enable_critic_lstm=False), dict(enable_critic_lstm=False, shared_lstm=True), dict(n_lstm_layers=2)]
)
def test_exact_for_every_layout(layout: dict[str, Any]) -> None:
    assert pomdp_p_value(*GAE[:1], layout=layout, **GAE[1], **QUOTA) > SIGNIFICANCE


@pytest.mark.parametrize("cls, kwargs", [EXACT[1], EXACT[3], GAE])
def test_exact_with_memory_and_masks(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    assert pomdp_p_value(cls, with_masks=True, **kwargs, **QUOTA) > SIGNIFICANCE


@pytest.mark.parametrize("with_masks", [False, True])
def test_the_gradient_that_naturalpg_preconditions_is_exact(with_masks: bool) -> None:
    assert pomdp_p_value(GradientStep, with_masks=with_masks, weights="reward_to_go", **DISCOUNTED, **QUOTA) > SIGNIFICANCE


# The same test rejects what is wrong: it has power


class CutLSTM(nn.LSTM):
    """Carries its memory, but no gradient through it."""

    def forward(self, x: th.Tensor, states: Any = None) -> Any:
        outputs = []
        for features in x:
            states = None if states is None else tuple(s.detach() for s in states)
            out, states = super().forward(features[None], states)
            outputs.append(out)
        return th.cat(outputs), states


@pytest.mark.parametrize("mistake", ["not carried", "not reset", "gradient cut"])
def test_mistakes_with_memory_are_rejected(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mistake == "gradient cut":
        monkeypatch.setattr("sb3_contrib.common.recurrent.policies.nn.LSTM", CutLSTM)
    else:
        observe = recurrent.RecurrentKind._observe

        def mistaken(self: Any, episode_starts: np.ndarray) -> dict[str, np.ndarray]:
            """Marks every step as an episode's first, or none but the rollout's: acts with the right memory all the same."""
            begins = mistake == "not carried" or (self._goes_on != recurrent._GOES_ON).all()
            context = dict(observe(self, episode_starts))
            context["segment"] = np.full_like(context["segment"], recurrent._BEGINS if begins else recurrent._GOES_ON)
            return context

        monkeypatch.setattr(recurrent.RecurrentKind, "_observe", mistaken)
    assert pomdp_p_value(VanillaPG, weights="reward_to_go", **DISCOUNTED, **QUOTA) < SIGNIFICANCE


# Masks


def masked_p_value(cls: type[PolicyGradient], seed: int = 1, n_rollouts: int = 250, **kwargs: Any) -> float:
    mdp = MaskedMDP(seed)
    model = cls("MaskableMlpPolicy", MaskedVecEnv(mdp, 32, seed), seed=seed, **{**PLAIN, **kwargs})
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for p in model.policy.parameters():
            p.copy_(th.randn(p.shape, generator=generator))
    net = model.policy.action_net
    z = (net.weight + net.bias[:, None]).T.detach().double().requires_grad_()
    (gradient,) = th.autograd.grad(mdp.objective(z, model.gamma), z)
    exact = np.concatenate([gradient.T.flatten(), gradient.sum(dim=0)])
    return p_value(model, exact, n_rollouts, n_directions=3)  # each of the three states has two legal actions


@pytest.mark.parametrize("cls, kwargs", [*EXACT, GAE, VALUE_GAE])
def test_exact_rows_with_masks(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    assert masked_p_value(cls, **kwargs, **QUOTA) > SIGNIFICANCE


@pytest.mark.parametrize("cls, kwargs", [EXACT[0], EXACT[1], EXACT[3]])
def test_exact_rows_with_masks_in_a_window(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    assert masked_p_value(cls, **kwargs, **WINDOW) > SIGNIFICANCE


def test_the_gradient_that_naturalpg_preconditions_is_exact_with_masks() -> None:
    assert masked_p_value(GradientStep, weights="reward_to_go", **DISCOUNTED, **QUOTA) > SIGNIFICANCE


def test_scores_without_the_mask_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    score = masked.MaskedKind._score

    def without(self: Any, steps: Any, *memory: Any) -> Any:
        masks = th.ones_like(steps.context["action_masks"])
        return score(self, type(steps)(steps.observations, steps.actions, {"action_masks": masks}), *memory)

    monkeypatch.setattr(masked.MaskedKind, "_score", without)
    assert masked_p_value(VanillaPG, weights="reward_to_go", **DISCOUNTED, **QUOTA) < SIGNIFICANCE
