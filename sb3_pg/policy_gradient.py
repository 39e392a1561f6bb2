"""The policy gradient theorem on SB3's classes: the only ``collect_rollouts`` and the only ``train`` of the package."""

from collections.abc import Callable, Iterator
from math import inf, isfinite
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance, obs_as_tensor, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg.buffers import EpisodeDictRolloutBuffer, EpisodeRolloutBuffer, map_obs, n_obs, take_obs
from sb3_pg.episodes import EpisodeSelection
from sb3_pg.estimators import discount_factors
from sb3_pg.losses import pseudo_entropy, score_function_loss, value_loss
from sb3_pg.sampling import NOT_SHARED, make_sampler, overrides

SelfPolicyGradient = TypeVar("SelfPolicyGradient", bound="PolicyGradient")

# Steps in one pass through the networks: what bounds the memory of an update, whatever the length of the rollout
CHUNK_SIZE = 1024
# Steps, at most, on which the logged KL divergence is estimated
KL_SAMPLES = 256


class Batch(NamedTuple):
    """The steps of a rollout that an update uses, ``(n_used, …)`` each."""

    observations: Any
    actions: th.Tensor
    values: th.Tensor
    log_probs: th.Tensor
    weights: th.Tensor
    returns: th.Tensor


class PolicyGradient(OnPolicyAlgorithm):
    """Base of the package's algorithms: one gradient step on −Σ log π(a∣s) · Ψ / C per batch of fresh data.

    Subclasses fix what is subtracted from the weights Ψ (:meth:`_subtract_baseline`) and how the gradient becomes a step
    (:meth:`_step_policy`). Parameters are documented in :class:`sb3_pg.VanillaPG`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }
    #: Steps within which an episode has to end where whole episodes are collected
    MAX_EPISODE_STEPS: ClassVar[int] = 100_000

    critic_optimizer: th.optim.Optimizer

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule,
        n_steps: int,
        n_episodes: int | None,
        batch_size: int,
        gamma: float,
        weights: str,
        gae_lambda: float,
        discounted_state_distribution: bool,
        normalize_advantage: bool,
        ent_coef: float,
        max_grad_norm: float | None,
        critic_learning_rate: float | Schedule | None,
        n_critic_updates: int,
        use_sde: bool,
        sde_sample_freq: int,
        rollout_buffer_class: type[RolloutBuffer] | None,
        rollout_buffer_kwargs: dict[str, Any] | None,
        stats_window_size: int,
        tensorboard_log: str | None,
        policy_kwargs: dict[str, Any] | None,
        verbose: int,
        seed: int | None,
        device: th.device | str,
        _init_setup_model: bool,
    ):
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=0.0,  # the critic has its own optimizer
            max_grad_norm=max_grad_norm,  # type: ignore[arg-type]
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
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
            self._setup_model()
            self._check_env()

    # What the subclasses differ in

    @property
    def uses_critic(self) -> bool:
        """Whether V enters the weights. If not, no critic is evaluated or trained."""
        return self.weights == "gae"

    @property
    def whole_episodes(self) -> bool:
        """Whether rollouts consist of whole episodes. If not, they are cut after ``n_steps`` and bootstrapped."""
        return self.weights != "gae" or self.n_episodes is not None

    def _subtract_baseline(self, rollout_buffer: EpisodeRolloutBuffer, dones: np.ndarray) -> None:
        """Subtract the baseline from ``rollout_buffer.advantages``; ``dones``: whether the last step ended an episode."""

    def _is_centred(self, n_episodes: int) -> bool:
        """Whether standardising subtracts the mean weight of a rollout of so many episodes, or divides only."""
        # The total return of a single episode is its own mean: nothing would be left
        return not (self.weights == "return" and n_episodes == 1)

    def _step_policy(self, batch: Batch) -> dict[str, float]:
        """Change the actor's parameters, given the gradient of the batch's loss in their ``.grad``; return what to log."""
        grad_norm = self._clip_gradient("the policy's gradient", self._actor_parameters())
        self.policy.optimizer.step()
        return {"grad_norm": grad_norm}

    # Construction

    def _setup_model(self) -> None:
        # SB3's load() sets attributes and calls this, without the constructor: all checks and derived state belong here
        self._check_arguments()
        if self.rollout_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = EpisodeDictRolloutBuffer if is_dict else EpisodeRolloutBuffer
        super()._setup_model()
        _fuse(self.policy.optimizer)
        self._setup_critic_optimizer()

    def _setup_critic_optimizer(self) -> None:
        critic_parameters = self._find_critic_parameters()
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
        _fuse(self.critic_optimizer)

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        is_set = self.critic_learning_rate is not None
        self.critic_lr_schedule = FloatSchedule(self.critic_learning_rate if is_set else self.learning_rate)  # type: ignore

    def _check_arguments(self) -> None:
        """Refuse every wrong argument: ``TypeError`` or ``ValueError`` with what to do."""
        if isinstance(self.policy_class, type) and issubclass(self.policy_class, RecurrentActorCriticPolicy):
            raise TypeError(
                f"{self.policy_class.__name__} has a memory, which no rollout here carries on: use sb3-contrib's RecurrentPPO."
            )
        if self.weights not in ("return", "reward_to_go", "gae"):
            raise ValueError(f'weights must be "return", "reward_to_go" or "gae", not {self.weights!r}.')
        for name in ("n_steps", "batch_size"):
            _check_integer(name, getattr(self, name), 1)
        _check_integer("n_critic_updates", self.n_critic_updates, 0)
        if self.n_episodes is not None:
            _check_integer("n_episodes", self.n_episodes, 1, " (None for rollouts of n_steps)")
        _check_integer("sde_sample_freq", self.sde_sample_freq, -1)
        for name in ("discounted_state_distribution", "normalize_advantage"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}.")
        for name in ("gamma", "gae_lambda"):
            _check_number(name, getattr(self, name), 0.0, 1.0)
        _check_number("ent_coef", self.ent_coef, -inf, inf)
        if self.max_grad_norm is not None and not (isinstance(self.max_grad_norm, Real) and self.max_grad_norm > 0):
            raise ValueError(f"max_grad_norm must be positive, or None for no clipping, not {self.max_grad_norm!r}.")
        _check_rate("learning_rate", self.learning_rate)
        if self.critic_learning_rate is not None:
            _check_rate("critic_learning_rate", self.critic_learning_rate)
        if self.weights == "return" and self.discounted_state_distribution:
            raise ValueError(
                'weights="return" takes no γ^t: R(τ) is already discounted, and R(τ)·γ^t is biased. '
                'Use weights="reward_to_go" with discounted_state_distribution=True.'
            )
        buffer_class = self.rollout_buffer_class
        if buffer_class is not None and not (isinstance(buffer_class, type) and issubclass(buffer_class, RolloutBuffer)):
            raise TypeError(f"rollout_buffer_class must be a subclass of SB3's RolloutBuffer, not {buffer_class!r}.")
        is_dict = isinstance(self.observation_space, spaces.Dict)
        if buffer_class is not None and is_dict and not issubclass(buffer_class, DictRolloutBuffer):
            raise ValueError(
                f"rollout_buffer_class must be a subclass of SB3's DictRolloutBuffer for dictionary observations, such as "
                f"sb3_pg.buffers.EpisodeDictRolloutBuffer, not {buffer_class.__name__}."
            )
        needs_episodes = self.whole_episodes or self.discounted_state_distribution
        if needs_episodes and buffer_class is not None and not issubclass(buffer_class, EpisodeRolloutBuffer):
            raise ValueError(
                f"{buffer_class.__name__} holds rollouts of n_steps and does not know where episodes begin: for whole "
                "episodes or discounted_state_distribution=True, rollout_buffer_class must be a subclass of "
                "sb3_pg.buffers.EpisodeRolloutBuffer."
            )

    def _check_env(self) -> None:
        """Refuse environments that cannot be trained on; a model that is loaded may still be evaluated there."""
        if not self.whole_episodes or self.env is None:
            return
        try:
            goes_on = bool(np.any(self.env.env_is_wrapped(EpisodicLifeEnv)))
        except (AttributeError, NotImplementedError):  # not every vector environment knows its wrappers
            goes_on = False
        if goes_on:
            raise ValueError(
                "Rollouts of whole episodes begin with a reset, and EpisodicLifeEnv goes on with the life in progress "
                'instead: use VanillaPG(weights="gae", n_episodes=None), or make the environments with '
                "terminal_on_life_loss=False."
            )

    def _find_critic_parameters(self) -> list[th.nn.Parameter]:
        """Parameters that V(s) depends on and log π(a∣s) does not: those a shared features extractor has are the actor's."""
        self.policy.set_training_mode(False)  # batch norm refuses a single sample in train mode
        obs = self.observation_space
        zeros = (
            {key: np.zeros((1, *space.shape), space.dtype) for key, space in obs.spaces.items()}  # type: ignore[misc]
            if isinstance(obs, spaces.Dict)
            else np.zeros((1, *obs.shape), obs.dtype)  # type: ignore[misc]
        )
        obs_tensor = obs_as_tensor(zeros, self.device)
        actions = self._zero_actions(1)
        parameters = list(self.policy.parameters())
        frozen = [p for p in parameters if not p.requires_grad]  # now; the user may thaw them
        for p in frozen:
            p.requires_grad_(True)
        # Zeros may lie outside the observation space, where a policy may be NaN: what depends on what shows all the same
        validates = th.distributions.Distribution._validate_args
        th.distributions.Distribution.set_default_validate_args(False)
        try:
            values, log_prob, _ = self.policy.evaluate_actions(obs_tensor, actions)
            of_actor = th.autograd.grad(log_prob.sum(), parameters, retain_graph=True, allow_unused=True)
            of_critic = th.autograd.grad(values.sum(), parameters, allow_unused=True) if values.requires_grad else ()
            with th.no_grad():  # the policy remembers its last distribution: one with a graph could not be copied
                self.policy.evaluate_actions(obs_tensor, actions)
        finally:
            th.distributions.Distribution.set_default_validate_args(validates)
            for p in frozen:
                p.requires_grad_(False)
        return [p for p, c, a in zip(parameters, of_critic, of_actor) if c is not None and a is None]  # noqa: B905

    def _critic_parameters(self) -> list[th.nn.Parameter]:
        """Parameters of the critic that may be trained."""
        return [p for group in self.critic_optimizer.param_groups for p in group["params"] if p.requires_grad]

    def _actor_parameters(self) -> list[th.nn.Parameter]:
        """All other parameters of the policy that may be trained."""
        critic = {id(p) for p in self._critic_parameters()}
        return [p for p in self.policy.parameters() if p.requires_grad and id(p) not in critic]

    def _clip_gradient(self, what: str, parameters: list[th.nn.Parameter]) -> float:
        """Scale the gradient down to ``max_grad_norm``; return its norm before that, which is finite or an error."""
        norm = th.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        value = norm.item()
        _require_finite(what, value)
        if self.max_grad_norm is not None:
            th.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        return value

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "critic_optimizer"], variables

    # Rollouts

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer with steps of the current policy, their weights and the critic's targets.

        Cut rollouts are ``n_rollout_steps`` long. Whole-episode rollouts start at episode starts and last until every
        environment has finished its ``n_episodes`` episodes or, without that, every episode that began within
        ``n_rollout_steps``; what the environments play meanwhile is marked as not in use. Which episodes count is thus
        settled before they are played: taking the first to finish would favour short ones, and so would dropping those
        that straddle the end.

        :param env: the training environments
        :param callback: called at every step, at the beginning and at the end of the rollout
        :param rollout_buffer: the buffer to fill
        :param n_rollout_steps: steps an environment
        :return: False if the callback stopped training; the rollout is then incomplete
        :raises RuntimeError: if no episode ends within ``MAX_EPISODE_STEPS`` where whole ones are collected
        :raises ValueError: if a reward or an observation is not finite
        """
        assert self._last_obs is not None, "No previous observation was provided"
        # Switch to eval mode (this affects batch norm / dropout)
        self.policy.set_training_mode(False)
        if self.whole_episodes:
            self._start_episodes(env)
        rollout_buffer.reset()
        own_buffer = isinstance(rollout_buffer, EpisodeRolloutBuffer)
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        timesteps = self._continue_timesteps(env.num_envs)
        selection = EpisodeSelection(
            env.num_envs, n_rollout_steps, self.n_episodes, self.whole_episodes, self.MAX_EPISODE_STEPS
        )
        truncated: list[tuple[int, int, Any]] = []  # step, environment, terminal observation
        # SB3 makes a callback of no callback: nobody reads its locals
        listening = not (type(callback) is ConvertCallback and callback.callback is None)
        n_steps = 0
        collecting = True

        callback.on_rollout_start()
        # After the callback, which may change the policy. SB3's buffers take values and log-probabilities step by step
        sample = make_sampler(self.policy, env.num_envs, through_forward=not own_buffer)

        while collecting:
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)

            try:
                actions, values, log_probs = sample(self._last_obs)
            except ValueError:
                # torch refuses to build a distribution from NaN; say where the NaN came from
                _require_finite_rows("observation", self._last_obs, n_steps)
                raise

            clipped_actions = actions
            if isinstance(self.action_space, spaces.Box):
                if self.policy.squash_output:
                    # Unscale from [-1, 1] to the bounds of the action space
                    clipped_actions = self.policy.unscale_action(actions)
                else:
                    # Samples of an unbounded Gaussian; the log-probability is that of the unclipped action
                    clipped_actions = np.clip(actions, self.action_space.low, self.action_space.high)

            new_obs, rewards, dones, infos = env.step(clipped_actions)
            dones = np.asarray(dones, dtype=bool)
            self.num_timesteps += env.num_envs

            # Give access to local variables
            if listening:
                callback.update_locals(locals())
            if listening and not callback.on_step():
                # A later learn() goes on from here
                self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
                self._episode_timesteps = np.where(dones, 0, timesteps + 1)
                return False

            in_use = selection.in_use
            if selection.all_in_use:
                self._update_info_buffer(infos, dones)
            else:
                # Surplus episodes that happen to finish are short ones: they would bias the mean return
                self._update_info_buffer([infos[idx] for idx in np.flatnonzero(in_use)], dones[in_use])

            rollout_buffer.add(
                self._last_obs,  # type: ignore[arg-type]
                actions.reshape(env.num_envs, -1),
                rewards,
                self._last_episode_starts,  # type: ignore[arg-type]
                values,  # type: ignore[arg-type]
                log_probs,  # type: ignore[arg-type]
                **({"timestep": timesteps, "mask": in_use} if own_buffer else {}),
            )
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]

            timesteps += 1
            if np.count_nonzero(dones):
                timesteps[dones] = 0
                for idx in np.flatnonzero(dones & in_use):
                    terminal_obs = infos[idx].get("terminal_observation")
                    if terminal_obs is not None and infos[idx].get("TimeLimit.truncated", False):
                        truncated.append((n_steps, int(idx), terminal_obs))
            n_steps += 1

            collecting = selection.step(dones)

        self._end_rollout(rollout_buffer, dones, truncated, evaluated=values is not None)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _start_episodes(self, env: VecEnv) -> None:
        """Reset the environments unless all of them are at the start of an episode."""
        if np.all(self._last_episode_starts):  # type: ignore[arg-type]
            return
        try:
            self._last_obs = env.reset()  # type: ignore[assignment]
        except (RuntimeError, EOFError, OSError) as error:  # the latter two: a subprocess that raised
            raise RuntimeError(
                f"The environments could not be reset between two rollouts ({error}). Rollouts of whole episodes abandon "
                "the surplus episodes: a Monitor has to be made with allow_early_resets=True."
            ) from error
        self._last_episode_starts = np.ones(env.num_envs, dtype=bool)

    def _continue_timesteps(self, n_envs: int) -> np.ndarray:
        """Steps since the start of the episodes in progress, ``(n_envs,)``; updated in place as the rollout goes on."""
        starts = np.asarray(self._last_episode_starts)
        fresh = np.zeros(n_envs, dtype=np.int64)
        self._episode_timesteps = fresh if starts.all() else np.where(starts, fresh, self._episode_timesteps)
        return self._episode_timesteps

    def _end_rollout(
        self,
        rollout_buffer: RolloutBuffer,
        dones: np.ndarray,
        truncated: list[tuple[int, int, Any]],
        evaluated: bool,
    ) -> None:
        """Fill what the steps left open: values, log-probabilities, weights and targets."""
        if isinstance(rollout_buffer, EpisodeRolloutBuffer):
            rollout_buffer.trim()
        _require_finite_rows("reward", rollout_buffer.rewards)
        if self.policy.features_extractor_class in (FlattenExtractor, NatureCNN, CombinedExtractor):
            # The user's own may know what to do with NaN
            _require_finite_rows("observation", rollout_buffer.observations)
            for step, env, terminal_obs in truncated:
                _require_finite_rows("terminal observation", _stack_obs((terminal_obs,)), step, env)
        if not evaluated:
            self._fill_values_and_log_probs(rollout_buffer)
        # V of the observations behind the last step, which bootstrap cut episodes, then of the truncated ends
        last_values = th.zeros(len(dones))
        terminal_values = np.zeros_like(rollout_buffer.rewards)
        if self.weights == "gae":
            if not self.whole_episodes:
                last_values = self._predict_values(self._last_obs)
            if truncated:
                steps, envs, observations = zip(*truncated, strict=True)
                terminal_values[list(steps), list(envs)] = self._predict_values(_stack_obs(observations)).numpy()
        if isinstance(rollout_buffer, EpisodeRolloutBuffer):
            rollout_buffer.compute_returns_and_advantage(last_values, dones, self.weights, terminal_values)
            _require_finite_rows("weight", rollout_buffer.advantages)
            self._subtract_baseline(rollout_buffer, dones)
            if self.whole_episodes:
                mask = rollout_buffer.mask
                self.logger.record("rollout/episodes_used", int((mask & (rollout_buffer.timesteps == 0)).sum()))
                self.logger.record("rollout/steps_used_fraction", float(mask.mean()))
        else:
            rollout_buffer.rewards += self.gamma * terminal_values
            rollout_buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)

    def _fill_values_and_log_probs(self, rollout_buffer: RolloutBuffer) -> None:
        """One batched pass over the steps in use, in the mode and with the parameters the rollout was played with."""
        assert isinstance(rollout_buffer, EpisodeRolloutBuffer)
        n_rows = rollout_buffer.buffer_size * rollout_buffer.n_envs
        observations = map_obs(lambda a: a.reshape(n_rows, *a.shape[2:]), rollout_buffer.observations)
        actions = rollout_buffer.actions.reshape(n_rows, -1)
        values, log_probs = rollout_buffer.values.reshape(-1), rollout_buffer.log_probs.reshape(-1)  # views
        values[:] = log_probs[:] = 0.0
        used = np.flatnonzero(rollout_buffer.mask)
        with th.no_grad():
            for chunk in _chunks(len(used)):
                rows = used[chunk]
                obs, action = self._to_tensors(take_obs(observations, rows), actions[rows])
                log_probs[rows] = self._evaluate_actions(obs, action)[0].cpu().numpy()
                if self.uses_critic:
                    values[rows] = self._evaluate_critic(obs).cpu().numpy()

    def _predict_values(self, observations: Any) -> th.Tensor:
        """V of observations, ``(n, …)`` or a dictionary of such, on the CPU, ``(n,)``."""
        with th.no_grad():
            chunks = (obs_as_tensor(take_obs(observations, chunk), self.device) for chunk in _chunks(n_obs(observations)))
            return th.cat([self._evaluate_critic(obs).cpu() for obs in chunks])

    def _to_tensors(self, observations: Any, actions: np.ndarray) -> tuple[Any, th.Tensor]:
        """Observations and actions of a buffer, ``(n, …)`` each, as the policy takes them."""
        actions_tensor = th.as_tensor(actions, device=self.device).float()
        return obs_as_tensor(observations, self.device), self._as_policy_actions(actions_tensor)

    def _as_policy_actions(self, actions: th.Tensor) -> th.Tensor:
        """Actions of a buffer, ``(n, action_dim)`` floats, as the policy's distribution takes them."""
        return actions.long().flatten() if isinstance(self.action_space, spaces.Discrete) else actions

    def _zero_actions(self, n: int) -> th.Tensor:
        """Some actions, as the policy takes them, for where a policy wants any."""
        actions = th.zeros((n, *self.action_space.shape), device=self.device)  # type: ignore[misc]
        return self._as_policy_actions(actions.reshape(n, -1))

    # Updates

    def train(self) -> None:
        """One policy step on the rollout, then the critic's fit."""
        batch = self._make_batch()
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
        return self.n_envs * (self.n_steps if self.n_episodes is None else self.n_episodes)

    def _make_batch(self) -> Batch:
        """The steps in use with their final weights: standardised, then times γᵗ."""
        if isinstance(self.rollout_buffer, EpisodeRolloutBuffer):
            samples, timesteps = self.rollout_buffer.samples()
        else:
            samples, timesteps = next(self.rollout_buffer.get()), th.zeros(0)
        weights = samples.advantages.cpu().double()  # in float32 standardising a constant would give ±1
        if self.normalize_advantage and len(weights) > 1:
            if self._is_centred(n_episodes=int((timesteps == 0).sum())):
                weights = (weights - weights.mean()) / (weights.std() + 1e-8)
            else:
                weights = weights / (weights.square().mean().sqrt() + 1e-8)
        if self.discounted_state_distribution:
            weights = weights * th.as_tensor(discount_factors(timesteps.cpu(), self.gamma))
        weights = weights.to(samples.advantages)
        actions = self._as_policy_actions(samples.actions)
        return Batch(samples.observations, actions, samples.old_values, samples.old_log_prob, weights, samples.returns)

    def _update_policy(self, batch: Batch) -> dict[str, float]:
        """One step along the estimated policy gradient, accumulated in chunks; return what to log."""
        # The mode the rollout was played in: dropout or batch statistics would score another policy
        if self.policy.training:
            self.policy.set_training_mode(False)
        self._update_learning_rate(self.policy.optimizer)
        self.policy.optimizer.zero_grad()
        policy_loss, entropy_sum, n = 0.0, 0.0, len(batch.weights)
        for chunk in _chunks(n):
            log_prob, entropy = self._evaluate_actions(take_obs(batch.observations, chunk), batch.actions[chunk])
            loss = score_function_loss(log_prob, batch.weights[chunk], self._normalizer)
            policy_loss += loss.item()
            entropy_of_chunk = entropy.sum()
            entropy_sum += entropy_of_chunk.item()
            _require_finite("the policy's loss", policy_loss + self.ent_coef * entropy_sum)
            if self.ent_coef != 0.0:
                loss = loss - self.ent_coef * entropy_of_chunk / self._normalizer
            loss.backward()  # type: ignore[no-untyped-call]
        metrics = self._step_policy(batch)
        if any(isinstance(module, th.nn.modules.batchnorm._BatchNorm) for module in self.policy.modules()):
            self._update_batch_statistics(batch)

        # SB3's estimator of KL(old || new), http://joschu.net/blog/kl-approx.html, on steps from all over the rollout
        some = slice(None, None, -(-n // KL_SAMPLES))
        with th.no_grad():
            log_prob, _ = self._evaluate_actions(take_obs(batch.observations, some), batch.actions[some])
            log_ratio = log_prob - batch.log_probs[some]
            approx_kl = (log_ratio.exp() - 1.0 - log_ratio).mean().item()
        return {"policy_loss": policy_loss, "entropy_loss": -entropy_sum / n, "approx_kl": approx_kl, **metrics}

    def _update_batch_statistics(self, batch: Batch) -> None:
        """Show the rollout to the actor's batch norm, whose statistics are fixed while it is played and scored."""
        self.policy.set_training_mode(True)
        n = len(batch.weights)
        with th.no_grad():
            # Parts of equal size: batch norm refuses a single sample
            for part in th.arange(n, device=batch.weights.device).tensor_split(-(-n // CHUNK_SIZE)) if n > 1 else ():
                self._evaluate_actions(take_obs(batch.observations, part), batch.actions[part])
        self.policy.set_training_mode(False)

    def _evaluate_actions(self, obs: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Log-probability and entropy, or an estimate of it where there is no closed form, ``(n,)`` each."""
        log_prob: th.Tensor
        entropy: th.Tensor | None
        if overrides(self.policy, "evaluate_actions", *NOT_SHARED):
            _, log_prob, entropy = self.policy.evaluate_actions(obs, actions)
        else:  # the same without the critic
            distribution = self.policy.get_distribution(obs)
            log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
        return log_prob, pseudo_entropy(log_prob) if entropy is None else entropy

    def _sum_scores(
        self,
        observations: Any,
        actions: np.ndarray,
        weights: np.ndarray,
        compress: Callable[[th.Tensor], th.Tensor] = lambda gradient: gradient,
    ) -> np.ndarray:
        """Σ ∇log π(a∣s) · weight over the steps of an episode, one chunk in memory at a time.

        :param observations: of a buffer, ``(n_steps, …)`` or a dictionary of such
        :param actions: of a buffer, ``(n_steps, action_dim)``
        :param weights: ``(n_sums, n_steps)``
        :param compress: a linear function of ``(n_parameters,)``, applied to every sum
        :return: ``(n_sums, n_parameters)``, or as long as ``compress`` makes it
        """
        parameters = self._actor_parameters()
        sums: Any = 0.0
        for chunk in _chunks(len(actions)):
            log_prob, _ = self._evaluate_actions(*self._to_tensors(take_obs(observations, chunk), actions[chunk]))
            rows = []
            for psi in th.as_tensor(weights[:, chunk]).to(log_prob):
                parts = th.autograd.grad(log_prob, parameters, psi, retain_graph=True, materialize_grads=True)
                rows.append(compress(th.cat([part.flatten() for part in parts])))
            sums = sums + th.stack(rows).cpu().numpy()
        return np.asarray(sums)

    def _evaluate_critic(self, obs: Any) -> th.Tensor:
        """V, ``(n,)``."""
        if overrides(self.policy, "extract_features", "evaluate_actions") and not overrides(self.policy, "predict_values"):
            # SB3's predict_values skips both: V is what the policy's own evaluate_actions, and so A2C, says it is
            values = self.policy.evaluate_actions(obs, self._zero_actions(n_obs(obs)))[0]
        else:
            values = self.policy.predict_values(obs)
        return values.flatten()

    def _update_critic(self, batch: Batch) -> dict[str, float]:
        """``n_critic_updates`` passes over the rollout in minibatches; return what to log."""
        in_policy = {id(p) for p in self.policy.parameters()}
        if not all(id(p) in in_policy for p in self._critic_parameters()):
            self._setup_critic_optimizer()  # the user has replaced the policy
        self.policy.set_training_mode(True)
        if self.policy.share_features_extractor:
            self.policy.features_extractor.eval()  # batch statistics are the actor's as well
        learning_rate = self.critic_lr_schedule(self._current_progress_remaining)
        update_learning_rate(self.critic_optimizer, learning_rate)
        parameters = self._critic_parameters()
        losses, n = [], len(batch.returns)
        n_minibatches = -(-n // self.batch_size)
        for _ in range(self.n_critic_updates if parameters else 0):  # none: the user has frozen the critic
            # Parts of equal size: no remainder of one sample, which would be noise (and batch norm refuses)
            order = th.randperm(n, device=batch.returns.device) if n_minibatches > 1 else None
            for minibatch in [slice(None)] if order is None else order.tensor_split(n_minibatches):
                values = self._evaluate_critic(take_obs(batch.observations, minibatch))
                loss = value_loss(values, batch.returns[minibatch])
                losses.append(loss.item())
                _require_finite("the critic's loss", losses[-1])
                self.critic_optimizer.zero_grad()
                # The actor's part of a shared features extractor is not the critic's to change
                loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
                self._clip_gradient("the critic's gradient", parameters)
                self.critic_optimizer.step()
        self.policy.set_training_mode(False)
        explained = explained_variance(batch.values.cpu().numpy(), batch.returns.cpu().numpy())
        metrics = {"explained_variance": explained}
        return metrics | {"value_loss": float(np.mean(losses))} if losses else metrics

    # Training

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # Whole episodes overshoot total_timesteps, where a linear schedule would turn negative and the step into an ascent
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    def learn(
        self: SelfPolicyGradient,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 10,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfPolicyGradient:
        """Train for at least ``total_timesteps`` environment steps; the rollout in progress is completed.

        :param total_timesteps: environment steps, over all environments
        :param callback: called at every step with the state of the rollout
        :param log_interval: rollouts between two logs
        :param tb_log_name: name of the TensorBoard run; the name of the class if None
        :param reset_num_timesteps: False to go on counting from the last call
        :param progress_bar: show a progress bar (tqdm and rich)
        :return: the model
        :raises ValueError: if the environments do not fit: whole episodes that cannot be reset, a single one left out
        """
        self._check_env()
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name or type(self).__name__,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )


def _fuse(optimizer: th.optim.Optimizer) -> None:
    """Let Adam take its step in one kernel, which is several times faster on small networks, unless the user has chosen."""
    if type(optimizer) in (th.optim.Adam, th.optim.AdamW):
        for group in optimizer.param_groups:
            on_known_device = all(p.device.type in ("cpu", "cuda") for p in group["params"])
            # The kernel goes through memory from end to end
            is_dense = all(p.is_contiguous() or p.is_contiguous(memory_format=th.channels_last) for p in group["params"])
            is_open = group["fused"] is None and group["foreach"] is None and not group["differentiable"]
            if is_open and is_dense and on_known_device:
                group["fused"] = True


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK_SIZE) for start in range(0, n, CHUNK_SIZE))


def _stack_obs(observations: tuple[Any, ...]) -> Any:
    """Single observations to a batch, ``(n, …)`` or a dictionary of such."""
    if isinstance(observations[0], dict):
        return {key: np.stack([obs[key] for obs in observations]) for key in observations[0]}
    return np.stack(observations)


def _check_integer(name: str, value: Any, minimum: int, hint: str = "") -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer{hint}, not {value!r}.")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}{hint}, not {value}.")


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}.")
    if not (low <= float(value) <= high and isfinite(value)):
        raise ValueError(f"{name} must be a finite number in [{low:g}, {high:g}], not {value!r}.")


def _check_rate(name: str, value: Any) -> None:
    if not callable(value):
        if not isinstance(value, int | float):
            raise TypeError(f"{name} must be a float or a schedule (a function of the progress remaining), not {value!r}.")
        _check_number(name, value, 0.0, inf)


def _require_finite(what: str, value: float) -> None:
    if not isfinite(value):
        raise ValueError(
            f"Found NaN or infinity in {what}; training stops before a step is taken along it: the model can be saved. "
            "Try a smaller learning rate or normalised observations and rewards (VecNormalize)."
        )


def _require_finite_rows(what: str, array: Any, step: int | None = None, env: int | None = None) -> None:
    """Refuse NaN and infinity in an array or a dictionary of arrays.

    :param what: what the array holds
    :param array: ``(n_steps, n_envs, …)``, or ``(n_envs, …)`` if ``step`` is given, or ``(1, …)`` if ``env`` is given too
    :param step: step of the rollout
    :param env: environment
    """
    for part in array.values() if isinstance(array, dict) else [array]:
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            row, column, *_ = np.argwhere(~np.isfinite(part if step is None else part[None]))[0]
            raise ValueError(
                f"Found NaN or infinity in the {what} of environment {column if env is None else env}, step "
                f"{row if step is None else step} of the rollout; training stops before the update: the model can be saved."
            )
