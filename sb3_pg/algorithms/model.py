"""A policy with its optimizers, as SB3's users build, save, load, ask and train it. What it learns is not said here."""

import io
from collections.abc import Iterable
from functools import partial
from operator import is_
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
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
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_pg import distributed
from sb3_pg.algorithms.arguments import check_arguments, check_before_sb3, check_env, check_load, check_steps, require_env
from sb3_pg.algorithms.optimizers import follow_replacements, fuse, hold_parameters
from sb3_pg.evaluation import acted_in
from sb3_pg.loading import read_model, set_up
from sb3_pg.policies import MaskableRecurrentActorCriticPolicy, MaskableRecurrentMultiInputActorCriticPolicy, find_kind
from sb3_pg.rollouts.actions import policy_action_space, to_env_actions
from sb3_pg.rollouts.buffers import EpisodeDictRolloutBuffer, EpisodeRolloutBuffer
from sb3_pg.rollouts.collect import RolloutAlgorithm
from sb3_pg.rollouts.guards import watch_workers
from sb3_pg.saving import NORMALIZER, add_member, normalize_as, normalizer_state, read_member, set_statistics, write_model
from sb3_pg.vec_env import GymnasiumVecEnv

SelfModel = TypeVar("SelfModel", bound="Model")


class Model(RolloutAlgorithm):
    """What all algorithms of the package have of SB3's: construction, ``save`` and ``load``, ``predict`` and ``learn``."""

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
    #: Running mean square of the critic's targets, with decaying weights, and the sum of the weights
    target_moments: tuple[float, float]
    # Statistics that were saved with the model, until there are environments for them
    _saved_normalizer: dict[str, Any] | None = None
    # Of the last learn, and the rollouts since its beginning
    _log_interval: int | None = 0
    _tb_log_name = ""
    _n_rollouts = 0
    #: Those the optimizers know of, by name
    _policy_parameters: dict[str, th.nn.Parameter]

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        *,
        n_episodes: int | None,
        batch_size: int | None,
        weights: str,
        discounted_state_distribution: bool,
        normalize_advantage: bool,
        critic_learning_rate: float | Schedule | None,
        n_critic_updates: int,
        normalize_targets: bool,
        _init_setup_model: bool,
        **of_sb3: Any,
    ):
        check_before_sb3(policy, self.policy_aliases, env, of_sb3)
        # Python's generator and its deque take no integer of NumPy's
        of_sb3 |= {name: int(of_sb3[name]) for name in ("seed", "stats_window_size") if of_sb3.get(name) is not None}
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
        self.normalize_targets = normalize_targets
        self.target_moments = 0.0, 0.0
        # Steps since the start of the episode in progress, (n_envs,)
        self._episode_timesteps = np.zeros(0, dtype=np.int64)
        if _init_setup_model:
            require_env(self)
            self._setup_model()
            self._check_env()

    # Construction

    def _check_arguments(self) -> None:
        """Refuse every wrong argument: ``TypeError`` or ``ValueError`` with what to do."""
        check_arguments(self)

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Also Gymnasium's vector environments; dead processes of ``SubprocVecEnv`` are noticed."""
        if isinstance(env, gym.vector.VectorEnv):
            env = GymnasiumVecEnv(env)
        wrapped = RolloutAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        watch_workers(wrapped)
        return wrapped

    def _check_env(self) -> None:
        """Refuse environments that cannot be trained on."""
        check_env(self)

    def _setup_model(self) -> None:
        # SB3's load() calls this after it has set the attributes: all checks and derived state belong here
        self._check_arguments()
        self.gamma, self.gae_lambda = float(self.gamma), float(self.gae_lambda)  # arrays take no fractions
        if self.rollout_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = EpisodeDictRolloutBuffer if is_dict else EpisodeRolloutBuffer
        distributed.choose_device()
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        action_space = policy_action_space(self.action_space)
        try:
            self.rollout_buffer = self.rollout_buffer_class(
                self.n_steps, self.observation_space, action_space, device=self.device, gamma=self.gamma,
                gae_lambda=self.gae_lambda, n_envs=self.n_envs, **self.rollout_buffer_kwargs,
            )  # fmt: skip
        except (MemoryError, OverflowError) as error:
            raise ValueError(
                f"n_steps: rollouts of {self.n_steps} steps of {self.n_envs} environments do not fit in memory."
            ) from error
        policy = find_kind(self.policy_class).make_policy(
            self.policy_class,
            self.observation_space,
            action_space,
            self.lr_schedule,
            use_sde=self.use_sde,
            **self.policy_kwargs,
        )
        self.policy = policy.to(self.device)
        self._maybe_recommend_cpu()
        self._setup_critic_optimizer()
        fuse(self.policy.optimizer)

    def _setup_critic_optimizer(self) -> None:
        critic_parameters = self._find_critic_parameters()
        self._policy_parameters = dict(self.policy.named_parameters())
        self.critic_optimizer = self.policy.optimizer_class(
            [{"params": critic_parameters}],
            lr=self.critic_lr_schedule(1.0),  # type: ignore[call-arg]
            **self.policy.optimizer_kwargs,
        )
        fuse(self.critic_optimizer)

    def _find_critic_parameters(self) -> list[th.nn.Parameter]:
        critic_parameters = self.kind.critic_parameters(trainable=False)
        # A policy that cannot be asked before the environments have been is asked at the first update
        if self.uses_critic and not critic_parameters and self.kind.divide():
            raise ValueError(
                "The policy has no parameters of its own for V(s): use weights or a baseline without a critic, such as "
                'VanillaPG(weights="reward_to_go") or ReinforceBaseline(baseline="running_mean").'
            )
        return critic_parameters

    def _follow_policy(self) -> None:
        """Let the optimizers hold what the user has put into the policy, or in the place of it, since the last update."""
        before, now = self._policy_parameters, dict(self.policy.named_parameters())
        if not {id(p) for p in before.values()} & {id(p) for p in now.values()}:  # another policy, with its own optimizer
            self._setup_critic_optimizer()
            return
        if not (before.keys() == now.keys() and all(now[name] is p for name, p in before.items())):
            follow_replacements(self.policy.optimizer, before, now)
            self._policy_parameters = now
        critic_parameters = self._find_critic_parameters()
        held = [p for group in self.critic_optimizer.param_groups for p in group["params"]]
        if not (len(held) == len(critic_parameters) and all(map(is_, held, critic_parameters))):
            hold_parameters(self.critic_optimizer, critic_parameters)
            fuse(self.critic_optimizer)

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        rate = self.critic_learning_rate
        self._own_critic_lr_schedule: Schedule | None = None if rate is None else FloatSchedule(rate)
        self.ent_coef_schedule = FloatSchedule(self.ent_coef if callable(self.ent_coef) else float(self.ent_coef))

    @property
    def critic_lr_schedule(self) -> Schedule:
        """Learning rate of the critic: SB3's ``lr_schedule``, which users may replace, unless it has its own."""
        return self.lr_schedule if self._own_critic_lr_schedule is None else self._own_critic_lr_schedule

    @critic_lr_schedule.setter
    def critic_lr_schedule(self, schedule: Schedule) -> None:
        self._own_critic_lr_schedule = schedule

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "critic_optimizer"], variables

    @classmethod
    def load(
        cls: type[SelfModel],
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        trusted: bool = True,
        **kwargs: Any,
    ) -> SelfModel:
        """Load a model that :meth:`save` has written.

        :param path: file, with or without ``.zip``, or a file-like object
        :param env: environment to learn from; None if the model is to predict
        :param device: device on which the networks run
        :param custom_objects: what to take in the place of saved objects that cannot be read, by name
        :param print_system_info: print the system the model was saved on, and this one
        :param force_reset: begin the next ``learn`` with a reset of the environment
        :param trusted: False for a file that may come from anybody: no code of it is run, and it opens if it holds what SB3,
            sb3-contrib, Gymnasium, torch and this package have of their own. True runs any code that the file may hold
        :param kwargs: arguments of the constructor, or attributes of the saved model such as ``n_envs``, to change
        :return: the model
        :raises TypeError: if a keyword is none of these
        :raises ValueError: if another algorithm saved the file; for one that is not trusted: naming what it asks for and does
            not get, or if it is damaged
        """
        if trusted:
            check_load(cls, path, set(kwargs))
            model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        else:
            archive, objects = read_model(cls, path, custom_objects)
            check_load(cls, path, set(kwargs), archive)
            given = dict(custom_objects=objects, print_system_info=print_system_info, force_reset=force_reset, **kwargs)
            model = set_up(path, archive, partial(super().load, archive, env, **given), device)
        model._saved_normalizer = state = read_member(path, NORMALIZER)
        model._normalize()
        normalize = None if acted_in() is None else unwrap_vec_normalize(acted_in())  # type: ignore[arg-type]
        if state is not None and normalize is not None:
            set_statistics(normalize, state)
        return model

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Set the environment to learn from.

        A model that was saved with ``VecNormalize``, and has had no environment since, has its statistics put around this one,
        or into its ``VecNormalize`` if that has seen nothing yet.

        :param env: the environment, of the same spaces and number as before
        :param force_reset: begin the next ``learn`` with a reset
        """
        super().set_env(env, force_reset)
        self._normalize()

    def _normalize(self) -> None:
        if self.env is None or self._saved_normalizer is None:
            return
        state, self._saved_normalizer = self._saved_normalizer, None
        super().set_env(normalize_as(self.env, state), force_reset=False)

    def save(
        self, path: str | Path | io.BufferedIOBase, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> None:
        """Save the model, its optimizers and the statistics of ``VecNormalize``, if it learns from such environments.

        The file is written to its end or not at all: one that was there before stays until then. Of several processes rank 0
        alone writes files.

        :param path: file, with or without ``.zip``, or a file-like object
        :param exclude: attributes to leave out
        :param include: attributes to save that are left out usually
        """
        if distributed.rank() == 0 or not isinstance(path, str | Path):
            write_model(path, self._to_archive(exclude, include))

    def _to_archive(self, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> io.BytesIO:
        archive = io.BytesIO()
        super().save(archive, exclude, include)
        if self._vec_normalize_env is not None:
            add_member(archive, NORMALIZER, normalizer_state(self._vec_normalize_env))
        return archive

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_policy_parameters", "_saved_normalizer", "_callback"]

    # Acting and training

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
        """Actions of the policy for observations.

        :param observation: a single one, or ``(n, …)``, or a dictionary of such
        :param state: memory that the last call returned; None at the beginning and for policies without memory
        :param episode_start: whether an observation begins an episode, which clears its memory, ``(n,)``
        :param deterministic: the most likely action instead of a sample
        :param action_masks: True where an action is legal, ``(n, n_logits)``, for policies that take masks. None for those of
            the environment of :func:`sb3_pg.evaluation.acting_in`, without which all actions are taken to be legal
        :return: actions, and the memory to pass to the next call
        """
        env = acted_in()
        masks: dict[str, Any] = {}
        if action_masks is not None:
            self.kind.check_masks(action_masks)
            masks = {"action_masks": action_masks}
        elif env is not None:
            masks = self.kind.ask(env)
        with self.kind.computing():
            actions, state = self.policy.predict(observation, state, episode_start, deterministic, **masks)
        if policy_action_space(self.action_space) is not self.action_space:
            actions = to_env_actions(actions, self.action_space)
        return actions, state

    @distributed.parting_together()
    def learn(
        self: SelfModel,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 0,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfModel:
        """Train for at least ``total_timesteps`` environment steps; the rollout in progress is completed.

        :param total_timesteps: environment steps, over all environments of all processes
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
        check_steps(total_timesteps)
        self._check_env()
        self._log_interval, self._n_rollouts, self._tb_log_name = log_interval, 0, tb_log_name or type(self).__name__
        self._next_log = self.LOG_STEPS + (0 if reset_num_timesteps else self.num_timesteps)
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=1,  # dump_logs tells which rollouts are logged
            tb_log_name=self._tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    def dump_logs(self, iteration: int = 0) -> None:
        """Write the log of a rollout, unless the last one was written a short while ago.

        :param iteration: number of the rollout, from 1; 0 where someone else than ``learn`` wants a log
        """
        if iteration > 0:
            self._n_rollouts += 1
            iteration = self._n_rollouts
            if self._log_interval == 0:
                if self.num_timesteps < self._next_log:
                    return
                self._next_log = self.num_timesteps + self.LOG_STEPS
            elif self._log_interval is None or iteration % self._log_interval:
                return
        super().dump_logs(iteration)
