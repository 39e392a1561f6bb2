"""NaturalPG's step against closed forms, its invariance, its size, and what it refuses."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from envs import ScriptedEnv, TabularMDP, TabularVecEnv
from gymnasium import spaces
from helpers import changed, collect, params
from oracle import EXACT, GAMMA, PLAIN, QUOTA, SIGNIFICANCE, GradientStep, tabular_p_value
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_pg import NaturalPG, VanillaPG
from sb3_pg.algorithms.batch import Batch, make_batch
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.distributed import spreads
from sb3_pg.policies.steps import Steps

LINEAR: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[]), device="cpu", seed=0)
NO_DAMPING = dict(cg_damping=0.0, cg_max_steps=50)


def batch_of(obs: np.ndarray, actions: np.ndarray, weights: np.ndarray) -> Batch:
    nothing = th.zeros(len(obs))
    steps = Steps(th.as_tensor(obs), th.as_tensor(actions))
    return Batch(steps, nothing, th.as_tensor(weights).float(), nothing, *spreads(nothing.double(), nothing.double()))


def set_gradient(model: PolicyGradient, batch: Batch) -> None:
    """Gradient of the loss, as train() leaves it to the step."""
    model.policy.zero_grad()
    log_prob, _ = model.kind.log_prob_and_entropy(batch.steps)
    (-(log_prob * batch.weights).mean()).backward()


def logits(model: PolicyGradient, obs: th.Tensor) -> np.ndarray:
    with th.no_grad():
        return model.policy.get_distribution(obs).distribution.logits.double().numpy()


def closed_form(shares: np.ndarray, pi: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """F⁺g in the logits, (S, A): F is block-diagonal, d(s) (diag π − ππᵀ) for state s."""
    blocks = [share * (np.diag(p) - np.outer(p, p)) for share, p in zip(shares, pi, strict=True)]
    return np.stack([np.linalg.pinv(block) @ g for block, g in zip(blocks, gradient, strict=True)])


def angle(step: np.ndarray, expected: np.ndarray) -> float:
    """Angle between two changes of logits, (S, A), as changes of the policy: a constant a state changes nothing."""
    step, expected = (x - x.mean(axis=1, keepdims=True) for x in (step, expected))
    return float(np.linalg.norm(step / np.linalg.norm(step) - expected / np.linalg.norm(expected)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_step_is_the_closed_form_on_a_tabular_policy(seed: int) -> None:
    # ∇J by dynamic programming
    mdp = TabularMDP(seed)
    model = NaturalPG("MlpPolicy", TabularVecEnv(mdp, 1), gamma=GAMMA, target_kl=1e-4, **NO_DAMPING, **LINEAR)
    rng = np.random.default_rng(seed)
    visits = np.array([500, 300, 200])
    batch = batch_of(np.repeat(np.arange(3), visits), np.zeros(1000, dtype=int), np.zeros(1000))
    states = th.arange(3)
    net = model.policy.action_net
    with th.no_grad():
        net.weight.copy_(th.as_tensor(rng.normal(size=(3, 3))))
    before = logits(model, states)
    z = th.as_tensor(before).requires_grad_()
    (gradient,) = th.autograd.grad(mdp.objective(z, GAMMA), z)
    net.weight.grad, net.bias.grad = -gradient.T.float(), -gradient.sum(dim=0).float()
    model._step_policy(batch)

    step = logits(model, states) - before
    assert angle(step, closed_form(visits / 1000, np.exp(before), gradient.numpy())) < 1e-3


def test_sampled_rollouts_give_the_closed_form_too() -> None:
    # Exact Fisher matrix of the states this rollout visited, gradient of this rollout
    mdp = TabularMDP(3)
    env = TabularVecEnv(mdp, 256, 0)
    model = NaturalPG("MlpPolicy", env, n_episodes=2, weights="reward_to_go", target_kl=1e-4, **NO_DAMPING, **LINEAR)
    collect(model)
    batch = make_batch(model)
    set_gradient(model, batch)
    states = batch.steps.observations.long().flatten()
    gradient = -model.policy.action_net.weight.grad.double().numpy()
    before = logits(model, th.arange(3))
    model._step_policy(batch)
    step = logits(model, th.arange(3)) - before
    shares = np.bincount(states.numpy(), minlength=3) / len(states)
    assert angle(step, closed_form(shares, np.exp(before), gradient.T)) < 1e-3


@pytest.mark.parametrize("target_kl", [1e-4, 1e-3])
@pytest.mark.parametrize(
    "env_id, kwargs",
    [
        ("CartPole-v1", {}),
        ("Pendulum-v1", {}),
        ("Pendulum-v1", dict(use_sde=True)),
        ("CartPole-v1", dict(sub_sampling_factor=4)),
        ("CartPole-v1", dict(weights="reward_to_go")),
    ],
)
def test_a_step_changes_the_policy_by_target_kl(env_id: str, kwargs: dict[str, Any], target_kl: float) -> None:
    # At the default damping, on a network
    model = NaturalPG("MlpPolicy", make_vec_env(env_id, 4, seed=0), target_kl=target_kl, seed=0, **kwargs)
    collect(model)
    batch = make_batch(model)
    set_gradient(model, batch)

    def distribution() -> Any:
        new = type(model.policy.action_dist).__new__(type(model.policy.action_dist))
        new.distribution = model.policy.get_distribution(batch.steps.observations).distribution
        return new

    with th.no_grad():
        old = distribution()
    model._step_policy(batch)
    with th.no_grad():
        kl = kl_divergence(old, distribution()).reshape(len(batch.weights), -1).sum(dim=1).mean().item()
    assert kl == pytest.approx(target_kl, rel=0.2)


def test_the_step_is_no_matter_of_chance_where_the_curvature_is_large() -> None:
    # F⁻¹ĝ is short then: what a solver starts from must not show in the direction
    steps = []
    for seed in (1, 2):
        policy_kwargs = dict(net_arch=[400, 300], log_std_init=-4.0)
        model = NaturalPG("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, seed=0, device="cpu")
        collect(model)
        batch = make_batch(model)
        set_gradient(model, batch)
        old = th.nn.utils.parameters_to_vector(model.kind.actor_parameters()).detach()
        th.manual_seed(seed)
        model._step_policy(batch)
        steps.append(th.nn.utils.parameters_to_vector(model.kind.actor_parameters()).detach() - old)
    assert th.cosine_similarity(*steps, dim=0) > 0.999


def test_sub_sampling_sees_both_phases_of_an_environment() -> None:
    # States alternate: every second step of a rollout in order of time is one and the same state
    env = TabularVecEnv(TabularMDP(0), 1)
    model = NaturalPG("MlpPolicy", env, target_kl=1e-3, sub_sampling_factor=2, **LINEAR)
    rng = np.random.default_rng(0)
    batch = batch_of(np.tile([0, 1], 500), rng.integers(3, size=1000), rng.normal(size=1000))
    before = logits(model, th.arange(3))
    set_gradient(model, batch)
    model._step_policy(batch)
    after = logits(model, th.arange(3))
    kl = (np.exp(before) * (before - after)).sum(axis=1)[:2].mean()
    assert kl == pytest.approx(1e-3, rel=0.2)


class OwnEvaluation(ActorCriticPolicy):
    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        return super().evaluate_actions(obs, actions)


def test_a_policy_with_a_score_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="OwnEvaluation overrides"):
        NaturalPG(OwnEvaluation, "CartPole-v1")


def test_a_wrong_schedule_is_named() -> None:
    model = NaturalPG("MlpPolicy", IdentityEnvBox(ep_length=8), n_steps=16, target_kl=lambda progress: progress - 0.5)
    with pytest.raises(ValueError, match="The schedule of target_kl returned"):
        model.learn(16)
    with pytest.raises(ValueError, match="target_kl must be a number, or a function of the progress remaining"):
        NaturalPG("MlpPolicy", IdentityEnvBox(ep_length=8), target_kl=lambda progress: progress - 2.0)


class FeatureEnv(ScriptedEnv):
    """Four features, three actions: only the spaces matter."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize("cls, kwargs, invariant", [(NaturalPG, NO_DAMPING, True), (VanillaPG, {}, False)])
def test_invariance_to_the_basis_of_the_features(cls: type[PolicyGradient], kwargs: dict[str, Any], invariant: bool) -> None:
    rng = np.random.default_rng(0)
    features, basis = rng.normal(size=(400, 4)), rng.normal(size=(4, 4))
    actions, weights, initial = rng.integers(3, size=400), rng.normal(size=400), rng.normal(size=(3, 4))
    results = []
    for transform in (np.eye(4), basis):
        model = cls("MlpPolicy", FeatureEnv(), **{**kwargs, **LINEAR})
        obs = (features @ transform.T).astype(np.float32)
        with th.no_grad():  # the same policy in other coordinates
            model.policy.action_net.weight.copy_(th.as_tensor(initial @ np.linalg.inv(transform)))
        batch = batch_of(obs, actions, weights)
        before = logits(model, batch.steps.observations)
        set_gradient(model, batch)
        model._step_policy(batch)
        results.append(logits(model, batch.steps.observations) - before)
    difference = np.linalg.norm(results[0] - results[1]) / np.linalg.norm(results[0])
    assert (difference < 1e-2) == invariant


@pytest.mark.parametrize("kwargs", [kwargs for cls, kwargs in EXACT if cls is VanillaPG])
def test_its_gradient_is_exact(kwargs: dict[str, Any]) -> None:
    assert PLAIN["learning_rate"] == 1.0
    assert tabular_p_value(GradientStep, seed=5, **kwargs, **QUOTA) > SIGNIFICANCE


@pytest.mark.parametrize("normalize_advantage", [True, False])
def test_no_step_without_a_gradient(normalize_advantage: bool) -> None:
    model = NaturalPG(
        "MlpPolicy", ScriptedEnv([5], reward=0.0), weights="reward_to_go", n_episodes=2, seed=0,
        normalize_advantage=normalize_advantage,
    )  # fmt: skip
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(20)
    assert all(th.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))


def test_the_scale_of_the_weights_does_not_matter() -> None:
    results = []
    for reward in (1e-4, 1.0, 1e4):
        env = make_vec_env(
            lambda reward=reward: gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda r: reward * r), 2, seed=0
        )
        model = NaturalPG(
            "MlpPolicy", env, weights="reward_to_go", n_episodes=2, normalize_advantage=False, seed=0, device="cpu"
        )
        model.learn(1)
        results.append(model.policy.action_net.weight.detach().clone())
    for other in results[1:]:
        th.testing.assert_close(other, results[0], rtol=1e-2, atol=1e-4)


def test_target_kl_takes_a_schedule() -> None:
    model = NaturalPG("MlpPolicy", IdentityEnvBox(ep_length=8), n_steps=16, target_kl=lambda progress: 0.01 * progress, seed=0)
    model.learn(64)
    before = model.policy.action_net.weight.clone()
    model._current_progress_remaining = 0.0
    model.train()
    assert th.equal(model.policy.action_net.weight, before)
    assert model.logger.name_to_value["train/target_kl"] == 0.0


def test_the_critic_is_left_alone_and_shared_features_follow_the_actor() -> None:
    model = NaturalPG("MlpPolicy", "CartPole-v1", n_steps=64, n_critic_updates=0, seed=0)
    critic = [p.clone() for p in model.kind.critic_parameters()]
    model.learn(64)
    assert all(th.equal(old, new) for old, new in zip(critic, model.kind.critic_parameters(), strict=True))


class Attention(FlattenExtractor):
    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space)
        self.embed, self.attention = nn.Linear(1, 8), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self._features_dim = 8

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.attention(self.embed(observations[..., None])).mean(dim=1)


class Memory(FlattenExtractor):
    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space)
        self.lstm = nn.LSTM(1, 8, batch_first=True)
        self._features_dim = 8

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.lstm(observations[..., None])[0][:, -1]


@pytest.mark.parametrize("extractor", [Attention, Memory])
def test_layers_whose_fast_kernels_have_no_second_derivative(extractor: type[FlattenExtractor]) -> None:
    policy_kwargs = dict(features_extractor_class=extractor)
    model = NaturalPG("MlpPolicy", "CartPole-v1", n_steps=64, policy_kwargs=policy_kwargs, seed=0)
    before = params(model)
    model.learn(64)
    assert {name for name in before if "features_extractor" in name} - {
        "features_extractor.attention.self_attn.in_proj_bias",  # keys do not feel their bias
    } <= changed(before, model)
    assert 0.005 < model.logger.name_to_value["train/approx_kl"] < 0.02  # target_kl is 0.01
    assert th.backends.mkldnn.enabled


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        (dict(target_kl=-0.1), ValueError, "target_kl"),
        (dict(target_kl="big"), TypeError, "target_kl"),
        (dict(cg_max_steps=0), ValueError, "cg_max_steps"),
        (dict(cg_damping=-1.0), ValueError, "cg_damping"),
        (dict(sub_sampling_factor=0), ValueError, "sub_sampling_factor"),
        (dict(sub_sampling_factor=0.5), TypeError, "sub_sampling_factor"),
        (dict(max_grad_norm=0.5), TypeError, "max_grad_norm"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NaturalPG("MlpPolicy", "CartPole-v1", **kwargs)
