"""ReinforceBaseline: REINFORCE on whole episodes, with a choice of baseline."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_pg import distributed, estimators
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.rollouts.buffers import EpisodeRolloutBuffer

# Share of the running mean, and of the optimal baseline's moments, that a rollout leaves in place
_DECAY = 0.9


class ReinforceBaseline(PolicyGradient):
    r"""REINFORCE with a baseline: whole episodes, weights Ψ = Gₜ − b or R(τ) − b.

    A baseline that does not depend on the action lowers the variance of the gradient and leaves its mean alone. None of
    these has seen the returns it is subtracted from:

    - ``"value"``: the critic, V(sₜ) under ``weights="reward_to_go"``, V(s₀) under ``weights="return"``; it is regressed on
      the rewards-to-go after it has been used. With ``weights="gae"``, the GAE of whole episodes;
    - ``"leave_one_out"``: the mean over the other episodes of the rollout, at the same step of the episode. Needs a second
      episode: several environments, or ``n_episodes`` ≥ 2;
    - ``"running_mean"``: an exponential moving average over earlier rollouts' mean weight (0 in the first);
    - ``"optimal"``: the constant of least variance (Greensmith et al. 2004), from earlier rollouts (0 in the first). It
      costs two gradients an episode.

    The last two are constants, so ``normalize_advantage`` divides their weights by the root mean square and leaves the mean
    alone: subtracting it would undo the choice of the constant.

    Without ``baseline="value"`` there is no critic: ``gae_lambda``, ``batch_size``, ``critic_learning_rate`` and
    ``n_critic_updates`` are then inactive.

    :param weights: ``"reward_to_go"``, ``"return"``, or ``"gae"`` with ``baseline="value"`` only
    :param baseline: ``"value"``, ``"leave_one_out"``, ``"running_mean"`` or ``"optimal"``
    :param n_steps: Every episode that begins within these steps, in each environment, is played to its end and used

    All other parameters are those of :class:`~sb3_pg.VanillaPG`.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1.5e-3,
        n_steps: int = 256,
        n_episodes: int | None = None,
        batch_size: int | None = None,
        gamma: float = 0.99,
        weights: str = "reward_to_go",
        baseline: str = "value",
        gae_lambda: float = 0.97,
        discounted_state_distribution: bool = False,
        normalize_advantage: bool = True,
        ent_coef: float | Schedule = 0.0,
        max_grad_norm: float | None = 0.5,
        critic_learning_rate: float | Schedule | None = None,
        n_critic_updates: int = 1,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        normalize_targets: bool = True,
        _init_setup_model: bool = True,
    ):
        self.baseline = baseline
        # State of the baselines that look back, saved with the model: None before the first rollout
        self._running_mean: float | None = None
        self._optimal_moments: np.ndarray | None = None
        super().__init__(
            policy, env, learning_rate=learning_rate, n_steps=n_steps, n_episodes=n_episodes, batch_size=batch_size,
            gamma=gamma, weights=weights, gae_lambda=gae_lambda,
            discounted_state_distribution=discounted_state_distribution, normalize_advantage=normalize_advantage,
            ent_coef=ent_coef, max_grad_norm=max_grad_norm, critic_learning_rate=critic_learning_rate,
            n_critic_updates=n_critic_updates,
            use_sde=use_sde, sde_sample_freq=sde_sample_freq, rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs, stats_window_size=stats_window_size, tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs, verbose=verbose, seed=seed, device=device,
            normalize_targets=normalize_targets, _init_setup_model=_init_setup_model,
        )  # fmt: skip

    @property
    def uses_critic(self) -> bool:
        """Whether V is the baseline."""
        return self.baseline == "value"

    @property
    def whole_episodes(self) -> bool:
        """Always: the baselines here are of Monte-Carlo returns."""
        return True

    @property
    def _baseline_state(self) -> tuple[Any, ...]:  # type: ignore[override]
        return self._running_mean, self._optimal_moments

    @_baseline_state.setter
    def _baseline_state(self, state: tuple[Any, ...]) -> None:
        self._running_mean, self._optimal_moments = state

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.baseline not in ("value", "leave_one_out", "running_mean", "optimal"):
            raise ValueError(f'baseline must be "value", "leave_one_out", "running_mean" or "optimal", not {self.baseline!r}.')
        if self.weights == "gae" and self.baseline != "value":
            raise ValueError(f'weights="gae" contains the critic: use baseline="value" with it, not {self.baseline!r}.')

    def _check_env(self) -> None:
        super()._check_env()
        if self.baseline == "leave_one_out" and distributed.size() * self.n_envs * (self.n_episodes or 1) == 1:
            raise ValueError(
                'baseline="leave_one_out" averages over other episodes: use several environments, or n_episodes of at least 2.'
            )

    def _subtract_baseline(self, rollout_buffer: EpisodeRolloutBuffer, dones: np.ndarray) -> None:
        if self.weights == "gae":
            return
        done_steps = rollout_buffer.done_steps(dones)
        weights, mask, per_episode = rollout_buffer.advantages, rollout_buffer.mask, self.weights == "return"
        if self.baseline == "value":
            weights -= estimators.value_baseline(rollout_buffer.values, done_steps, per_episode)
        elif self.baseline == "leave_one_out":
            others = estimators.leave_one_out_baseline(
                weights, rollout_buffer.timesteps, mask, self.n_episodes is None, distributed.total_padded
            )
            weights -= estimators.episode_first(others, done_steps) if per_episode else others
        elif self.baseline == "running_mean":
            counted = mask & (rollout_buffer.timesteps == 0) if per_episode else mask
            mean = float(distributed.gather(weights[counted]).mean())
            weights -= self._running_mean or 0.0
            self._running_mean = estimators.update_running_mean(self._running_mean, mean, _DECAY)
        else:
            moments = self._measure_optimal_moments(rollout_buffer, done_steps)
            old = self._optimal_moments
            if old is not None and old[1] > 0.0:
                weights -= old[0] / old[1]
            self._optimal_moments = moments if old is None else _DECAY * old + (1.0 - _DECAY) * moments

    def _is_centred(self, timesteps: th.Tensor) -> bool:
        # Subtracting the mean of the batch would put it in the place of the constant that was subtracted
        return self.baseline not in ("running_mean", "optimal") and super()._is_centred(timesteps)

    def _measure_optimal_moments(self, rollout_buffer: EpisodeRolloutBuffer, done_steps: np.ndarray) -> estimators.Array:
        """Means over the episodes in use of ⟨g(τ), s(τ)⟩ and ‖s(τ)‖², ``(2,)``; one episode in memory at a time."""
        kind, moments = self.kind, []
        for env, rows in rollout_buffer.episodes(done_steps):
            # g(τ) = Σ ∇log π · Ψ and s(τ) = Σ ∇log π
            factors = np.ones(rows.stop - rows.start)
            if self.discounted_state_distribution:
                factors = estimators.discount_factors(rollout_buffer.timesteps[rows, env], self.gamma)
            step_weights = np.stack([factors * rollout_buffer.advantages[rows, env], factors])
            gradient, score = kind.sum_scores(kind.episode_steps(rollout_buffer, env, rows), step_weights)
            moments.append(estimators.optimal_baseline_moments(gradient[None], score[None]))
        with th.no_grad():  # the policy remembers its last distribution: one with a graph could not be copied
            kind.log_prob_and_entropy(kind.episode_steps(rollout_buffer, 0, slice(1)))
        return np.asarray(distributed.gather(np.array(moments)).mean(axis=0))
