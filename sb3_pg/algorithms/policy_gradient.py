"""The policy gradient theorem on SB3's classes: the only ``train`` of the package."""

from math import inf
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.utils import update_learning_rate

from sb3_pg import distributed
from sb3_pg.algorithms.arguments import check_keywords
from sb3_pg.algorithms.batch import Batch, make_batch
from sb3_pg.algorithms.critic import clip_gradient, fit_critic
from sb3_pg.algorithms.model import Model
from sb3_pg.algorithms.ranks import meet, merge_batch_statistics, named_tensors, of_this_rank
from sb3_pg.algorithms.undo import undone_on_error
from sb3_pg.finite import require_finite, require_finite_rows, require_rate
from sb3_pg.losses import score_function_loss
from sb3_pg.policies.kind import CHUNK_SIZE
from sb3_pg.rollouts.buffers import EpisodeRolloutBuffer

# Steps, at most, on which the logged KL divergence is estimated
KL_SAMPLES = 256


class _Ending(NamedTuple):
    """What the weights of a rollout are made of, beside the rollout: see :meth:`PolicyGradient._finish_rollout`."""

    buffer: RolloutBuffer
    last_values: th.Tensor
    terminal_values: np.ndarray
    dones: np.ndarray
    baseline_state: tuple[Any, ...]


class PolicyGradient(Model):
    """Base of the package's algorithms: one gradient step on −Σ log π(a∣s) · Ψ / C per batch of fresh data.

    Subclasses fix what is subtracted from the weights Ψ (:meth:`_subtract_baseline`) and how the gradient becomes a step
    (:meth:`_step_policy`). Parameters are documented in :class:`sb3_pg.VanillaPG`.
    """

    _ending: "_Ending | None" = None
    #: What a baseline that looks back has seen of earlier rollouts
    _baseline_state: tuple[Any, ...] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Refuse keywords that the constructor does not take, and say what takes their place."""
        check_keywords(cls, kwargs)
        return super().__new__(cls)

    # What the subclasses differ in

    @property
    def uses_critic(self) -> bool:
        """Whether V enters the weights. If not, no critic is evaluated or trained."""
        return self.weights == "gae"

    @property
    def bootstraps(self) -> bool:
        """Whether V of what follows an unfinished episode enters the weights."""
        return self.weights == "gae"

    @property
    def whole_episodes(self) -> bool:
        """Whether rollouts consist of whole episodes. If not, they are cut after ``n_steps`` and bootstrapped."""
        return self.weights != "gae" or self.n_episodes is not None

    def _subtract_baseline(self, rollout_buffer: EpisodeRolloutBuffer, dones: np.ndarray) -> None:
        """Subtract the baseline from ``rollout_buffer.advantages``; ``dones``: whether the last step ended an episode."""

    def _is_centred(self, timesteps: th.Tensor) -> bool:
        """Whether standardising subtracts the mean weight of a rollout, or divides only.

        :param timesteps: of its steps in use, each since the start of its episode, ``(n_used,)``
        """
        # The total return of a single episode is its own mean: nothing would be left
        return not (self.weights == "return" and distributed.total(int((timesteps == 0).sum())) == 1)

    def _step_policy(self, batch: Batch) -> dict[str, float]:
        """Change the actor's parameters, given the gradient of the batch's loss in their ``.grad``; return what to log."""
        grad_norm = clip_gradient("the policy's gradient", self.kind.actor_parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        return {"grad_norm": grad_norm}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_ending"]

    # Training

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        distributed.join()
        if distributed.size() > 1:
            meet(self)
        return super()._setup_learn(*args, **kwargs)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if distributed.size() > 1:
            callbacks = (
                callback if isinstance(callback, list) else [ConvertCallback(callback) if callable(callback) else callback]
            )
            # No callback at all is quicker than none in a list
            callback = of_this_rank([*callbacks, *([ProgressBarCallback()] if progress_bar else [])]) or None
            progress_bar = False
        return super()._init_callback(callback, progress_bar)

    def _finish_rollout(
        self, rollout_buffer: RolloutBuffer, last_values: th.Tensor, terminal_values: np.ndarray, dones: np.ndarray
    ) -> None:
        """Fill in the weights, less the baseline, and the critic's targets."""
        self._ending = _Ending(rollout_buffer, last_values, terminal_values, dones, self._baseline_state)
        if not isinstance(rollout_buffer, EpisodeRolloutBuffer):
            rollout_buffer.rewards += self.gamma * terminal_values
        self.recompute_weights()
        if isinstance(rollout_buffer, EpisodeRolloutBuffer):
            rollout_buffer.weigh = self._weigh  # what SB3's callbacks call after they have changed rewards
        if self.whole_episodes:
            assert isinstance(rollout_buffer, EpisodeRolloutBuffer)
            mask = rollout_buffer.mask
            counts = np.array([mask.sum(), mask.size, (mask & (rollout_buffer.timesteps == 0)).sum()])
            n_used, n_played, n_episodes = distributed.total(counts).tolist()
            self.logger.record("rollout/episodes_used", n_episodes)
            self.logger.record("rollout/steps_used_fraction", n_used / n_played)

    def recompute_weights(self) -> None:
        """Make the weights, less the baseline, and the critic's targets of the last rollout anew.

        For callbacks that change ``rollout_buffer.rewards`` in ``on_rollout_end``, such as intrinsic rewards. What was
        bootstrapped stays as it was, and a baseline that looks back has seen the rollout once, with its new rewards.

        :raises RuntimeError: if there is no rollout
        """
        if self._ending is None:
            raise RuntimeError("There is no rollout to weigh: call recompute_weights() in on_rollout_end or later.")
        self._weigh(self._ending.last_values, self._ending.dones)

    def _weigh(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        assert self._ending is not None
        buffer = self._ending.buffer
        if not isinstance(buffer, EpisodeRolloutBuffer):
            buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
            return
        buffer.compute_returns_and_advantage(last_values, dones, self.weights, self._ending.terminal_values)
        require_finite_rows("weight", buffer.advantages)
        self._baseline_state = self._ending.baseline_state
        self._subtract_baseline(buffer, dones)

    def train(self) -> None:
        """One policy step on the rollout, then the critic's fit: both, or neither if one of them fails.

        :raises ValueError: if something is not finite, or a schedule returns what is no rate; parameters and optimizers are
            then what they were before
        """
        self._follow_policy()
        if distributed.size() > 1:
            distributed.require_equal(named_tensors(self))
        with self.kind.computing(), undone_on_error(self):
            batch = make_batch(self)
            metrics = self._update_policy(batch)
            if self.uses_critic:
                metrics |= self._update_critic(batch)
            merge_batch_statistics(self.policy, len(batch.steps) / batch.targets.n)
        self._n_updates += 1

        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, value in metrics.items():
            self.logger.record(f"train/{name}", value)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", self.policy.log_std.detach().exp().mean().item())

    @property
    def _normalizer(self) -> int:
        """C of the pseudo-loss, known before the rollout: what was collected varies with the policy's luck.

        Rows of a cut rollout in which an environment was reset are none of its steps.
        """
        if not self.whole_episodes and isinstance(self.rollout_buffer, EpisodeRolloutBuffer):
            return distributed.total(int(np.count_nonzero(self.rollout_buffer.mask)))
        return distributed.total(self.n_envs * (self.n_steps if self.n_episodes is None else self.n_episodes))

    def _update_policy(self, batch: Batch) -> dict[str, float]:
        """One step along the estimated policy gradient, accumulated in chunks; return what to log."""
        # The mode the rollout was played in: dropout or batch statistics would score another policy
        if self.policy.training:
            self.policy.set_training_mode(False)
        learning_rate = self._set_rate("learning_rate", self.lr_schedule, self.policy.optimizer)
        self.policy.optimizer.zero_grad()
        policy_loss, entropy_sum, normalizer = 0.0, 0.0, self._normalizer
        log_probs = th.empty_like(batch.weights)
        ent_coef = self.ent_coef_schedule(self._current_progress_remaining)
        require_rate("ent_coef", ent_coef, low=-inf)
        for chunk in self.kind.chunks(batch.steps):
            log_prob, entropy = self.kind.log_prob_and_entropy(batch.steps[chunk])
            log_probs[chunk] = log_prob.detach()
            loss = score_function_loss(log_prob, batch.weights[chunk], normalizer)
            policy_loss += loss.item()
            entropy_of_chunk = entropy.sum()
            entropy_sum += entropy_of_chunk.item()
            require_finite("the policy's loss", policy_loss + ent_coef * entropy_sum)
            if ent_coef != 0.0:
                loss = loss - ent_coef * entropy_of_chunk / normalizer
            if loss.requires_grad:  # the user may have frozen the actor
                loss.backward()  # type: ignore[no-untyped-call]
        if isinstance(self.rollout_buffer, EpisodeRolloutBuffer):
            self.rollout_buffer.take_log_probs(log_probs.cpu().numpy())
        actor_parameters = self.kind.actor_parameters()
        distributed.sum_gradients(actor_parameters)
        metrics = self._step_policy(batch)
        if actor_parameters and any(
            isinstance(module, th.nn.modules.batchnorm._BatchNorm) for module in self.policy.modules()
        ):
            self._update_batch_statistics(batch)
        sums = np.array([policy_loss, entropy_sum, len(batch.steps) * self._estimate_kl(batch, log_probs)])
        policy_loss, entropy_sum, kl_sum = distributed.total(sums).tolist()
        return {
            "policy_loss": policy_loss,
            "entropy_loss": -entropy_sum / batch.targets.n,
            "approx_kl": kl_sum / batch.targets.n,
            "learning_rate": learning_rate,
            **({"ent_coef": ent_coef} if callable(self.ent_coef) else {}),
            **metrics,
        }

    def _estimate_kl(self, batch: Batch, old_log_probs: th.Tensor) -> float:
        """SB3's estimator of KL(old || new), http://joschu.net/blog/kl-approx.html, on steps of this rank from all over."""
        some = self.kind.excerpt(batch.steps, KL_SAMPLES)
        with th.no_grad():
            log_prob, _ = self.kind.log_prob_and_entropy(batch.steps[some])
            log_ratio = log_prob - old_log_probs[some]
            return (log_ratio.exp() - 1.0 - log_ratio).mean().item()

    def _update_batch_statistics(self, batch: Batch) -> None:
        """Show the rollout to the actor's batch norm, whose statistics are fixed while it is played and scored."""
        self.policy.set_training_mode(True)
        with th.no_grad():
            # Batch norm refuses a single sample
            for part in self.kind.minibatches(batch.steps, CHUNK_SIZE, shuffled=False) if len(batch.steps) > 1 else ():
                self.kind.show(batch.steps[part])
        self.policy.set_training_mode(False)

    def _update_critic(self, batch: Batch) -> dict[str, float]:
        """The critic's fit, at its own learning rate; return what to log."""
        learning_rate = self._set_rate("the critic's learning rate", self.critic_lr_schedule, self.critic_optimizer)
        return {**fit_critic(self, batch), "critic_learning_rate": learning_rate}

    def _set_rate(self, what: str, schedule: Schedule, optimizer: th.optim.Optimizer) -> float:
        """Ask a schedule for the rate of this update and give it to the optimizer."""
        rate = schedule(self._current_progress_remaining)
        require_rate(what, rate)
        update_learning_rate(optimizer, rate)
        return rate
