"""The mean update of the real classes against exact gradients, under Hotelling's T² test."""

from typing import Any

import numpy as np
import pytest
import torch as th
from envs import TwoStepGaussianEnv
from oracle import DISCOUNTED, EXACT, PLAIN, QUOTA, SIGNIFICANCE, WINDOW, hotelling, mean_updates, tabular_p_value
from stable_baselines3.common.env_util import make_vec_env

from sb3_pg import ReinforceBaseline, VanillaPG
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.rollouts.buffers import EpisodeRolloutBuffer

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
