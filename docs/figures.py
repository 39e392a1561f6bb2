"""The figures of the documentation: ``make docs-figures`` writes them to docs/figures. Seeds are fixed; about two minutes.

The first four are about a walk of five states whose gradient is known exactly; the last one trains on CartPole-v1.
"""

from pathlib import Path

import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback

from sb3_pg import VanillaPG, estimators

FOLDER = Path(__file__).parent / "figures"
STATES, GAMMA, NOISE, PRIZE = 5, 0.95, 0.5, 3.0
# A policy that prefers neither side by much
THETA = np.random.default_rng(0).normal(scale=0.5, size=(STATES, 2))
POLICY = np.exp(THETA) / np.exp(THETA).sum(axis=1, keepdims=True)


# A walk: left or right from the middle; 3 for leaving on the right; every step costs 0.05 and a noise of deviation 0.5


def values_and_gradient() -> tuple[np.ndarray, np.ndarray]:
    """V of every state, and the exact gradient of J, (STATES, 2), by linear algebra."""
    right = POLICY[:, 1]
    move = np.diag(right[:-1], 1) + np.diag(1.0 - right[1:], -1)
    reward = np.full(STATES, -0.05)
    reward[-1] += PRIZE * right[-1]
    values = np.linalg.solve(np.eye(STATES) - GAMMA * move, reward)
    start = np.eye(STATES)[STATES // 2]
    occupancy = np.linalg.solve(np.eye(STATES) - GAMMA * move.T, start)
    behind = np.concatenate([[0.0], values, [0.0]])
    q = np.stack([-0.05 + GAMMA * behind[:-2], -0.05 + GAMMA * behind[2:]], axis=1)
    q[-1, 1] += PRIZE
    return values, occupancy[:, None] * POLICY * (q - values[:, None])


VALUES, GRADIENT = values_and_gradient()


def play(rng: np.random.Generator, noise: float = NOISE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One episode: states, actions and rewards."""
    s, states, actions, rewards = STATES // 2, [], [], []
    while 0 <= s < STATES:
        a = int(rng.random() < POLICY[s, 1])
        states.append(s)
        actions.append(a)
        s += 2 * a - 1
        rewards.append(-0.05 + noise * rng.normal() + PRIZE * (s == STATES))
    return np.array(states), np.array(actions), np.array(rewards)


def gradient_of(states: np.ndarray, actions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ γᵗ ∇log π · Ψ of one episode; R(τ) has its powers of γ already."""
    g = np.zeros((STATES, 2))
    np.add.at(g, (states, actions), weights)
    np.add.at(g, states, -weights[:, None] * POLICY[states])
    return g


def weigh(name: str, states: np.ndarray, rewards: np.ndarray, values: np.ndarray = VALUES, lam: float = 0.9) -> np.ndarray:
    """The weights of an episode's steps, times γᵗ where that belongs."""
    column, dones = rewards[:, None], np.arange(len(rewards))[:, None] == len(rewards) - 1
    if name == "R(τ)":
        return estimators.total_return(column, dones, GAMMA)[:, 0]
    v = values[states][:, None]
    if name == "Gₜ":
        weights = estimators.reward_to_go(column, dones, GAMMA)
    elif name == "Gₜ − V":
        weights = estimators.reward_to_go(column, dones, GAMMA) - v
    else:
        weights = estimators.gae(column, v, np.append(v[1:], [[0.0]], axis=0), dones, GAMMA, lam)
    return weights[:, 0] * estimators.discount_factors(np.arange(len(rewards)), GAMMA)


def save(figure: Figure, name: str) -> None:
    """Write a figure of the documentation."""
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / f"{name}.png", dpi=110, metadata={"Software": None})


def new_figure(xlabel: str, ylabel: str) -> tuple[Figure, object]:
    """A figure of the width of a page's column."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def variance_against_n() -> None:
    """The error of the estimate falls as 1/n, from a height that the weights decide."""
    rng = np.random.default_rng(1)
    episodes = [play(rng) for _ in range(20_000)]
    figure, axes = new_figure("episodes n in the estimate", "mean squared error of ĝ")
    sizes = 2 ** np.arange(9)
    for name in ("R(τ)", "Gₜ", "Gₜ − V", "GAE(0.9)"):
        g = np.array([gradient_of(s, a, weigh(name, s, r)) for s, a, r in episodes])
        errors = []
        for n in sizes:
            means = g[: len(g) // n * n].reshape(-1, n, STATES, 2).mean(axis=1)
            errors.append(((means - GRADIENT) ** 2).sum(axis=(1, 2)).mean())
        axes.loglog(sizes, errors, "o-", ms=3, label=name)
    axes.legend()
    save(figure, "variance_against_n")


def short_episodes() -> None:
    """Taking the first N episodes that finish in parallel environments favours short ones; a quota of each does not."""
    rng = np.random.default_rng(2)
    numbers, n_envs, repetitions = [1, 2, 4, 8, 16, 32], 8, 4_000
    biases: dict[str, list[float]] = {"the first N that finish": [], "N that were settled before": []}
    for n in numbers:
        first, settled = np.zeros((STATES, 2)), np.zeros((STATES, 2))
        for _ in range(repetitions):
            finished = []
            for _ in range(n_envs):
                clock = 0
                for _ in range(-(-n // n_envs) + 3):  # as many as could be among the first
                    s, a, r = play(rng, noise=0.0)
                    clock += len(s)
                    finished.append((clock, s, a, r))
            g = [gradient_of(s, a, weigh("Gₜ − V", s, r)) for _, s, a, r in finished]
            order = np.argsort([clock for clock, *_ in finished], kind="stable")[:n]
            first += np.mean([g[i] for i in order], axis=0)
            settled += np.mean(g[:n], axis=0)
        for name, total in zip(biases, (first, settled), strict=True):
            biases[name].append(float(np.linalg.norm(total / repetitions - GRADIENT) / np.linalg.norm(GRADIENT)))
    figure, axes = new_figure(f"N, from {n_envs} parallel environments", "‖E ĝ − ∇J‖ / ‖∇J‖")
    for name, values in biases.items():
        axes.semilogx(numbers, values, "o-", base=2, label=name)
    axes.set_ylim(bottom=0.0)
    axes.legend()
    save(figure, "short_episodes")


def bias_of_gae() -> None:
    """λ buys variance with the critic's errors: a critic that is off by 0.3 from state to state."""
    rng = np.random.default_rng(3)
    wrong = VALUES + 0.3 * rng.normal(size=STATES)
    episodes = [play(rng) for _ in range(20_000)]
    lambdas = np.linspace(0.0, 1.0, 11)
    biases, deviations = [], []
    for lam in lambdas:
        g = np.array([gradient_of(s, a, weigh("GAE", s, r, wrong, lam)) for s, a, r in episodes])
        biases.append(np.linalg.norm(g.mean(axis=0) - GRADIENT) / np.linalg.norm(GRADIENT))
        deviations.append(np.sqrt(g.var(axis=0).sum() / 64) / np.linalg.norm(GRADIENT))
    figure, axes = new_figure("λ", "relative to ‖∇J‖")
    axes.plot(lambdas, biases, "o-", ms=3, label="bias")
    axes.plot(lambdas, deviations, "o-", ms=3, label="standard deviation of 64 episodes")
    axes.plot(lambdas, np.hypot(biases, deviations), "--", color="0.4", label="both")
    axes.set_ylim(bottom=0.0)
    axes.legend()
    save(figure, "bias_of_gae")


def baselines() -> None:
    """The mean stays, the variance is a parabola in b."""
    rng = np.random.default_rng(4)
    episodes = [play(rng) for _ in range(20_000)]
    returns = [gradient_of(s, a, weigh("R(τ)", s, r)) for s, a, r in episodes]
    scores = [gradient_of(s, a, np.ones(len(s))) for s, a, r in episodes]
    g, score = np.array(returns), np.array(scores)
    b = np.linspace(-1.5, 4.0, 15)
    variances = [(g - x * score).var(axis=0).sum() for x in b]
    means = [np.linalg.norm((g - x * score).mean(axis=0)) for x in b]
    best, weight = estimators.optimal_baseline_moments(g.reshape(len(g), -1), score.reshape(len(g), -1))
    figure, axes = new_figure("b, subtracted from R(τ)", "variance of one episode's gradient")
    axes.plot(b, variances, "o-", ms=3, label="variance")
    axes.plot(b, means, "o-", ms=3, label="length of the mean")
    axes.axvline(best / weight, color="0.4", ls="--", label="b* = E⟨g, s⟩ / E‖s‖²")
    axes.set_ylim(bottom=0.0)
    axes.legend()
    save(figure, "baselines")


class Record(BaseCallback):
    """Keeps metrics of every update."""

    def __init__(self, names: tuple[str, ...]):
        super().__init__()
        self.names, self.rows = names, []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        logged = self.logger.name_to_value
        returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        row = [np.mean(returns[-20:]) if returns else np.nan, *(logged.get(name, np.nan) for name in self.names[1:])]
        self.rows.append([self.num_timesteps, *row])


def healthy_and_sick() -> None:
    """Metrics of three trainings of VanillaPG on CartPole-v1: healthy, too fast, and with a critic that does not learn."""
    names = ("rollout/ep_rew_mean", "train/approx_kl", "train/explained_variance", "train/entropy_loss")
    runs = {
        "healthy": {},
        "learning_rate=0.05": dict(learning_rate=0.05, critic_learning_rate=1.5e-3),
        "critic_learning_rate=1e-6": dict(critic_learning_rate=1e-6),
    }
    figure = Figure(figsize=(8.0, 5.2), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    for label, kwargs in runs.items():
        th.manual_seed(0)
        record = Record(names)
        # Logged at the start of the next rollout, before a log empties them
        model = VanillaPG("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **kwargs)
        model.learn(60_000, callback=record, log_interval=None)
        rows = np.array(record.rows[1:], dtype=float)
        for axis, name, column in zip(axes.flat, names, rows.T[1:], strict=True):
            smooth = np.convolve(np.nan_to_num(column), np.ones(8) / 8, mode="valid")
            axis.plot(rows[7:, 0], smooth, lw=1.2, label=label)
            axis.set_title(name, fontsize=9)
            axis.grid(alpha=0.3)
    axes[0, 1].set(yscale="log", ylim=(1e-6, 10.0))
    axes[1, 0].set_ylim(-1.1, 1.1)
    axes[0, 0].legend(fontsize=8)
    for axis in axes[1]:
        axis.set_xlabel("environment steps")
    save(figure, "healthy_and_sick")


if __name__ == "__main__":
    for draw in (variance_against_n, short_episodes, bias_of_gae, baselines, healthy_and_sick):
        draw()
        print(draw.__name__, flush=True)
