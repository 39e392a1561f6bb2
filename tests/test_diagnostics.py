"""The diagnostics against exact expectations, their order on CartPole, and that they leave the model alone."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch as th
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg import diagnostics as module
from sb3_pg.diagnostics import GradientDiagnosticsCallback, gradient_diagnostics, recommend

GAMMA = 0.7
REWARDS = np.array([[1.0, -0.5], [0.3, 2.0], [-1.0, 1.5]])
# Probability that the first step leads to state 2; else the episode ends
CONTINUES = np.array([[0.9, 0.4], [0.6, 0.8]])


class TwoStepEnv(gym.Env):
    """Starts in state 0 or 1; the second and last step is in state 2."""

    observation_space = gym.spaces.Discrete(3)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(2))
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        state, self.state = self.state, 2
        done = state == 2 or self.np_random.random() >= CONTINUES[state, action]
        return 2, float(REWARDS[state, action]), bool(done), False, {}


def trajectories(pi: np.ndarray) -> Iterator[tuple[float, list[tuple[int, int]]]]:
    """All episodes with their probabilities."""
    for s in (0, 1):
        for a in (0, 1):
            p = 0.5 * pi[s, a]
            yield p * (1.0 - CONTINUES[s, a]), [(s, a)]
            for b in (0, 1):
                yield p * CONTINUES[s, a] * pi[2, b], [(s, a), (2, b)]


def weights(episode: list[tuple[int, int]], values: np.ndarray, estimator: str, lam: float, discounted: bool) -> list[float]:
    """Ψ of the one or two steps, written out."""
    r = [REWARDS[s, a] for s, a in episode] + [0.0]
    v = [values[s] for s, _ in episode] + [0.0]
    first, second = r[0] + GAMMA * r[1], r[1]
    if estimator == "return":
        return [first, first][: len(episode)]
    if estimator == "reward_to_go":
        psi = [first, second]
    elif estimator == "value":
        psi = [first - v[0], second - v[1]]
    else:
        delta = [r[0] + GAMMA * v[1] - v[0], r[1] - v[1]]
        psi = [delta[0] + (GAMMA * lam * delta[1] if len(episode) == 2 else 0.0), delta[1]]
    return [w * (GAMMA**t if discounted else 1.0) for t, w in enumerate(psi[: len(episode)])]


@pytest.mark.parametrize("discounted", [False, True])
def test_agrees_with_enumeration(discounted: bool) -> None:
    env = make_vec_env(TwoStepEnv, 4, seed=0)
    model = VanillaPG("MlpPolicy", env, gamma=GAMMA, policy_kwargs=dict(net_arch=[]), seed=0, device="cpu")
    rng = np.random.default_rng(0)
    with th.no_grad():
        model.policy.action_net.weight.copy_(th.as_tensor(rng.normal(size=(2, 3))))
        model.policy.value_net.weight.copy_(th.as_tensor(rng.normal(size=(1, 3))))
    logits = (model.policy.action_net.weight.T + model.policy.action_net.bias).detach().double()
    pi = logits.softmax(dim=1).numpy()
    values = (model.policy.value_net.weight[0] + model.policy.value_net.bias).detach().double().numpy()
    # ∇ log π(a∣s) with respect to (weight, bias)
    scores = np.zeros((3, 2, 8))
    for s in range(3):
        for a in range(2):
            for other in range(2):
                d = float(other == a) - pi[s, other]
                scores[s, a, 3 * other + s] = scores[s, a, 6 + other] = d

    def moments(estimator: str, lam: float, with_factor: bool) -> tuple[np.ndarray, float]:
        mean, square = np.zeros(8), 0.0
        for p, episode in trajectories(pi):
            psi = weights(episode, values, estimator, lam, with_factor)
            g = sum(w * scores[s, a] for w, (s, a) in zip(psi, episode, strict=True))
            mean, square = mean + p * g, square + p * float(g @ g)
        return mean, square - float(mean @ mean)

    table = gradient_diagnostics(model, n_episodes=4000, gae_lambdas=(0.0, 0.6), discounted_state_distribution=discounted)
    reference, _ = moments("value", 1.0, discounted)
    checked = 0
    for row in table.itertuples():
        if row.estimator in ("leave_one_out", "running_mean", "optimal"):
            continue
        mean, variance = moments(row.estimator, row.gae_lambda, row.discounted)
        assert row.variance_low * 0.97 < variance < row.variance_high * 1.03, row
        assert row.signal == pytest.approx(np.linalg.norm(mean), abs=4 * math.sqrt(variance / 4000)), row
        bias = float(np.linalg.norm(mean - reference) / np.linalg.norm(reference))
        assert row.bias_low - 0.05 <= bias <= row.bias_high + 0.05, row
        checked += 1
    assert checked == (5 if discounted else 6)
    # Constant baselines of other episodes leave the expectation alone
    for name in ("leave_one_out", "running_mean", "optimal"):
        assert table[table.estimator == name].bias.item() < 0.1


def by_name(table: pd.DataFrame) -> dict[str, Any]:
    rows = {f"{row.estimator}{'' if np.isnan(row.gae_lambda) else row.gae_lambda}": row for row in table.itertuples()
            if row.estimator == "return" or not row.discounted}  # fmt: skip
    return rows


def above(one: Any, other: Any) -> bool:
    """The variance is higher, with intervals that do not overlap."""
    return bool(one.variance_low > other.variance_high)


def test_order_on_cartpole() -> None:
    # Agents agree on the order of variances. Which estimator is best, bias included, depends on the agent: GAE for this one
    model = VanillaPG(
        "MlpPolicy", make_vec_env("CartPole-v1", 8, seed=2), n_steps=32, n_critic_updates=5, seed=2, device="cpu"
    )
    fresh = by_name(gradient_diagnostics(model, gae_lambdas=(0.95,)))
    assert above(fresh["return"], fresh["reward_to_go"])
    model.learn(15_000)
    table = gradient_diagnostics(model, gae_lambdas=(0.95,))
    trained = by_name(table)
    order = [trained[name] for name in ("return", "reward_to_go", "value", "gae0.95")]
    assert all(above(one, other) for one, other in itertools.pairwise(order))
    # Baselines without a critic fall between none and GAE
    for name in ("running_mean", "optimal", "leave_one_out"):
        assert above(trained["reward_to_go"], trained[name]) and above(trained[name], trained["gae0.95"])
    assert "VanillaPG(gae_lambda=0.95)" in recommend(table)


def test_the_optimal_constant_has_the_least_variance_on_held_out_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, np.ndarray] = {}
    original = module._add_constant_baselines

    def keep(gradients: Any, scores: np.ndarray, *rest: Any) -> None:
        kept.update(plain=gradients["reward_to_go", None, False], scores=scores)
        original(gradients, scores, *rest)

    monkeypatch.setattr(module, "_add_constant_baselines", keep)
    model = VanillaPG("MlpPolicy", make_vec_env("CartPole-v1", 8, seed=1), n_steps=32, seed=1, device="cpu").learn(10_000)
    gradient_diagnostics(model, n_episodes=400, gae_lambdas=())
    plain, scores = kept["plain"], kept["scores"]
    top, bottom = module.estimators.optimal_baseline_moments(plain[::2], scores[::2])

    def held_out(constant: float) -> float:
        return float((plain[1::2] - constant * scores[1::2]).var(axis=0).sum())

    best = top / bottom
    assert all(held_out(best) < held_out(factor * best) for factor in (0.0, 0.5, 0.75, 1.25, 1.5, 2.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda env: A2C("MlpPolicy", env, seed=0),
        lambda env: PPO("MlpPolicy", env, n_steps=64, batch_size=64, seed=0),
        lambda env: NaturalPG("MlpPolicy", env, seed=0),
        lambda env: VanillaPG("MlpPolicy", env, weights="reward_to_go", discounted_state_distribution=True, seed=0),
        lambda env: ReinforceBaseline("MlpPolicy", env, baseline="leave_one_out", n_episodes=2, seed=0),
    ],
)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_models(make: Any, env_id: str) -> None:
    env = VecNormalize(make_vec_env(env_id, 2, seed=0))
    model = make(env)
    count = env.obs_rms.count
    table = gradient_diagnostics(model, n_episodes=6, gae_lambdas=(0.9,))
    assert env.obs_rms.count == count and env.training
    has_critic = getattr(model, "uses_critic", True)
    assert ("gae" in set(table.estimator)) == has_critic == ("value" in set(table.estimator))
    assert (table.variance > 0).all() and (table.episodes == 6).all() and (table.steps > 0).all()
    assert recommend(table)
    model.learn(70)


@pytest.mark.parametrize(
    "make",
    [
        lambda env: RecurrentPPO("MlpLstmPolicy", env, n_steps=64, batch_size=64, seed=0),
        lambda env: VanillaPG("MlpLstmPolicy", env, seed=0),
        lambda env: MaskablePPO("MlpPolicy", env, n_steps=64, batch_size=64, seed=0),
        lambda env: ReinforceBaseline("MaskableMlpPolicy", env, seed=0),
        lambda env: NaturalPG("MaskableMlpLstmPolicy", env, n_steps=32, seed=0),
    ],
)
def test_models_with_memory_and_masks(make: Any) -> None:
    env = make_vec_env(lambda: InvalidActionEnvDiscrete(4, n_invalid_actions=2), 2, seed=0)
    model = make(env)
    table = gradient_diagnostics(model, n_episodes=6, gae_lambdas=(0.9,))
    assert (table.variance > 0).all() and {"gae", "value", "optimal"} <= set(table.estimator)
    model.learn(70)


@pytest.mark.parametrize("n_steps, expected", [(64, 400), (200, 400), (201, 800)])
def test_rollouts_finish_what_they_begin(n_steps: int, expected: int) -> None:
    # Episodes of 200 steps, two environments
    env = make_vec_env("Pendulum-v1", 2, seed=0)
    model = ReinforceBaseline("MlpPolicy", env, baseline="running_mean", n_steps=n_steps, seed=0)
    assert (gradient_diagnostics(model, n_episodes=4, gae_lambdas=()).rollout_steps == expected).all()
    model.learn(1)
    assert model.rollout_buffer.mask.sum() == expected


def test_expected_starts() -> None:
    # Of length 1 or 3: one begins at step 0; a second at 1 or 3; and so on
    assert module._expected_starts(np.array([1, 3]), 1) == 1.0
    assert module._expected_starts(np.array([1, 3]), 2) == 1.5
    assert module._expected_starts(np.array([1, 3]), 4) == 1.0 + 0.5 * (1.0 + 0.5 * 1.5) + 0.5 * 1.0


def test_images_are_compressed() -> None:
    env = make_vec_env(lambda: gym.wrappers.TimeLimit(FakeImageEnv(36, 36, discrete=True), 5), 2, seed=0)
    model = A2C("CnnPolicy", env, seed=0)
    assert sum(p.numel() for p in model.policy.parameters()) > module._MAX_SIZE
    table = gradient_diagnostics(model, n_episodes=4, gae_lambdas=())
    assert np.isfinite(table.variance).all()
    # Environments are wrapped as the model wraps its own
    raw = make_vec_env(lambda: gym.wrappers.TimeLimit(FakeImageEnv(36, 36, discrete=True), 5), 2, seed=0)
    assert len(gradient_diagnostics(model, raw, n_episodes=4, gae_lambdas=())) == len(table)
    # The compression keeps lengths and angles
    sketch = module._make_sketch(500_000, th.device("cpu"))
    x, y = th.randn(2, 500_000)
    small_x, small_y = sketch(x), sketch(x + y)
    assert len(small_x) == module._MAX_SIZE
    assert small_x.norm().item() == pytest.approx(x.norm().item(), rel=0.03)
    assert (small_x @ small_y).item() == pytest.approx((x @ (x + y)).item(), rel=0.05)


def test_the_model_is_left_as_it_was() -> None:
    def train(callback: Any) -> dict[str, th.Tensor]:
        model = VanillaPG("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), n_steps=32, seed=0, device="cpu")
        return model.learn(500, callback=callback).policy.state_dict()

    with_callback = train(GradientDiagnosticsCallback(make_vec_env("CartPole-v1", 2, seed=5), every=100))
    without = train(None)
    assert all(th.equal(with_callback[key], without[key]) for key in without)


def test_the_callback_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: dict[str, list[float]] = {}
    record = Logger.record

    def spy(self: Logger, key: str, value: Any, *args: Any, **kwargs: Any) -> None:
        recorded.setdefault(key, []).append(value)
        record(self, key, value, *args, **kwargs)

    monkeypatch.setattr(Logger, "record", spy)
    env, eval_env = VecNormalize(make_vec_env("CartPole-v1", 2)), VecNormalize(make_vec_env("CartPole-v1", 2), training=False)
    callback = GradientDiagnosticsCallback(eval_env, every=300, n_episodes=4)
    for n_measurements in (4, 8):  # a second training with the same callback
        A2C("MlpPolicy", env, seed=0).learn(1000, callback=callback)
        assert len(recorded["diagnostics/variance/gae_0.97"]) == n_measurements
    assert {
        f"diagnostics/{figure}/value" for figure in ("snr", "bias", "cosine", "batch_steps", "alignment")
    } <= recorded.keys()
    assert "diagnostics/bias/value_discounted" in recorded
    np.testing.assert_allclose(eval_env.obs_rms.mean, env.obs_rms.mean, rtol=0.5, atol=0.1)


def test_what_is_refused() -> None:
    with pytest.raises(TypeError, match=r"stochastic actor-critic policy .* not DQN"):
        gradient_diagnostics(DQN("MlpPolicy", "CartPole-v1", buffer_size=10))
    model = VanillaPG("MlpPolicy", "CartPole-v1")
    with pytest.raises(ValueError, match="n_episodes must be at least 4"):
        gradient_diagnostics(model, n_episodes=3)
    model.env = None
    with pytest.raises(ValueError, match="no environment"):
        gradient_diagnostics(model)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        gradient_diagnostics(model, make_vec_env("Acrobot-v1"))
    with pytest.raises(ValueError, match="gae_lambdas must be in"):
        gradient_diagnostics(VanillaPG("MlpPolicy", "CartPole-v1"), gae_lambdas=(1.5,))
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=8)
    with pytest.raises(ValueError, match="not the training's"):
        model.learn(8, callback=GradientDiagnosticsCallback(model.get_env()))
    with pytest.raises(ValueError, match="every"):
        GradientDiagnosticsCallback(make_vec_env("CartPole-v1"), every=0)
