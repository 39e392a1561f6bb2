"""Policy-gradient weights and baselines as pure NumPy functions.

Arrays of a rollout are ``(n_steps, n_envs)``: one column an environment, one row a vector step. ``dones[t, e]`` is True
where step ``t`` of environment ``e`` was the last of its episode, terminated or truncated alike; what differs between the
two is ``next_values`` (see :func:`gae`). The first row starts an episode unless stated otherwise. Everything is computed in
float64 and vectorised over environments.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _check_shapes(**arrays: NDArray) -> None:
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
        raise ValueError(f"Expected arrays of one shape (n_steps, n_envs), got {shapes}")


def _discounted_sum(x: ArrayLike, factors: ArrayLike) -> Array:
    """y[t] = x[t] + factors[t] · y[t+1], with y = 0 after the last row. Both ``(n_steps, n_envs)``."""
    x = np.asarray(x, dtype=np.float64)
    factors = np.asarray(factors, dtype=np.float64)
    if x.shape[1] <= 16:  # a NumPy call a row costs more than Python's floats for a few columns
        return np.array([_discounted_sum_of_column(*c) for c in zip(x.T.tolist(), factors.T.tolist(), strict=True)]).T
    y = np.empty_like(x)
    following = np.zeros(x.shape[1])
    for t in range(len(x) - 1, -1, -1):
        following = x[t] + factors[t] * following
        y[t] = following
    return y


def _discounted_sum_of_column(x: list[float], factors: list[float]) -> list[float]:
    y, following = [], 0.0
    for term, factor in zip(reversed(x), reversed(factors), strict=True):
        following = term + factor * following
        y.append(following)
    return y[::-1]


def first_rows(dones: ArrayLike) -> NDArray[np.intp]:
    """Row in which the episode of each step begins; 0 for the episode in progress at the first row.

    :param dones: last steps of episodes, ``(n_steps, n_envs)``
    :return: row numbers, ``(n_steps, n_envs)``
    """
    dones = np.asarray(dones, dtype=bool)
    starts = np.zeros(dones.shape, dtype=np.intp)
    starts[1:] = np.where(dones[:-1], np.arange(1, len(dones))[:, None], 0)
    return np.maximum.accumulate(starts, axis=0)


def episode_first(x: ArrayLike, dones: ArrayLike) -> Array:
    """The value of ``x`` at the first step of the episode, repeated over its steps.

    :param x: ``(n_steps, n_envs)``
    :param dones: last steps of episodes, ``(n_steps, n_envs)``
    :return: ``(n_steps, n_envs)``
    """
    return np.take_along_axis(np.asarray(x, dtype=np.float64), first_rows(dones), axis=0)


def reward_to_go(rewards: ArrayLike, dones: ArrayLike, gamma: float) -> Array:
    """Discounted reward-to-go of every step: Gₜ = rₜ + γ Gₜ₊₁ within the episode, G_T = 0 (Sutton & Barto 2018, eq. 3.8).

    An episode ends where ``dones`` says so, by termination or by truncation: nothing is bootstrapped. Steps of an episode
    that the array cuts off see the rewards up to the last row only.

    :param rewards: ``(n_steps, n_envs)``
    :param dones: last steps of episodes, ``(n_steps, n_envs)``
    :param gamma: discount factor γ in [0, 1]
    :return: Gₜ, ``(n_steps, n_envs)``
    :raises ValueError: if the shapes differ
    """
    rewards, dones = np.asarray(rewards), np.asarray(dones, dtype=bool)
    _check_shapes(rewards=rewards, dones=dones)
    return _discounted_sum(rewards, gamma * ~dones)


def total_return(rewards: ArrayLike, dones: ArrayLike, gamma: float) -> Array:
    """Discounted return of the whole episode, R(τ) = Σₜ γᵗ rₜ, repeated over the episode's steps (Williams 1992).

    :param rewards: ``(n_steps, n_envs)``
    :param dones: last steps of episodes, ``(n_steps, n_envs)``
    :param gamma: discount factor γ in [0, 1]
    :return: R(τ), ``(n_steps, n_envs)``
    :raises ValueError: if the shapes differ
    """
    return episode_first(reward_to_go(rewards, dones, gamma), dones)


def gae(
    rewards: ArrayLike, values: ArrayLike, next_values: ArrayLike, dones: ArrayLike, gamma: float, gae_lambda: float
) -> Array:
    """Generalised advantage estimator, Schulman et al. 2016, eq. 16: Âₜ = Σₗ (γλ)ˡ δₜ₊ₗ, δₜ = rₜ + γ V(sₜ₊₁) − V(sₜ).

    λ = 0 is the one-step TD error, λ = 1 is Gₜ − V(sₜ). The sum stops at the end of the episode and at the last row.

    :param rewards: ``(n_steps, n_envs)``
    :param values: V(sₜ), ``(n_steps, n_envs)``
    :param next_values: V of the state that step t reached: 0 where the episode terminated there, V of the terminal
        observation where it was truncated, ``values[t + 1]`` elsewhere, ``(n_steps, n_envs)``
    :param dones: last steps of episodes, ``(n_steps, n_envs)``
    :param gamma: discount factor γ in [0, 1]
    :param gae_lambda: λ in [0, 1]
    :return: Âₜ, ``(n_steps, n_envs)``; ``gae(…) + values`` is the λ-return
    :raises ValueError: if the shapes differ
    """
    rewards, values = np.asarray(rewards, dtype=np.float64), np.asarray(values, dtype=np.float64)
    next_values, dones = np.asarray(next_values, dtype=np.float64), np.asarray(dones, dtype=bool)
    _check_shapes(rewards=rewards, values=values, next_values=next_values, dones=dones)
    deltas = rewards + gamma * next_values - values
    return _discounted_sum(deltas, gamma * gae_lambda * ~dones)


def discount_factors(timesteps: ArrayLike, gamma: float) -> Array:
    """γᵗ, the weight of step t in the discounted state distribution d^π(s) = (1−γ) Σₜ γᵗ Pr(sₜ = s).

    Sutton et al. 2000; what leaving it out means: Thomas 2014.

    :param timesteps: steps since the start of the episode, any shape
    :param gamma: discount factor γ in [0, 1]; 0⁰ = 1
    :return: γᵗ, of the same shape
    """
    return np.asarray(float(gamma) ** np.asarray(timesteps, dtype=np.float64))


# Baselines b: numbers that do not depend on the action of the step they are subtracted from.


def value_baseline(values: ArrayLike, dones: ArrayLike, per_episode: bool) -> Array:
    """The critic as baseline: V(sₜ), or V(s₀) for weights that are one number an episode (Sutton & Barto 2018, section 13.4).

    :param values: V(sₜ), computed before the critic saw this rollout, ``(n_steps, n_envs)``
    :param dones: last steps of episodes, ``(n_steps, n_envs)``
    :param per_episode: True under total-return weights
    :return: b, ``(n_steps, n_envs)``
    """
    return episode_first(values, dones) if per_episode else np.asarray(values, dtype=np.float64)


def leave_one_out_baseline(
    weights: ArrayLike,
    timesteps: ArrayLike,
    mask: ArrayLike,
    other_envs_only: bool = False,
    total: Callable[[Array], Array] = lambda sums: sums,
) -> Array:
    """Mean weight at the same t over the *other* episodes that are still running at t; 0 if there is none (Kool et al. 2019).

    Leaving the episode's own weight out is what keeps b independent of its actions; a plain batch mean is not.
    With total-return weights, apply :func:`episode_first` to the result: at t = 0 all other episodes count.

    :param weights: Gₜ or R(τ), ``(n_steps, n_envs)``
    :param timesteps: steps since the start of the episode, ``(n_steps, n_envs)``
    :param mask: steps in use, ``(n_steps, n_envs)``
    :param other_envs_only: leave out all episodes of the environment. Needed where the number of episodes in a column
        depends on how long the earlier ones were, as it does in a fixed window of steps
    :param total: adds what other processes have played to sums by t, ``(2, n)``, and returns as many or more
    :return: b, ``(n_steps, n_envs)``; 0 on steps that are not in use
    :raises ValueError: if the shapes differ
    """
    weights, timesteps = np.asarray(weights, dtype=np.float64), np.asarray(timesteps)
    mask = np.asarray(mask, dtype=bool)
    _check_shapes(weights=weights, timesteps=timesteps, mask=mask)
    t, env = timesteps[mask], np.nonzero(mask)[1]
    used = weights[mask]
    sums, counts = total(np.stack([np.bincount(t, used), np.bincount(t)]))
    if other_envs_only:
        n_envs = weights.shape[1]
        column = t * n_envs + env
        own_sums, own_counts = np.bincount(column, used)[column], np.bincount(column)[column]
    else:
        own_sums, own_counts = used, np.ones_like(t)
    others = counts[t] - own_counts
    baseline = np.zeros(weights.shape)
    baseline[mask] = np.where(others > 0, (sums[t] - own_sums) / np.maximum(others, 1), 0.0)
    return baseline


def update_running_mean(running_mean: float | None, mean: float, decay: float) -> float:
    """Exponential moving average over rollouts of their mean weight, the reinforcement baseline of Williams 1992.

    The baseline of a rollout is the average over *earlier* rollouts (0 before the first): update after use.

    :param running_mean: the average so far; None before the first rollout
    :param mean: mean weight of this rollout, over steps under Gₜ, over episodes under R(τ)
    :param decay: share of the old average that is kept, in [0, 1)
    :return: the new average
    """
    return mean if running_mean is None else decay * running_mean + (1.0 - decay) * mean


def optimal_baseline_moments(gradients: ArrayLike, scores: ArrayLike) -> Array:
    """Moments whose ratio is the constant baseline of least variance, b* = E⟨g(τ), s(τ)⟩ / E‖s(τ)‖².

    g(τ) = Σₜ ∇log π(aₜ∣sₜ) Ψₜ and s(τ) = Σₜ ∇log π(aₜ∣sₜ), both with γᵗ where that factor is on (Greensmith et al. 2004;
    Peters & Schaal 2008). For Ψ = R(τ), b* = E[‖s‖² R] / E‖s‖². To stay unbiased, divide moments of *earlier* rollouts.

    :param gradients: g(τ), ``(n_episodes, n_parameters)``
    :param scores: s(τ), ``(n_episodes, n_parameters)``
    :return: ``(mean of ⟨g, s⟩, mean of ‖s‖²)``, shape ``(2,)``
    :raises ValueError: if the shapes differ
    """
    gradients, scores = np.asarray(gradients, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    _check_shapes(gradients=gradients, scores=scores)
    return np.array([(gradients * scores).sum(axis=1).mean(), (scores * scores).sum(axis=1).mean()])
