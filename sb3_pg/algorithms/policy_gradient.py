"""The policy gradient theorem on SB3's classes: the only ``train`` of the package."""

import io
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import (
    MaskableActorCriticCnnPolicy,
    MaskableActorCriticPolicy,
    MaskableMultiInputActorCriticPolicy,
)
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate

from sb3_pg import distributed
from sb3_pg.algorithms.arguments import check_arguments, check_env, check_load_keywords, require_env
from sb3_pg.algorithms.batch import Batch, make_batch
from sb3_pg.algorithms.critic import clip_gradient, fit_critic, fuse
from sb3_pg.finite import require_finite, require_finite_rows
from sb3_pg.losses import score_function_loss
from sb3_pg.policies import (
    MaskableRecurrentActorCriticPolicy,
    MaskableRecurrentMultiInputActorCriticPolicy,
    find_kind,
)
from sb3_pg.policies.kind import CHUNK_SIZE
from sb3_pg.rollouts.actions import policy_action_space, to_env_actions
from sb3_pg.rollouts.buffers import EpisodeDictRolloutBuffer, EpisodeRolloutBuffer
from sb3_pg.rollouts.collect import RolloutAlgorithm

SelfPolicyGradient = TypeVar("SelfPolicyGradient", bound="PolicyGradient")

# Steps, at most, on which the logged KL divergence is estimated
KL_SAMPLES = 256


class PolicyGradient(RolloutAlgorithm):
    """Base of the package's algorithms: one gradient step on −Σ log π(a∣s) · Ψ / C per batch of fresh data.

    Subclasses fix what is subtracted from the weights Ψ (:meth:`_subtract_baseline`) and how the gradient becomes a step
    (:meth:`_step_policy`). Parameters are documented in :class:`sb3_pg.VanillaPG`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
        "MlpLstmPolicy": RecurrentActorCriticPolicy,
        "CnnLstmPolicy": RecurrentActorCriticCnnPolicy,
        "MultiInputLstmPolicy": RecurrentMultiInputActorCriticPolicy,
        "MaskableMlpPolicy": MaskableActorCriticPolicy,
        "MaskableCnnPolicy": MaskableActorCriticCnnPolicy,
        "MaskableMultiInputPolicy": MaskableMultiInputActorCriticPolicy,
        "MaskableMlpLstmPolicy": MaskableRecurrentActorCriticPolicy,
        "MaskableMultiInputLstmPolicy": MaskableRecurrentMultiInputActorCriticPolicy,
    }
    #: Steps between two logs, at least, where ``learn`` is given no ``log_interval``: PPO's pace in one environment
    LOG_STEPS: ClassVar[int] = 2048

    critic_optimizer: th.optim.Optimizer
    _paces_logs = False

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        *,
        n_episodes: int | None,
        batch_size: int,
        weights: str,
        discounted_state_distribution: bool,
        normalize_advantage: bool,
        critic_learning_rate: float | Schedule | None,
        n_critic_updates: int,
        _init_setup_model: bool,
        **of_sb3: Any,
    ):
        super().__init__(
            policy,
            env,
            vf_coef=0.0,  # the critic has its own optimizer
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
            _init_setup_model=False,
            **of_sb3,
        )
        self.n_episodes = n_episodes
        self.batch_size = batch_size
        self.weights = weights
        self.discounted_state_distribution = discounted_state_distribution
        self.normalize_advantage = normalize_advantage
        self.critic_learning_rate = critic_learning_rate
        self.n_critic_updates = n_critic_updates
        # Steps since the start of the episode in progress, (n_envs,)
        self._episode_timesteps = np.zeros(0, dtype=np.int64)
        if _init_setup_model:
            require_env(self)
            self._setup_model()
            self._check_env()

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

    def _check_arguments(self) -> None:
        """Refuse every wrong argument: ``TypeError`` or ``ValueError`` with what to do."""
        check_arguments(self)

    def _check_env(self) -> None:
        """Refuse environments that cannot be trained on."""
        check_env(self)

    def _subtract_baseline(self, rollout_buffer: EpisodeRolloutBuffer, dones: np.ndarray) -> None:
        """Subtract the baseline from ``rollout_buffer.advantages``; ``dones``: whether the last step ended an episode."""

    def _is_centred(self, n_episodes: int) -> bool:
        """Whether standardising subtracts the mean weight of a rollout of so many episodes, or divides only."""
        # The total return of a single episode is its own mean: nothing would be left
        return not (self.weights == "return" and n_episodes == 1)

    def _step_policy(self, batch: Batch) -> dict[str, float]:
        """Change the actor's parameters, given the gradient of the batch's loss in their ``.grad``; return what to log."""
        grad_norm = clip_gradient("the policy's gradient", self.kind.actor_parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        return {"grad_norm": grad_norm}

    # Construction

    def _setup_model(self) -> None:
        # SB3's load() sets attributes and calls this, without the constructor: all checks and derived state belong here
        self._check_arguments()
        if self.rollout_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = EpisodeDictRolloutBuffer if is_dict else EpisodeRolloutBuffer
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        action_space = policy_action_space(self.action_space)
        self.rollout_buffer = self.rollout_buffer_class(
            self.n_steps, self.observation_space, action_space, device=self.device, gamma=self.gamma,
            gae_lambda=self.gae_lambda, n_envs=self.n_envs, **self.rollout_buffer_kwargs,
        )  # fmt: skip
        kind = find_kind(self.policy_class)
        policy = kind.make_policy(
            self.policy_class, self.observation_space, action_space, self.lr_schedule, self.use_sde, **self.policy_kwargs
        )
        self.policy = policy.to(self.device)
        self._maybe_recommend_cpu()
        fuse(self.policy.optimizer)
        self._setup_critic_optimizer()

    def _setup_critic_optimizer(self) -> None:
        critic_parameters = self.kind.critic_parameters(trainable=False)
        if self.uses_critic and not critic_parameters:
            raise ValueError(
                "The policy has no parameters of its own for V(s): use weights or a baseline without a critic, such as "
                'VanillaPG(weights="reward_to_go") or ReinforceBaseline(baseline="running_mean").'
            )
        self.critic_optimizer = self.policy.optimizer_class(
            [{"params": critic_parameters}],
            lr=self.critic_lr_schedule(1.0),  # type: ignore[call-arg]
            **self.policy.optimizer_kwargs,
        )
        fuse(self.critic_optimizer)

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        is_set = self.critic_learning_rate is not None
        self.critic_lr_schedule = FloatSchedule(self.critic_learning_rate if is_set else self.learning_rate)  # type: ignore

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "critic_optimizer"], variables

    @classmethod
    def load(
        cls: type[SelfPolicyGradient],
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfPolicyGradient:
        """Load a model that :meth:`save` has written.

        :param path: file, with or without ``.zip``, or a file-like object
        :param env: environment to learn from; None if the model is to predict
        :param device: device on which the networks run
        :param custom_objects: what to take in the place of saved objects that cannot be read, by name
        :param print_system_info: print the system the model was saved on, and this one
        :param force_reset: begin the next ``learn`` with a reset of the environment
        :param kwargs: arguments of the constructor, or attributes of the saved model such as ``n_envs``, to change
        :return: the model
        :raises TypeError: if a keyword is none of these
        """
        check_load_keywords(cls, path, set(kwargs))
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    # Training

    def _finish_rollout(
        self, rollout_buffer: RolloutBuffer, last_values: th.Tensor, terminal_values: np.ndarray, dones: np.ndarray
    ) -> None:
        """Fill in the weights, less the baseline, and the critic's targets."""
        if not isinstance(rollout_buffer, EpisodeRolloutBuffer):
            rollout_buffer.rewards += self.gamma * terminal_values
            rollout_buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
            return
        rollout_buffer.compute_returns_and_advantage(last_values, dones, self.weights, terminal_values)
        require_finite_rows("weight", rollout_buffer.advantages)
        self._subtract_baseline(rollout_buffer, dones)
        if self.whole_episodes:
            mask = rollout_buffer.mask
            n_used, n_played = distributed.total(int(mask.sum())), distributed.total(mask.size)
            n_episodes = distributed.total(int((mask & (rollout_buffer.timesteps == 0)).sum()))
            self.logger.record("rollout/episodes_used", n_episodes)
            self.logger.record("rollout/steps_used_fraction", n_used / n_played)

    def train(self) -> None:
        """One policy step on the rollout, then the critic's fit."""
        with self.kind.computing():
            batch = make_batch(self)
            metrics = self._update_policy(batch)
            if self.uses_critic:
                metrics |= self._update_critic(batch)
        self._n_updates += 1

        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, value in metrics.items():
            self.logger.record(f"train/{name}", value)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", self.policy.log_std.detach().exp().mean().item())

    @property
    def _normalizer(self) -> int:
        """C of the pseudo-loss, known before the rollout: what was collected varies with the policy's luck."""
        return distributed.total(self.n_envs * (self.n_steps if self.n_episodes is None else self.n_episodes))

    def _update_policy(self, batch: Batch) -> dict[str, float]:
        """One step along the estimated policy gradient, accumulated in chunks; return what to log."""
        # The mode the rollout was played in: dropout or batch statistics would score another policy
        if self.policy.training:
            self.policy.set_training_mode(False)
        self._update_learning_rate(self.policy.optimizer)
        self.policy.optimizer.zero_grad()
        policy_loss, entropy_sum, normalizer = 0.0, 0.0, self._normalizer
        for chunk in self.kind.chunks(batch.steps):
            log_prob, entropy = self.kind.log_prob_and_entropy(batch.steps[chunk])
            loss = score_function_loss(log_prob, batch.weights[chunk], normalizer)
            policy_loss += loss.item()
            entropy_of_chunk = entropy.sum()
            entropy_sum += entropy_of_chunk.item()
            require_finite("the policy's loss", policy_loss + self.ent_coef * entropy_sum)
            if self.ent_coef != 0.0:
                loss = loss - self.ent_coef * entropy_of_chunk / normalizer
            loss.backward()  # type: ignore[no-untyped-call]
        distributed.sum_gradients(self.kind.actor_parameters())
        metrics = self._step_policy(batch)
        if any(isinstance(module, th.nn.modules.batchnorm._BatchNorm) for module in self.policy.modules()):
            self._update_batch_statistics(batch)
        return {
            "policy_loss": distributed.total(policy_loss),
            "entropy_loss": -distributed.total(entropy_sum) / distributed.total(len(batch.steps)),
            "approx_kl": self._estimate_kl(batch),
            **metrics,
        }

    def _estimate_kl(self, batch: Batch) -> float:
        """SB3's estimator of KL(old || new), http://joschu.net/blog/kl-approx.html, on steps from all over the rollout."""
        some = self.kind.excerpt(batch.steps, KL_SAMPLES)
        with th.no_grad():
            log_prob, _ = self.kind.log_prob_and_entropy(batch.steps[some])
            log_ratio = distributed.gather(log_prob - batch.log_probs[some])
            return (log_ratio.exp() - 1.0 - log_ratio).mean().item()

    def _update_batch_statistics(self, batch: Batch) -> None:
        """Show the rollout to the actor's batch norm, whose statistics are fixed while it is played and scored."""
        self.policy.set_training_mode(True)
        with th.no_grad():
            # Batch norm refuses a single sample
            for part in self.kind.minibatches(batch.steps, CHUNK_SIZE, shuffled=False) if len(batch.steps) > 1 else ():
                self.kind.log_prob_and_entropy(batch.steps[part])
        self.policy.set_training_mode(False)

    def _update_critic(self, batch: Batch) -> dict[str, float]:
        """The critic's fit, at its own learning rate; return what to log."""
        if {id(p) for group in self.critic_optimizer.param_groups for p in group["params"]} != {
            id(p) for p in self.kind.critic_parameters(trainable=False)
        }:
            self._setup_critic_optimizer()  # the user has replaced the policy
        update_learning_rate(self.critic_optimizer, self.critic_lr_schedule(self._current_progress_remaining))
        return fit_critic(self, batch)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # Whole episodes overshoot total_timesteps, where a linear schedule would turn negative and the step into an ascent
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Actions of the policy for observations, as the environment takes them; those of ``policy.predict`` count from 0.

        :param observation: a single one, or ``(n, …)``, or a dictionary of such
        :param state: memory that the last call returned; None at the beginning and for policies without memory
        :param episode_start: whether an observation begins an episode, which clears its memory, ``(n,)``
        :param deterministic: the most likely action instead of a sample
        :param action_masks: True where an action is legal, ``(n, n_logits)``, for policies that take masks; None if all are
        :return: actions, and the memory to pass to the next call
        """
        masks = {} if action_masks is None else {"action_masks": action_masks}
        with self.kind.computing():
            actions, state = self.policy.predict(observation, state, episode_start, deterministic, **masks)
        if policy_action_space(self.action_space) is not self.action_space:
            actions = to_env_actions(actions, self.action_space)
        return actions, state

    def learn(
        self: SelfPolicyGradient,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 0,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfPolicyGradient:
        """Train for at least ``total_timesteps`` environment steps; the rollout in progress is completed.

        :param total_timesteps: environment steps, over all environments
        :param callback: called at every step with the state of the rollout
        :param log_interval: rollouts between two logs, or None for none. 0, the default: a log at the end of the rollout that
            completes 2,048 steps since the last one (``LOG_STEPS`` of the class). What a rollout costs depends on the class,
            its settings, the number of environments and, with whole episodes, on the policy: no number of rollouts is a pace
        :param tb_log_name: name of the TensorBoard run; the name of the class if None
        :param reset_num_timesteps: False to go on counting from the last call
        :param progress_bar: show a progress bar (tqdm and rich)
        :return: the model
        :raises ValueError: if there are no environments, or they do not fit: whole episodes that cannot be reset, a single one
            left out
        """
        self._check_env()
        self._paces_logs = log_interval == 0
        self._next_log = self.LOG_STEPS + (0 if reset_num_timesteps else self.num_timesteps)
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=1 if log_interval == 0 else log_interval,  # type: ignore[arg-type]
            tb_log_name=tb_log_name or type(self).__name__,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    def dump_logs(self, iteration: int = 0) -> None:
        """Write the log of a rollout, unless the last one was written a short while ago.

        :param iteration: number of the rollout, from 1; 0 where someone else than ``learn`` wants a log
        """
        if iteration > 0 and self._paces_logs:
            if self.num_timesteps < self._next_log:
                return
            self._next_log = self.num_timesteps + self.LOG_STEPS
        super().dump_logs(iteration)
