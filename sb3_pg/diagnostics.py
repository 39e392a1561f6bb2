"""How noisy and how biased the policy-gradient estimators are on a model's own episodes.

From one set of whole episodes, the gradient of every episode under every estimator, and from these the variance, the bias and
the batch size worth having. Nothing is trained.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_pg import estimators
from sb3_pg.algorithms.arguments import check_env
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.policies import find_kind
from sb3_pg.rollouts.buffers import EpisodeRolloutBuffer
from sb3_pg.rollouts.player import EpisodePlayer

#: λ of the GAE rows
GAE_LAMBDAS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.97, 0.99)
_ORDER = ["return", "reward_to_go", "running_mean", "optimal", "leave_one_out", "value", "gae"]
# Longer gradients are compressed to so many numbers, which keeps inner products to within 1%
_MAX_SIZE = 16_384
_N_BOOTSTRAP = 500


# Estimator, λ, whether it has γᵗ
_Key = tuple[str, float | None, bool]


def gradient_diagnostics(
    model: OnPolicyAlgorithm,
    env: GymEnv | None = None,
    n_episodes: int = 200,
    gae_lambdas: Sequence[float] = GAE_LAMBDAS,
    discounted_state_distribution: bool | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    r"""Variance, bias and signal-to-noise ratio of the policy-gradient estimators, for the model as it is.

    g = Σₜ ∇log π(aₜ∣sₜ) Ψₜ is what one episode contributes to ĝ, a vector over the actor's parameters; E and Cov are over
    episodes of the current policy. Squares of means are estimated without the part that is noise (the products of an episode
    with itself are left out). Rewards are as the model sees them, weights are not standardised. A row is an estimator:

    - ``estimator``: ``return``, ``reward_to_go``; the latter minus a baseline: ``running_mean`` (a constant: the mean over the
      other episodes), ``optimal`` (the constant of least variance, taken from the other half of the episodes),
      ``leave_one_out`` (among as many episodes as a rollout of the model holds, but two at least), ``value``; ``gae``.
      ``gae_lambda``: λ; ``discounted``: whether the weight of step t has the factor γᵗ
    - ``variance``: tr Cov(g), of one episode; ĝ over n episodes has this divided by n. ``variance_low``, ``variance_high``:
      its 95% bootstrap interval, over episodes
    - ``signal``: ‖E g‖, the length of the expected gradient
    - ``snr``: ‖E g‖² / tr Cov(g), of one episode
    - ``bias``: ‖E g − E g₀‖ / ‖E g₀‖ with its bootstrap interval ``bias_low``, ``bias_high``; g₀ has the weights Gₜ − V(sₜ)
      (Gₜ without a critic), times γᵗ if ``discounted_state_distribution``, when E g₀ is ∇J itself. Estimators with the
      expectation of g₀ show 0 up to noise. ``gae`` bootstraps at time limits, g₀ does not: that shows as bias, too
    - ``cosine``: of the angle between E g and E g₀
    - ``noise_scale``: tr Cov(g) / ‖E g‖², in episodes: the batch at which noise and signal are equal; ``batch_steps``: the
      same in environment steps, the batch worth having (McCandlish et al. 2018): larger ones bring little
    - ``alignment``: expected cosine of the angle between ĝ of *one rollout of the model* and E g₀, about
      cosine / √(1 + noise_scale / n) for n episodes a rollout: bias and variance in one number
    - ``episodes``, ``steps``: how much was played; ``rollout_steps``: the size of the model's rollout

    Where γᵗ is left out there is one row more, ``value`` with γᵗ: its bias is the price of leaving it out, for an objective
    that is discounted. Gradients of more than 16,384 numbers are compressed by a random projection (count sketch), which keeps
    inner products to within 1%.

    :param model: a model of this package, A2C or PPO, trained or not; it is left as it was
    :param env: where to play; the model's own environment if None, whose episodes in progress are given up. The statistics of
        ``VecNormalize`` are held fixed meanwhile
    :param n_episodes: whole episodes, rounded up to a multiple of the number of environments; at least 4
    :param gae_lambdas: λ of the ``gae`` rows
    :param discounted_state_distribution: whether weights have γᵗ; the model's own setting if None
    :param on_progress: called with the number of episodes analysed so far, and of all
    :return: one row an estimator
    :raises TypeError: if the model is not an on-policy one with an actor-critic policy
    :raises ValueError: if there is no environment, or one with other spaces than the model's, or there are too few episodes
    """
    env = _check(model, env, n_episodes, gae_lambdas)
    if discounted_state_distribution is None:
        discounted_state_distribution = getattr(model, "discounted_state_distribution", False)
    has_critic = not isinstance(model, PolicyGradient) or model.uses_critic
    # Training goes on as if nothing had been drawn
    mode, numpy_state, distribution = model.policy.training, np.random.get_state(), dict(vars(model.policy.action_dist))
    with th.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        try:
            player = EpisodePlayer(model, env, -(-n_episodes // env.num_envs), has_critic)
            check_env(player)
            buffer = player.play()
            episodes = buffer.episodes(player.done_steps)
            lengths = np.array([rows.stop - rows.start for _, rows in episodes])
            rollout_steps = _rollout_steps(model, lengths)
            rollout_episodes = rollout_steps / lengths.mean()
            groups = _group(episodes, max(2, round(rollout_episodes)), buffer)
            to_go = estimators.reward_to_go(buffer.rewards, player.done_steps, player.gamma)
            weights = _weights(player, buffer, to_go, groups, gae_lambdas, discounted_state_distribution)
            with player.kind.computing():
                gradients = _episode_gradients(player, buffer, episodes, weights, on_progress)
        finally:
            model.policy.set_training_mode(mode)
            np.random.set_state(numpy_state)
            vars(model.policy.action_dist).update(distribution)  # the noise of gSDE
            if env is model.get_env():
                model._last_obs = None  # the next learn() begins with a reset
    scores = gradients.pop(("score", None, discounted_state_distribution))
    _add_constant_baselines(gradients, scores, to_go, episodes, discounted_state_distribution)

    best = "value" if has_critic else "reward_to_go"
    reference = gradients[best, None, discounted_state_distribution]
    rows = []
    for key in sorted(gradients, key=lambda key: (_ORDER.index(key[0]), key[2], -(key[1] or 0.0))):
        row: dict[str, Any] = dict(zip(("estimator", "gae_lambda", "discounted"), key, strict=True))
        rows.append(row | _figures(gradients[key], reference, rollout_episodes))
    table = pd.DataFrame(rows).astype({"gae_lambda": float})
    table["batch_steps"] = table.noise_scale * lengths.mean()
    return table.assign(episodes=len(lengths), steps=int(lengths.sum()), rollout_steps=rollout_steps)


def best_row(table: pd.DataFrame) -> int | None:
    """Index of the estimator with the largest alignment, of those with γᵗ or without it as the model has it.

    :param table: of :func:`gradient_diagnostics`
    :return: the index; None if no gradient can be told from noise
    """
    ours = table[(table.discounted == table.discounted.mode()[0]) | (table.estimator == "return")]
    return int(ours.alignment.idxmax()) if ours.alignment.notna().any() else None


def recommend(table: pd.DataFrame) -> str:
    """One sentence: the estimator whose rollouts point most nearly along the gradient, and the batch worth having.

    :param table: of :func:`gradient_diagnostics`
    :return: the sentence
    """
    row = best_row(table)
    if row is None:
        return "No gradient can be told from noise: play more episodes."
    best = table.loc[row]
    factor = ", discounted_state_distribution=True" if best.discounted and best.estimator != "return" else ""
    call = {
        "return": 'VanillaPG(weights="return")',
        "reward_to_go": f'VanillaPG(weights="reward_to_go"{factor})',
        "gae": f"VanillaPG(gae_lambda={best.gae_lambda:g}{factor})",
    }.get(best.estimator, f'ReinforceBaseline(baseline="{best.estimator}"{factor})')
    return (
        f"Recommended: {call}. A rollout of {best.rollout_steps:,} steps has an expected cosine of {best.alignment:.2f} with "
        f"the gradient; noise and signal are equal at {best.batch_steps:,.0f} steps, and much larger rollouts bring little."
    )


def _check(model: Any, env: GymEnv | None, n_episodes: int, gae_lambdas: Sequence[float]) -> VecEnv:
    try:
        find_kind(type(getattr(model, "policy", None)))
    except TypeError as error:
        raise TypeError(
            "The diagnostics need a model with a stochastic actor-critic policy (VanillaPG, ReinforceBaseline, NaturalPG, "
            f"A2C, PPO, RecurrentPPO, MaskablePPO), not {type(model).__name__}."
        ) from error
    if env is None and model.get_env() is None:
        raise ValueError("The model has no environment: pass env, or set it with model.set_env.")
    if n_episodes < 4:
        raise ValueError(f"n_episodes must be at least 4, to estimate variances, not {n_episodes}.")
    if not all(0.0 <= gae_lambda <= 1.0 for gae_lambda in gae_lambdas):
        raise ValueError(f"gae_lambdas must be in [0, 1], not {tuple(gae_lambdas)}.")
    # As the model sees it: vectorised, channels first
    wrapped: VecEnv = model.get_env() if env is None else model._wrap_env(env, verbose=0)
    check_for_correct_spaces(wrapped, model.observation_space, model.action_space)
    return wrapped


def _rollout_steps(model: OnPolicyAlgorithm, lengths: np.ndarray) -> int:
    """Steps of a rollout of the model: expected ones, for episodes of these lengths, where it plays them to their end."""
    if not (isinstance(model, PolicyGradient) and model.whole_episodes):
        return model.n_steps * model.n_envs
    n_begun = _expected_starts(lengths, model.n_steps) if model.n_episodes is None else model.n_episodes
    return round(n_begun * model.n_envs * float(lengths.mean()))


def _expected_starts(lengths: np.ndarray, n_steps: int) -> float:
    """Episodes that begin within ``n_steps`` steps, the first at once: the renewal equation for these lengths."""
    n_begun = np.zeros(n_steps + 1)
    for window in range(1, n_steps + 1):
        n_begun[window] = 1.0 + n_begun[np.maximum(window - lengths, 0)].mean()
    return float(n_begun[-1])


def _group(episodes: list[tuple[int, slice]], size: int, buffer: EpisodeRolloutBuffer) -> np.ndarray:
    """Number of the group of each step, ``(n_steps, n_envs)``: so many episodes at a time, in the order they began."""
    groups = np.full(buffer.mask.shape, -1)
    n_groups = max(len(episodes) // size, 1)
    for i, (env, rows) in enumerate(sorted(episodes, key=lambda episode: episode[1].start)):
        groups[rows, env] = min(i // size, n_groups - 1)
    return groups


def _weights(
    player: EpisodePlayer,
    buffer: EpisodeRolloutBuffer,
    to_go: np.ndarray,
    groups: np.ndarray,
    gae_lambdas: Sequence[float],
    discounted: bool,
) -> dict[_Key, np.ndarray]:
    """Ψ of every step under every estimator but the constant baselines, ``(n_steps, n_envs)`` each; "score" has Ψ = 1."""
    factors = estimators.discount_factors(buffer.timesteps, player.gamma)
    own = factors if discounted else np.ones_like(factors)
    others = sum(
        estimators.leave_one_out_baseline(to_go, buffer.timesteps, groups == group) for group in range(groups.max() + 1)
    )
    weights: dict[_Key, np.ndarray] = {
        ("return", None, True): estimators.episode_first(to_go, player.done_steps),
        ("score", None, discounted): own,
        ("reward_to_go", None, discounted): own * to_go,
        ("leave_one_out", None, discounted): own * (to_go - others),
    }
    if player.uses_critic:
        weights["value", None, discounted] = own * (to_go - buffer.values)
        weights["value", None, True] = factors * (to_go - buffer.values)
        ends = buffer.rewards, buffer.values, player.next_values, player.done_steps, player.gamma
        weights |= {("gae", lam, discounted): own * estimators.gae(*ends, lam) for lam in gae_lambdas}
    return weights


def _episode_gradients(
    player: EpisodePlayer,
    buffer: EpisodeRolloutBuffer,
    episodes: list[tuple[int, slice]],
    weights: dict[_Key, np.ndarray],
    on_progress: Callable[[int, int], None] | None,
) -> dict[_Key, np.ndarray]:
    """g of every episode under every estimator, ``(n_episodes, size)`` each."""
    kind = player.kind
    sketch = _make_sketch(sum(p.numel() for p in kind.actor_parameters()), player.device)
    stacked = np.stack(list(weights.values()))
    rows = []
    for env, steps in episodes:
        rows.append(kind.sum_scores(kind.episode_steps(buffer, env, steps), stacked[:, steps, env], sketch))
        if on_progress is not None:
            on_progress(len(rows), len(episodes))
    return dict(zip(weights, np.stack(rows, axis=1), strict=True))


def _make_sketch(size: int, device: th.device) -> Callable[[th.Tensor], th.Tensor]:
    """Compression of long vectors that keeps inner products: numbers are added up in random places under random signs."""
    if size <= _MAX_SIZE:
        return lambda vector: vector
    generator = th.Generator().manual_seed(0)
    places = th.randint(_MAX_SIZE, (size,), generator=generator).to(device)
    signs = (2.0 * th.randint(2, (size,), generator=generator) - 1.0).to(device)
    return lambda vector: th.zeros(_MAX_SIZE, device=device).index_add_(0, places, signs * vector)


def _add_constant_baselines(
    gradients: dict[_Key, np.ndarray],
    scores: np.ndarray,
    to_go: np.ndarray,
    episodes: list[tuple[int, slice]],
    discounted: bool,
) -> None:
    """Gradients of Gₜ − b for constants b that other episodes have fixed: g − b Σ ∇log π, ``scores``."""
    sums = np.array([to_go[rows, env].sum() for env, rows in episodes])
    counts = np.array([rows.stop - rows.start for _, rows in episodes])
    means = (sums.sum() - sums) / (counts.sum() - counts)
    plain = gradients["reward_to_go", None, discounted]
    gradients["running_mean", None, discounted] = plain - means[:, None] * scores
    half = np.arange(len(plain)) % 2 == 0
    (top, bottom), (other_top, other_bottom) = (
        estimators.optimal_baseline_moments(plain[part], scores[part]) for part in (~half, half)
    )
    constants = np.where(half, top / bottom, other_top / other_bottom)
    gradients["optimal", None, discounted] = plain - constants[:, None] * scores


def _figures(g: np.ndarray, reference: np.ndarray, per_rollout: float) -> dict[str, float]:
    """The figures of one estimator, from the inner products of its episodes' gradients."""
    g, reference = g.astype(np.float64), reference.astype(np.float64)
    own, cross, others = g @ g.T, g @ reference.T, reference @ reference.T
    difference = own - cross - cross.T + others
    n = len(g)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1.0 / n), size=_N_BOOTSTRAP)
    once = np.ones((1, n))

    def squared_mean(products: np.ndarray, w: np.ndarray) -> np.ndarray:
        pairs = ((w @ products) * w).sum(axis=1) - w**2 @ products.diagonal()
        return np.asarray(pairs / (n**2 - (w**2).sum(axis=1)))

    def variance(w: np.ndarray) -> np.ndarray:
        return np.asarray(w @ own.diagonal() / n - squared_mean(own, w))

    with np.errstate(divide="ignore", invalid="ignore"):
        signal, target, spread = squared_mean(own, once)[0], squared_mean(others, once)[0], variance(once)[0]
        signal, target = (value if value > 0.0 else np.nan for value in (signal, target))
        low, high = np.percentile(variance(counts), [2.5, 97.5])
        bias = np.sqrt(np.maximum(squared_mean(difference, once), 0.0) / target)
        bias_low, bias_high = np.percentile(np.sqrt(np.maximum(squared_mean(difference, counts), 0.0) / target), [2.5, 97.5])
        cosine = np.clip(squared_mean(cross, once)[0] / np.sqrt(signal * target), -1.0, 1.0)
        noise_scale = spread / signal
        return {
            "variance": spread, "variance_low": low, "variance_high": high, "signal": np.sqrt(signal), "snr": signal / spread,
            "bias": bias[0], "bias_low": bias_low, "bias_high": bias_high, "cosine": cosine, "noise_scale": noise_scale,
            "alignment": cosine / np.sqrt(1.0 + noise_scale / per_rollout),
        }  # fmt: skip


class GradientDiagnosticsCallback(BaseCallback):
    """Log the figures of :func:`gradient_diagnostics` while a model trains, as ``diagnostics/FIGURE/ESTIMATOR``.

    The figures are variance, snr, bias, cosine, batch_steps and alignment. The cost is that of playing the episodes and of one
    gradient for each estimator and episode: at the defaults 0.9% of the training time of VanillaPG on CartPole-v1 and 2.7% on
    HalfCheetah-v5 (8 environments each, CPU). With so few episodes single values are rough: read them as curves, or play more.

    :param env: environments to play in, not those of training; wrapped in VecNormalize if those are, whose statistics are
        then copied
    :param every: environment steps of training between two measurements; the first is at the end of the first rollout
    :param n_episodes: episodes a measurement
    :param gae_lambdas: λ of the ``gae`` rows
    :param verbose: verbosity, as in SB3
    :raises ValueError: if ``every`` is not positive
    """

    _FIGURES = ("variance", "snr", "bias", "cosine", "batch_steps", "alignment")

    def __init__(
        self,
        env: VecEnv,
        every: int = 250_000,
        n_episodes: int = 8,
        gae_lambdas: Sequence[float] = (0.9, 0.97),
        verbose: int = 0,
    ):
        super().__init__(verbose)
        if every < 1:
            raise ValueError(f"every must be at least 1 step, not {every}.")
        self.env, self.every, self.n_episodes, self.gae_lambdas = env, every, n_episodes, gae_lambdas
        self._next = 0

    def _on_training_start(self) -> None:
        if self.env is self.training_env:
            raise ValueError(
                "The diagnostics abandon episodes in progress: pass environments of their own, not the training's."
            )
        self.env = _check(self.model, self.env, self.n_episodes, self.gae_lambdas)
        self._next = self.num_timesteps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps < self._next:
            return
        self._next = self.num_timesteps + self.every
        sync_envs_normalization(self.training_env, self.env)
        assert isinstance(self.model, OnPolicyAlgorithm)
        table = gradient_diagnostics(self.model, self.env, self.n_episodes, self.gae_lambdas)
        for row in table.to_dict("records"):
            name = row["estimator"] + ("" if np.isnan(row["gae_lambda"]) else f"_{row['gae_lambda']:g}")
            if row["estimator"] == "value" and row["discounted"] != table.discounted.mode()[0]:
                name = "value_discounted"
            for figure in self._FIGURES:
                self.logger.record(f"diagnostics/{figure}/{name}", row[figure])
