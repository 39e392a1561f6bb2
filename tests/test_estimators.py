"""Hand-computed numbers, limits and equivalences, and a naive double loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_pg import estimators as est

RNG = np.random.default_rng(0)


def column(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float64)[:, None]


def rollouts(max_steps: int = 12, max_envs: int = 3) -> st.SearchStrategy[dict[str, np.ndarray]]:
    """Random rollouts: rewards, values, dones, truncated ends with their values, γ and λ."""

    def build(draw_seed: int, n_steps: int, n_envs: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(draw_seed)
        shape = (n_steps, n_envs)
        dones = rng.random(shape) < rng.choice([0.0, 0.2, 0.6, 1.0])
        truncated = dones & (rng.random(shape) < 0.5)
        values = rng.normal(size=shape)
        return dict(
            rewards=rng.normal(size=shape),
            values=values,
            dones=dones,
            next_values=np.where(
                dones,
                np.where(truncated, rng.normal(size=shape), 0.0),
                np.concatenate([values[1:], rng.normal(size=(1, n_envs))]),
            ),
        )

    return st.builds(build, st.integers(0, 2**32 - 1), st.integers(1, max_steps), st.integers(1, max_envs))


unit = st.floats(0.0, 1.0)


# Hand-computed, γ = 1/2


def test_reward_to_go_two_episodes_in_a_column() -> None:
    rewards, dones = column(1, 2, 4, 8, 16), column(0, 1, 0, 0, 1)
    np.testing.assert_array_equal(est.reward_to_go(rewards, dones, 0.5), column(2, 2, 12, 16, 16))


def test_total_return_two_episodes_in_a_column() -> None:
    rewards, dones = column(1, 2, 4, 8, 16), column(0, 1, 0, 0, 1)
    np.testing.assert_array_equal(est.total_return(rewards, dones, 0.5), column(2, 2, 12, 12, 12))


def test_one_step_episodes() -> None:
    rewards, dones = column(3, 5), column(1, 1)
    for function in (est.reward_to_go, est.total_return):
        np.testing.assert_array_equal(function(rewards, dones, 0.5), rewards)
    advantages = est.gae(rewards, column(1, 2), column(0, 0), dones, 0.5, 0.5)
    np.testing.assert_array_equal(advantages, column(2, 3))


@pytest.mark.parametrize(
    "next_value, done, expected",
    [
        # δ = (1 + 1/2·4 − 2, 2 + 1/2·next − 4), Â₀ = δ₀ + 1/4·δ₁ (λ = 1/2)
        (0.0, 1, (0.5, -2.0)),  # terminated in the last row
        (6.0, 1, (1.25, 1.0)),  # truncated there: V of the terminal observation
        (6.0, 0, (1.25, 1.0)),  # cut there: V of the next observation
    ],
)
def test_gae_at_the_last_row(next_value: float, done: int, expected: tuple[float, float]) -> None:
    advantages = est.gae(column(1, 2), column(2, 4), column(4, next_value), column(0, done), 0.5, 0.5)
    np.testing.assert_array_equal(advantages, column(*expected))


def test_gae_does_not_leak_between_episodes() -> None:
    # Truncated after the first row with V = 6: the second row's value (100) and advantage must not be seen
    advantages = est.gae(column(1, 2), column(2, 100), column(6, 0), column(1, 1), 0.5, 0.9)
    np.testing.assert_array_equal(advantages, column(2, -98))


def test_value_of_constant_reward_is_a_fixed_point() -> None:
    gamma, reward = 0.9, 2.0
    values = np.full((50, 2), reward / (1 - gamma))
    for gae_lambda in (0.0, 0.5, 1.0):
        advantages = est.gae(np.full((50, 2), reward), values, values, np.zeros((50, 2)), gamma, gae_lambda)
        np.testing.assert_allclose(advantages, 0.0, atol=1e-12)


def test_discount_factors() -> None:
    np.testing.assert_array_equal(est.discount_factors([0, 1, 3], 0.5), [1.0, 0.5, 0.125])
    np.testing.assert_array_equal(est.discount_factors([0, 1], 0.0), [1.0, 0.0])


def test_leave_one_out_by_hand() -> None:
    # Column 0: episodes of 2 and 1 steps; column 1: one episode of 3 steps. G by (episode, t): (1, 2), (3,), (4, 5, 6)
    weights = np.array([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]])
    timesteps = np.array([[0, 0], [1, 1], [0, 2]])
    mask = np.ones((3, 2), dtype=bool)
    np.testing.assert_array_equal(
        est.leave_one_out_baseline(weights, timesteps, mask), [[(3 + 4) / 2, (1 + 3) / 2], [5, 2], [(1 + 4) / 2, 0]]
    )
    np.testing.assert_array_equal(
        est.leave_one_out_baseline(weights, timesteps, mask, other_envs_only=True), [[4, (1 + 3) / 2], [5, 2], [4, 0]]
    )
    mask[2, 0] = False  # not in use: neither served nor serving
    np.testing.assert_array_equal(est.leave_one_out_baseline(weights, timesteps, mask), [[4, 1], [5, 2], [0, 0]])


def test_value_baseline() -> None:
    values, dones = column(1, 2, 3), column(0, 1, 1)
    np.testing.assert_array_equal(est.value_baseline(values, dones, per_episode=False), values)
    np.testing.assert_array_equal(est.value_baseline(values, dones, per_episode=True), column(1, 1, 3))


def test_running_mean() -> None:
    assert est.update_running_mean(None, 4.0, 0.9) == 4.0
    assert est.update_running_mean(4.0, 8.0, 0.75) == 5.0


def test_optimal_baseline_of_returns() -> None:
    scores, returns = RNG.normal(size=(7, 4)), RNG.normal(size=7)
    numerator, denominator = est.optimal_baseline_moments(scores * returns[:, None], scores)
    squares = (scores**2).sum(axis=1)
    assert numerator / denominator == pytest.approx((squares * returns).sum() / squares.sum())


def test_optimal_baseline_minimises_the_variance() -> None:
    scores = RNG.normal(size=(4000, 3)) * RNG.exponential(size=(4000, 1))
    returns = 2.0 + (scores**2).sum(axis=1) + RNG.normal(size=4000)
    numerator, denominator = est.optimal_baseline_moments(scores * returns[:, None], scores)
    best = numerator / denominator

    def second_moment(b: float) -> float:
        return float((((returns - b)[:, None] * scores) ** 2).sum(axis=1).mean())

    assert second_moment(best) < min(second_moment(b) for b in (0.0, returns.mean(), best - 0.1, best + 0.1))


# Limits and equivalences


@given(rollouts(), unit)
def test_lambda_0_is_the_td_error(rollout: dict[str, np.ndarray], gamma: float) -> None:
    expected = rollout["rewards"] + gamma * rollout["next_values"] - rollout["values"]
    np.testing.assert_allclose(est.gae(**rollout, gamma=gamma, gae_lambda=0.0), expected, atol=1e-12)


@given(rollouts(), unit)
def test_lambda_1_of_terminated_episodes_is_monte_carlo_less_value(rollout: dict[str, np.ndarray], gamma: float) -> None:
    rollout["dones"][-1] = True
    rollout["next_values"][rollout["dones"]] = 0.0
    expected = est.reward_to_go(rollout["rewards"], rollout["dones"], gamma) - rollout["values"]
    np.testing.assert_allclose(est.gae(**rollout, gamma=gamma, gae_lambda=1.0), expected, atol=1e-9)


@given(rollouts())
def test_no_discount_of_the_past(rollout: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(est.reward_to_go(rollout["rewards"], rollout["dones"], 0.0), rollout["rewards"])


# A naive double loop


@settings(max_examples=200)
@given(rollouts(), unit, unit)
def test_against_a_double_loop(rollout: dict[str, np.ndarray], gamma: float, gae_lambda: float) -> None:
    rewards, values, dones, next_values = (rollout[key] for key in ("rewards", "values", "dones", "next_values"))
    n_steps, n_envs = rewards.shape
    g, r, a, first = (np.zeros((n_steps, n_envs)) for _ in range(4))
    for e in range(n_envs):
        start = 0
        for t in range(n_steps):
            if t > 0 and dones[t - 1, e]:
                start = t
            first[t, e] = values[start, e]
            for k in range(t, n_steps):
                g[t, e] += gamma ** (k - t) * rewards[k, e]
                a[t, e] += (gamma * gae_lambda) ** (k - t) * (rewards[k, e] + gamma * next_values[k, e] - values[k, e])
                if dones[k, e]:
                    break
            for k in range(start, n_steps):
                r[t, e] += gamma ** (k - start) * rewards[k, e]
                if dones[k, e]:
                    break
    np.testing.assert_allclose(est.reward_to_go(rewards, dones, gamma), g, atol=1e-9)
    np.testing.assert_allclose(est.total_return(rewards, dones, gamma), r, atol=1e-9)
    np.testing.assert_allclose(est.gae(rewards, values, next_values, dones, gamma, gae_lambda), a, atol=1e-9)
    np.testing.assert_allclose(est.episode_first(values, dones), first)


@given(rollouts(), st.booleans())
def test_leave_one_out_against_a_loop(rollout: dict[str, np.ndarray], other_envs_only: bool) -> None:
    weights, dones = rollout["rewards"], rollout["dones"]
    rows = np.arange(len(weights))[:, None]
    timesteps = rows - est.first_rows(dones)
    mask = rollout["values"] < 1.0
    baseline = est.leave_one_out_baseline(weights, timesteps, mask, other_envs_only)
    for t, e in np.ndindex(*weights.shape):
        others = [
            weights[k, f]
            for k, f in np.ndindex(*weights.shape)
            if mask[k, f] and timesteps[k, f] == timesteps[t, e] and (f != e or (k != t and not other_envs_only))
        ]
        assert baseline[t, e] == pytest.approx(np.mean(others) if mask[t, e] and others else 0.0)


@pytest.mark.parametrize("function", [est.reward_to_go, est.total_return])
def test_shapes_are_checked(function) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="one shape"):
        function(np.zeros((3, 2)), np.zeros((3, 1)), 0.9)
    with pytest.raises(ValueError, match="n_steps, n_envs"):
        function(np.zeros(3), np.zeros(3), 0.9)
    with pytest.raises(ValueError, match="one shape"):
        est.gae(np.zeros((3, 1)), np.zeros((3, 1)), np.zeros((4, 1)), np.zeros((3, 1)), 0.9, 0.9)


@given(rollouts(), unit, unit)
def test_many_environments_as_few(rollout: dict[str, np.ndarray], gamma: float, gae_lambda: float) -> None:
    """The two ways to run the recursion, by rows and by columns, agree to the last bit."""
    wide = {key: np.concatenate([value] * 17, axis=1) for key, value in rollout.items()}
    n_envs = rollout["rewards"].shape[1]
    for e in range(n_envs):
        alone = {key: value[:, e : e + 1] for key, value in rollout.items()}
        np.testing.assert_array_equal(
            est.gae(**wide, gamma=gamma, gae_lambda=gae_lambda)[:, e : e + 1],
            est.gae(**alone, gamma=gamma, gae_lambda=gae_lambda),
        )
