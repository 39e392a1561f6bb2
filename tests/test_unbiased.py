"""The mean update of the real classes against exact gradients, under Hotelling's T² test."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from envs import TabularMDP, TabularVecEnv, TwoStepGaussianEnv
from scipy import stats
from stable_baselines3.common.env_util import make_vec_env

from sb3_pg import ReinforceBaseline, VanillaPG
from sb3_pg.buffers import EpisodeRolloutBuffer
from sb3_pg.policy_gradient import PolicyGradient

# An exact estimator fails with this probability, for the seeds that are fixed here; a biased one has to be rejected beyond it
SIGNIFICANCE = 1e-3
GAMMA = 0.8
LEARNING_RATE = 1.0

PLAIN: dict[str, Any] = dict(
    learning_rate=LEARNING_RATE,
    critic_learning_rate=0.0,
    max_grad_norm=None,
    normalize_advantage=False,
    gamma=GAMMA,
    n_critic_updates=1,
    device="cpu",
    policy_kwargs=dict(net_arch=[], optimizer_class=th.optim.SGD),
)


def hotelling(samples: np.ndarray, expected: np.ndarray) -> float:
    """p-value of «the mean of these samples, (n, d), is the expected one»."""
    n, d = samples.shape
    error = samples.mean(axis=0) - expected
    t_squared = n * error @ np.linalg.solve(np.cov(samples.T), error)
    return float(stats.f.sf(t_squared * (n - d) / (d * (n - 1)), d, n - d))


def without_direction(samples: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Coordinates orthogonal to a direction: their mean is 0 if the mean points that way, whatever its length."""
    return samples @ np.linalg.svd(direction[None])[2][1:].T


def mean_updates(model: PolicyGradient, n_rollouts: int, read: Callable[[], th.Tensor]) -> np.ndarray:
    """Changes of the parameters by one rollout and update, from the same parameters each time, (n_rollouts, d)."""
    _, callback = model._setup_learn(10**9)
    initial = {key: value.clone() for key, value in model.policy.state_dict().items()}
    before, updates = read().clone(), []
    for _ in range(n_rollouts):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        model.train()
        updates.append((read() - before).numpy() / LEARNING_RATE)
        model.policy.load_state_dict(initial)
    return np.array(updates, dtype=np.float64)


def tabular_model(cls: type[PolicyGradient], mdp: TabularMDP, seed: int, n_envs: int, **kwargs: Any) -> PolicyGradient:
    env = TabularVecEnv(mdp, n_envs, seed)
    model = cls("MlpPolicy", env, seed=seed, **{**PLAIN, **kwargs})
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for p in model.policy.action_net.parameters():
            p.copy_(0.7 * th.randn(p.shape, generator=generator))
        for p in model.policy.value_net.parameters():  # deliberately wrong
            p.copy_(1.5 * th.randn(p.shape, generator=generator))
    return model


def tabular_p_value(
    cls: type[PolicyGradient],
    seed: int,
    n_envs: int = 32,
    n_rollouts: int = 300,
    direction_only: bool = False,
    right_critic: bool = False,
    **kwargs: Any,
) -> float:
    mdp = TabularMDP(seed)
    model = tabular_model(cls, mdp, seed, n_envs, **kwargs)
    net = model.policy.action_net
    if right_critic:
        with th.no_grad():
            model.policy.value_net.weight[0] = th.as_tensor(mdp.values(net.weight, net.bias, model.gamma))
            model.policy.value_net.bias.zero_()
    exact = mdp.gradient(net.weight, net.bias, model.gamma)
    updates = mean_updates(model, n_rollouts, lambda: net.weight.detach()[:-1].flatten())
    if direction_only:
        return hotelling(without_direction(updates, exact), np.zeros(len(exact) - 1))
    if model.n_episodes is None:
        exact = exact * mdp.episodes_in_window(net.weight, net.bias, model.n_steps) / model.n_steps
    return hotelling(updates, exact)


DISCOUNTED = dict(discounted_state_distribution=True)
QUOTA, WINDOW = dict(n_episodes=2), dict(n_steps=3)
EXACT = [
    (VanillaPG, dict(weights="return")),
    (VanillaPG, dict(weights="reward_to_go", **DISCOUNTED)),
    (VanillaPG, dict(weights="reward_to_go", gamma=1.0)),
    (ReinforceBaseline, dict(weights="reward_to_go", baseline="value", **DISCOUNTED)),
    (ReinforceBaseline, dict(weights="reward_to_go", baseline="leave_one_out", **DISCOUNTED)),
    (ReinforceBaseline, dict(weights="reward_to_go", baseline="running_mean", **DISCOUNTED)),
    (ReinforceBaseline, dict(weights="reward_to_go", baseline="optimal", n_rollouts=100, **DISCOUNTED)),
    (ReinforceBaseline, dict(weights="return", baseline="value")),
    (ReinforceBaseline, dict(weights="return", baseline="leave_one_out")),
    (ReinforceBaseline, dict(weights="return", baseline="running_mean")),
    (ReinforceBaseline, dict(weights="return", baseline="optimal", n_rollouts=100)),
]
EXACT_QUOTA_ONLY = [
    (VanillaPG, dict(weights="gae", gae_lambda=1.0, **DISCOUNTED)),
    (VanillaPG, dict(weights="gae", gae_lambda=1.0, gamma=1.0)),
    (ReinforceBaseline, dict(weights="gae", gae_lambda=1.0, **DISCOUNTED)),
]


@pytest.mark.parametrize("cls, kwargs", EXACT)
@pytest.mark.parametrize("extent", [QUOTA, WINDOW], ids=["quota", "window"])
def test_exact_rows(cls: type[PolicyGradient], kwargs: dict[str, Any], extent: dict[str, Any]) -> None:
    assert tabular_p_value(cls, seed=1, **kwargs, **extent) > SIGNIFICANCE


@pytest.mark.parametrize("cls, kwargs", EXACT_QUOTA_ONLY)
def test_exact_rows_of_gae(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    assert tabular_p_value(cls, seed=2, **kwargs, **QUOTA) > SIGNIFICANCE


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7])
def test_gae_is_exact_with_the_true_values(gae_lambda: float) -> None:
    p = tabular_p_value(VanillaPG, 3, gae_lambda=gae_lambda, right_critic=True, **DISCOUNTED, **QUOTA)
    assert p > SIGNIFICANCE


def test_cut_rollouts_carry_the_clock_over() -> None:
    # With the true values, a cut rollout of λ = 0 estimates Σₜ γᵗ over steps that continue from rollout to rollout: in the
    # long run the fraction of starts a step is 1 / E[T], and the mean update points along ∇J
    p = tabular_p_value(VanillaPG, 4, gae_lambda=0.0, right_critic=True, direction_only=True, n_steps=2, **DISCOUNTED)
    assert p > SIGNIFICANCE


# The same test rejects what is biased: it has power


@pytest.mark.parametrize("extent", [QUOTA, WINDOW], ids=["quota", "window"])
@pytest.mark.parametrize(
    "cls, kwargs",
    [
        (VanillaPG, dict(weights="reward_to_go")),  # no γᵗ at γ < 1
        (ReinforceBaseline, dict(weights="reward_to_go", baseline="value")),
        (ReinforceBaseline, dict(weights="gae", gae_lambda=0.0, **DISCOUNTED)),  # wrong critic
        (ReinforceBaseline, dict(weights="gae", gae_lambda=0.7, **DISCOUNTED)),
    ],
)
def test_biased_rows_are_rejected(cls: type[PolicyGradient], kwargs: dict[str, Any], extent: dict[str, Any]) -> None:
    assert tabular_p_value(cls, seed=1, direction_only=True, **kwargs, **extent) < SIGNIFICANCE


class FirstFinished(EpisodeRolloutBuffer):
    """Uses the episodes of the environments that finish first."""

    def trim(self) -> None:
        super().trim()
        started_again = np.vstack([self.episode_starts[1:], np.ones(self.n_envs)])
        self.mask[:, np.argsort(started_again.argmax(axis=0), kind="stable")[self.n_envs // 2 :]] = False


class DropStraddling(EpisodeRolloutBuffer):
    """Uses the episodes that end within the window only."""

    def trim(self) -> None:
        super().trim()
        for env in range(self.n_envs):
            starts = np.flatnonzero(self.episode_starts[: self.window + 1, env])
            self.mask[starts[-1] :, env] = False

    window = WINDOW["n_steps"]


class BatchMean(ReinforceBaseline):
    """Subtracts a mean that contains the episode's own return."""

    def _subtract_baseline(self, rollout_buffer: EpisodeRolloutBuffer, dones: np.ndarray) -> None:
        rollout_buffer.advantages -= rollout_buffer.advantages[rollout_buffer.mask & (rollout_buffer.timesteps == 0)].mean()


class CollectedCount(VanillaPG):
    """Divides by the number of steps that were collected."""

    @property
    def _normalizer(self) -> int:
        return int(self.rollout_buffer.mask.sum())


@pytest.mark.parametrize(
    "cls, kwargs",
    [
        (VanillaPG, dict(weights="return", rollout_buffer_class=FirstFinished, n_episodes=1, n_envs=6, n_rollouts=2000)),
        (VanillaPG, dict(weights="return", rollout_buffer_class=DropStraddling, **WINDOW)),
        (CollectedCount, dict(weights="return", n_episodes=1, n_envs=2, n_rollouts=3000)),
    ],
    ids=["first finished", "straddling dropped", "divided by collected steps"],
)
def test_wrong_collections_are_rejected(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    assert tabular_p_value(cls, seed=1, direction_only=True, **kwargs) < SIGNIFICANCE


def test_batch_mean_is_rejected() -> None:
    # It scales the gradient by 1 − 1/n: the direction is right, the length is not
    p = tabular_p_value(BatchMean, 1, n_envs=4, n_rollouts=1500, weights="return", baseline="running_mean", n_episodes=1)
    assert p < SIGNIFICANCE


@pytest.mark.parametrize(
    "cls, kwargs, exact",
    [
        (VanillaPG, dict(weights="return"), True),
        (VanillaPG, dict(weights="reward_to_go", **DISCOUNTED), True),
        (VanillaPG, dict(weights="gae", gae_lambda=1.0, **DISCOUNTED), True),
        (ReinforceBaseline, dict(baseline="value", **DISCOUNTED), True),
        (ReinforceBaseline, dict(baseline="leave_one_out", **DISCOUNTED), True),
        (ReinforceBaseline, dict(baseline="optimal", **DISCOUNTED), True),
        (VanillaPG, dict(weights="reward_to_go", gamma=0.2), False),
        (VanillaPG, dict(weights="gae", gae_lambda=0.0, **DISCOUNTED), False),
    ],
)
def test_gaussian_policy(cls: type[PolicyGradient], kwargs: dict[str, Any], exact: bool) -> None:
    model = cls("MlpPolicy", make_vec_env(TwoStepGaussianEnv, 16), seed=5, **{**PLAIN, **kwargs}, n_episodes=1)
    policy = model.policy
    parameters = [policy.action_net.weight, policy.action_net.bias, policy.log_std]
    with th.no_grad():
        for p, value in zip(parameters, [-0.3, 0.4, -0.2], strict=True):
            p.fill_(value)
        policy.value_net.bias.fill_(2.0)
    updates = mean_updates(model, 500, lambda: th.cat([p.detach().flatten() for p in parameters]))
    p_value = hotelling(updates, TwoStepGaussianEnv.gradient(-0.3, 0.4, -0.2, model.gamma))
    assert (p_value > SIGNIFICANCE) == exact
