"""NaturalPG: the policy gradient, preconditioned by the Fisher information matrix."""

from collections.abc import Callable
from math import inf, sqrt
from typing import Any

import torch as th
from sb3_contrib.common.utils import flat_grad
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_pg import distributed
from sb3_pg.algorithms.arguments import check_count, check_integer, check_number, check_rate
from sb3_pg.algorithms.batch import Batch
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.finite import require_finite, require_rate

# A gradient (of standardised or raw weights) no longer than this is rounding error and has no direction
_NO_GRADIENT = 1e-8
# Share of xᵀ(F + damping · I)x below which xᵀFx no longer sets the length of the step. A nearly deterministic policy has
# almost no curvature, and steps of the full KL divergence would take it far along noise
_LEAST_SHARE = 2.0 / 3.0
# Steps at which the Fisher matrix is as good as at more: the damping outweighs what they would add
_FISHER_STEPS = 2048
# Conjugate gradients stop at a residual of this squared length, that of the right-hand side being 1
_RESIDUAL_TOLERANCE = 1e-10


class NaturalPG(PolicyGradient):
    r"""Natural policy gradient (Kakade 2001; Peters & Schaal 2008): VanillaPG's gradient in the metric of the policy.

    The step is √(2δ / xᵀFx) · x with x = (F + damping · I)⁻¹ ĝ: of the directions that change the policy by the KL divergence
    δ = ``target_kl``, the one that ĝ favours most. Where the damping outweighs the curvature, as it does for a nearly
    deterministic policy, ⅔ · xᵀ(F + damping · I)x replaces xᵀFx, and the step is shorter. F = E[∇log π ∇log πᵀ] is the
    Fisher matrix over the states of the rollout, each step counting once; it is never formed, but applied to vectors by a
    second derivative of the KL divergence, and the system is solved by conjugate gradients. Unlike TRPO there is one full
    step and no line search.

    ĝ is VanillaPG's, with the same ``weights``. The length of the step does not depend on the scale of ĝ, and no step is taken
    where ĝ is numerically zero; for the same reason even a small ``ent_coef`` sets the direction where rewards say nothing.
    A Fisher product differentiates twice through the network on all its steps at once (one in ``sub_sampling_factor``, drawn
    at random), so its memory grows with them: on images, sub-sample, but keep some hundred steps.

    :param learning_rate: Learning rate of the critic, a number or a schedule (the policy's step follows from ``target_kl``)
    :param target_kl: KL(old ∥ new) of a policy step, in nats per state, to second order; a number or a schedule
    :param cg_max_steps: Conjugate-gradient iterations, each with one Fisher product
    :param cg_damping: Added to the diagonal of F: larger values turn the direction towards ĝ
    :param sub_sampling_factor: Use one in so many steps of the rollout for the Fisher matrix (the gradient uses all); None
        for all of them up to 4,095 steps, and the factor that leaves 2,048 or a few more of longer rollouts

    All other parameters are those of :class:`~sb3_pg.VanillaPG`; there is no ``critic_learning_rate`` and no
    ``max_grad_norm``. Without a critic (``weights`` other than ``"gae"``) ``learning_rate`` is inactive as well.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 2.5e-3,
        n_steps: int = 1024,
        n_episodes: int | None = None,
        batch_size: int | None = None,
        gamma: float = 0.99,
        weights: str = "gae",
        gae_lambda: float = 0.97,
        discounted_state_distribution: bool = False,
        normalize_advantage: bool = True,
        ent_coef: float | Schedule = 0.0,
        target_kl: float | Schedule = 0.01,
        cg_max_steps: int = 8,
        cg_damping: float = 0.1,
        sub_sampling_factor: int | None = None,
        n_critic_updates: int = 4,
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
        self.target_kl = target_kl
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.sub_sampling_factor = sub_sampling_factor
        super().__init__(
            policy, env, learning_rate=learning_rate, n_steps=n_steps, n_episodes=n_episodes, batch_size=batch_size,
            gamma=gamma, weights=weights, gae_lambda=gae_lambda,
            discounted_state_distribution=discounted_state_distribution, normalize_advantage=normalize_advantage,
            ent_coef=ent_coef, max_grad_norm=None, critic_learning_rate=None, n_critic_updates=n_critic_updates,
            use_sde=use_sde, sde_sample_freq=sde_sample_freq, rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs, stats_window_size=stats_window_size, tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs, verbose=verbose, seed=seed, device=device,
            normalize_targets=normalize_targets, _init_setup_model=_init_setup_model,
        )  # fmt: skip

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_rate("target_kl", self.target_kl)
        check_count("cg_max_steps", self.cg_max_steps, 1)
        check_number("cg_damping", self.cg_damping, 0.0, inf)
        self.cg_damping = float(self.cg_damping)  # torch multiplies by no fraction or long integer
        if self.sub_sampling_factor is not None:
            check_integer("sub_sampling_factor", self.sub_sampling_factor, 1, " (None for what fits the rollout)")

    def _setup_model(self) -> None:
        super()._setup_model()
        self.kind.check_divergence()

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        self.target_kl_schedule = FloatSchedule(self.target_kl)

    def _step_policy(self, batch: Batch) -> dict[str, float]:
        parameters = [p for p in self.kind.actor_parameters() if p.grad is not None]
        # Ascent on the objective is descent on the loss. Nothing is left of it if the user has frozen the actor
        gradient = th.cat([th.zeros(0, device=self.device), *(-p.grad.flatten() for p in parameters)])  # type: ignore[union-attr]
        grad_norm = gradient.norm().item()
        require_finite("the policy's gradient", grad_norm)
        target_kl = self.target_kl_schedule(self._current_progress_remaining)
        require_rate("target_kl", target_kl)
        metrics = {"grad_norm": grad_norm, "target_kl": target_kl}
        if grad_norm <= _NO_GRADIENT:
            return metrics

        fisher_product = self._make_fisher_product(batch, parameters)
        # The step does not depend on the length of the gradient, but the solver's tolerance does
        gradient /= grad_norm
        direction = _solve(lambda v: fisher_product(v) + self.cg_damping * v, gradient, self.cg_max_steps)
        # xᵀ(F + λI)x = xᵀg holds for every iterate of conjugate gradients from 0, the solution or not: no further product
        damped_curvature = direction.dot(gradient).item()
        curvature = damped_curvature - self.cg_damping * direction.square().sum().item()
        curvature = max(curvature, _LEAST_SHARE * damped_curvature)
        step_size = sqrt(2.0 * target_kl / curvature) if curvature > 0.0 else 0.0
        require_finite("the natural gradient", step_size * direction.norm().item())
        with th.no_grad():
            steps = th.split(step_size * direction, [p.numel() for p in parameters])
            for p, step in zip(parameters, steps, strict=True):
                p.add_(step.view_as(p))
        return metrics

    def _make_fisher_product(self, batch: Batch, parameters: list[th.nn.Parameter]) -> Callable[[th.Tensor], th.Tensor]:
        """v ↦ Fv, for flat vectors over the parameters.

        At the current parameters F is the Hessian of E[KL(old ∥ new)], so that Fv = ∇(∇KL · v).
        """
        steps, n = batch.steps, batch.targets.n
        factor = self.sub_sampling_factor or max(1, n // _FISHER_STEPS)
        if factor > 1:
            steps = steps[self.kind.excerpt(steps, -(-len(steps) // factor), shuffled=True)]
            n = distributed.total(len(steps))
        mean_kl = self.kind.kl_divergence(steps).sum() / n
        grad_kl = flat_grad(mean_kl, parameters, create_graph=True, retain_graph=True)

        def fisher_product(vector: th.Tensor) -> th.Tensor:
            return distributed.total(flat_grad(grad_kl @ vector, parameters, retain_graph=True))

        return fisher_product


def _solve(product: Callable[[th.Tensor], th.Tensor], b: th.Tensor, max_steps: int) -> th.Tensor:
    """The solution x of Ax = b by conjugate gradients (Hestenes & Stiefel 1952), starting from 0.

    sb3-contrib's solver starts from noise of length 1e-4 · √n. Where A is large, as it is for small standard deviations,
    that is more than the solution, and what of it lies where A is small is still there after the last iteration.

    :param product: v ↦ Av, for a symmetric, positive definite A
    :param b: of length 1, ``(n,)``
    :param max_steps: iterations, at most
    :return: ``(n,)``
    """
    x, residual, direction = th.zeros_like(b), b.clone(), b.clone()
    squared_norm = residual.dot(residual)
    for _ in range(max_steps):
        image = product(direction)
        step = squared_norm / direction.dot(image)
        x += step * direction
        residual -= step * image
        previous, squared_norm = squared_norm, residual.dot(residual)
        if squared_norm < _RESIDUAL_TOLERANCE:
            break
        direction = residual + squared_norm / previous * direction
    return x
