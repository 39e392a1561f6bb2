"""The mean update of the real classes against exact gradients: Hotelling's T² test, and what it is asked about."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from envs import TabularMDP, TabularVecEnv
from scipy import stats

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg.algorithms.batch import Batch
from sb3_pg.algorithms.policy_gradient import PolicyGradient

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


class GradientStep(NaturalPG):
    """Takes the gradient that NaturalPG would precondition as its step."""

    def __init__(self, *args: Any, max_grad_norm: Any = None, critic_learning_rate: Any = None, **kwargs: Any):
        super().__init__(*args, **kwargs)

    def _step_policy(self, batch: Batch) -> dict[str, float]:
        with th.no_grad():
            for p in self.kind.actor_parameters():
                p -= p.grad
        return {}


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


def tabular_model(
    cls: type[PolicyGradient], mdp: TabularMDP, seed: int, n_envs: int, make_env: Any = TabularVecEnv, **kwargs: Any
) -> PolicyGradient:
    env = make_env(mdp, n_envs, seed)
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
