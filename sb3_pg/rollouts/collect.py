"""The only rollout loop of the package: whole episodes without bias, or cut rollouts, in SB3's vector environments."""

from abc import abstractmethod
from collections.abc import Callable
from operator import is_
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg.finite import require_finite_actions, require_finite_policy, require_finite_rows
from sb3_pg.policies import PolicyKind, make_kind
from sb3_pg.policies.kind import Sampler
from sb3_pg.policies.snapshot import Snapshot
from sb3_pg.rollouts.actions import policy_action_space, to_env_actions
from sb3_pg.rollouts.buffers import EpisodeRolloutBuffer, hold
from sb3_pg.rollouts.callbacks import package_of, walk
from sb3_pg.rollouts.episodes import EpisodeSelection
from sb3_pg.rollouts.guards import NormalizerGuard
from sb3_pg.rollouts.ranks import Moments, Shared
from sb3_pg.rollouts.used import Footprint, glance
from sb3_pg.vec_env import GymnasiumVecEnv, skipped_rows

# Where environments are while a rollout is played, and after one that an error has ended
_NOWHERE = "nowhere"


class RolloutAlgorithm(OnPolicyAlgorithm):
    """SB3's on-policy algorithm, with rollouts that may consist of whole episodes.

    A subclass says what it plays and evaluates, and what it makes of it (:meth:`_finish_rollout`).
    """

    #: Steps within which an episode has to end where whole episodes are collected
    MAX_EPISODE_STEPS: ClassVar[int] = 100_000

    #: Whole episodes an environment plays in a rollout; None for ``n_steps``
    n_episodes: int | None
    #: Steps since the start of the episode in progress, ``(n_envs,)``
    _episode_timesteps: np.ndarray
    _kind: PolicyKind | None = None
    #: All callbacks of the rollout that is to begin
    _callback: BaseCallback | None = None
    #: Where the last rollout has left the environments; None if they have been reset since, or never played in
    _left: "Footprint | str | None" = None
    #: What several ranks merge of ``VecNormalize``, and the environments that have been given seeds by rank
    _moments: Moments | None = None
    _apart: VecEnv | None = None

    @property
    @abstractmethod
    def whole_episodes(self) -> bool:
        """Whether rollouts consist of whole episodes. If not, they are cut after ``n_steps``."""

    @property
    @abstractmethod
    def uses_critic(self) -> bool:
        """Whether V of the steps is wanted."""

    @property
    @abstractmethod
    def bootstraps(self) -> bool:
        """Whether V of what follows a cut or truncated episode is wanted."""

    @abstractmethod
    def _finish_rollout(
        self, rollout_buffer: RolloutBuffer, last_values: th.Tensor, terminal_values: np.ndarray, dones: np.ndarray
    ) -> None:
        """Make of a rollout what it was played for. Values and log-probabilities are in the buffer.

        :param rollout_buffer: the rollout
        :param last_values: V of the observations behind the last step, ``(n_envs,)``; 0 where none is wanted
        :param terminal_values: V of the terminal observation where an episode was truncated, 0 elsewhere,
            ``(n_steps, n_envs)``
        :param dones: whether the last step ended an episode, ``(n_envs,)``
        """

    @property
    def kind(self) -> PolicyKind:
        """The policy as the algorithms see it. A policy that the user has put in the place of the old one is seen at once."""
        if self._kind is None or self._kind.policy is not self.policy:
            self._kind = make_kind(self.policy)
        return self._kind

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_kind", "_left", "_moments", "_apart"]

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer with steps of the current policy, their weights and the critic's targets.

        Cut rollouts are ``n_rollout_steps`` long. Whole-episode rollouts start at episode starts and last until every
        environment has finished its ``n_episodes`` episodes or, without that, every episode that began within
        ``n_rollout_steps``; what the environments play meanwhile is marked as not in use. Which episodes count is thus
        settled before they are played: taking the first to finish would favour short ones, and so would dropping those
        that straddle the end.

        A callback may change the policy within a rollout: the next step is the new one's, and value and log-probability
        of each step are those of the policy that played it, but ``train`` takes the gradient of the policy as it is then at
        all steps, which is off-policy for those that were played before.

        :param env: the training environments
        :param callback: called at every step, at the beginning and at the end of the rollout
        :param rollout_buffer: the buffer to fill
        :param n_rollout_steps: steps an environment
        :return: False if the callback stopped training; the rollout is then incomplete
        :raises RuntimeError: if no episode ends within ``MAX_EPISODE_STEPS`` where whole ones are collected
        :raises ValueError: if a reward or an observation is not finite
        """
        self._callback = callback
        # First of all: it may change whatever a rollout begins with
        callback.on_rollout_start()
        self._callback = None
        shared = Shared(self, self._moments)
        assert self._last_obs is not None, "No previous observation was provided"
        self._find_environments(env)
        # Switch to eval mode (this affects batch norm / dropout)
        self.policy.set_training_mode(False)
        if self.whole_episodes:
            self._start_episodes(env)
        rollout_buffer.reset()
        own_buffer = isinstance(rollout_buffer, EpisodeRolloutBuffer)
        # Whose rows may be resets, and whose infos are empty where no episode has ended
        resetting, quiet = skipped_rows(env, own_buffer), isinstance(env.unwrapped, GymnasiumVecEnv)
        if not own_buffer:
            rollout_buffer.observations = hold(rollout_buffer.observations, self._last_obs)
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        timesteps = self._continue_timesteps(env.num_envs)
        selection = EpisodeSelection(
            env.num_envs, n_rollout_steps, self.n_episodes, self.whole_episodes, self.MAX_EPISODE_STEPS
        )
        is_translated = policy_action_space(self.action_space) is not self.action_space
        is_box, guard = isinstance(self.action_space, spaces.Box), NormalizerGuard(env)
        truncated: list[tuple[int, int, Any]] = []  # step, environment, terminal observation
        # SB3 makes a callback of no callback: nobody reads its locals
        listening, look = not (type(callback) is ConvertCallback and callback.callback is None), glance(env)
        n_steps = 0
        collecting = True

        self.kind.divide(self._last_obs)
        # SB3's buffers take values and log-probabilities step by step
        kind = self.kind
        require_finite_policy(self.policy, ", which is not played")
        sample = kind.make_sampler(env, through_forward=not own_buffer)
        # The first of the steps that the policy has played as it is, and what it is
        first, snapshot = 0, None if _is_sb3s(callback) else Snapshot(self.policy)

        while collecting:
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)

            try:
                actions, values, log_probs, context = sample(self._last_obs, self._last_episode_starts)  # type: ignore[arg-type]
            except ValueError:
                # torch refuses to build a distribution from NaN; say where the NaN came from
                require_finite_rows("observation", self._last_obs, n_steps)
                raise

            if is_box:
                require_finite_actions(actions, n_steps)
            clipped_actions = to_env_actions(actions, self.action_space) if is_translated else self._clip(actions)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            guard.check(n_steps)
            dones = np.asarray(dones, dtype=bool)
            was_reset = None if resetting is None else resetting.reset_rows
            self.num_timesteps += shared.count * (env.num_envs if was_reset is None else int(np.count_nonzero(~was_reset)))
            # A row in which an environment was reset is as an episode of its own that does not count
            starts = dones if was_reset is None else dones | was_reset

            # Give access to local variables
            if listening and not _call_back(callback, locals(), look):
                # A later learn() goes on from here
                self._last_obs, self._last_episode_starts = new_obs, starts  # type: ignore[assignment]
                self._episode_timesteps = np.where(starts, 0, timesteps + 1)
                self._left = Footprint(env, new_obs)
                shared.end(stopped=True)
                return False

            in_use = selection.in_use if was_reset is None else selection.in_use & ~was_reset
            self._note_episodes(infos, dones, None if selection.all_in_use and not quiet else in_use, quiet)

            rollout_buffer.add(
                self._last_obs,  # type: ignore[arg-type]
                actions.reshape(env.num_envs, -1),
                rewards,
                self._last_episode_starts,  # type: ignore[arg-type]
                values,  # type: ignore[arg-type]
                log_probs,  # type: ignore[arg-type]
                **({"timestep": timesteps, "mask": in_use, "context": context} if own_buffer else {}),
            )
            self._last_obs, self._last_episode_starts = new_obs, starts  # type: ignore[assignment]

            timesteps += 1
            if np.count_nonzero(starts):
                timesteps[starts] = 0
                for idx in np.flatnonzero(dones & in_use):
                    terminal_obs = infos[idx].get("terminal_observation")
                    if terminal_obs is not None and infos[idx].get("TimeLimit.truncated", False):
                        truncated.append((n_steps, int(idx), terminal_obs))
            n_steps += 1

            if snapshot is not None and snapshot.is_changed(self.policy):
                # By the callback. What was played before is scored as it was played
                if values is None:
                    with snapshot.restored():
                        self._score(kind, rollout_buffer, slice(first, n_steps), goes_on=True, at_once=True)
                sample = self._go_on(kind, sample, snapshot, env, through_forward=not own_buffer)
                kind, first, snapshot = self.kind, n_steps, Snapshot(self.policy)
                require_finite_policy(self.policy, ", which a callback has changed and which is not played")

            collecting = selection.step(dones, was_reset)

        self._left = Footprint(env, self._last_obs)
        if shared.end(stopped=False):
            return False  # on another rank
        with self.kind.computing():
            unscored = slice(first if values is None else n_steps, n_steps)
            # A callback that may change the policy may also do so after the rollout
            values = self._evaluate_rollout(rollout_buffer, starts, truncated, unscored, at_once=snapshot is not None)
        # With V of the observations behind the last step in ``values``, as SB3's algorithms have it
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _note_episodes(self, infos: Any, dones: np.ndarray, in_use: np.ndarray | None, quiet: bool) -> None:
        """Episodes that count for the logged return and length.

        :param in_use: environments whose episode counts; None for all. Surplus episodes that happen to finish are short ones:
            they would bias the mean return
        :param quiet: whether infos are empty where no episode has ended
        """
        if in_use is not None:
            if quiet:
                in_use = in_use & dones
                if not in_use.any():
                    return
            infos, dones = [infos[idx] for idx in np.flatnonzero(in_use)], dones[in_use]
        self._update_info_buffer(infos, dones)

    def _clip(self, actions: np.ndarray) -> np.ndarray:
        """Actions of the policy within the bounds of the action space."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            # Unscale from [-1, 1] to the bounds of the action space
            return np.asarray(self.policy.unscale_action(actions))
        # Samples of an unbounded Gaussian; the log-probability is that of the unclipped action
        return np.asarray(np.clip(actions, self.action_space.low, self.action_space.high))

    def _start_episodes(self, env: VecEnv) -> None:
        """Reset the environments unless all of them are at the start of an episode."""
        if not np.all(self._last_episode_starts):  # type: ignore[arg-type]
            self._reset_environments(env)

    def _find_environments(self, env: VecEnv) -> None:
        """Reset the environments if they are not where the last rollout has left them: they have been evaluated on meanwhile.

        What they would return is not what follows the observations that the last rollout ended with.
        """
        left, self._left = self._left, _NOWHERE
        is_lost = isinstance(left, Footprint) and left.env is env and left.observations is self._last_obs and left.is_left()
        if is_lost or left is _NOWHERE:
            self._reset_environments(env)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        before = self._last_obs
        prepared = super()._setup_learn(*args, **kwargs)
        if self._last_obs is not before:  # it has reset them
            self._left = None
        return prepared

    def _reset_environments(self, env: VecEnv) -> None:
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

    def _score(self, kind: PolicyKind, rollout_buffer: RolloutBuffer, steps: slice, goes_on: bool, at_once: bool) -> None:
        """Values of steps now, and their log-probabilities when somebody asks for them, or at once."""
        assert isinstance(rollout_buffer, EpisodeRolloutBuffer)

        def score() -> None:
            with kind.computing():
                kind.fill_log_probs(rollout_buffer, steps)

        with kind.computing():
            if self.uses_critic:
                kind.fill_values(rollout_buffer, steps, goes_on)
            else:
                rollout_buffer.values[steps] = 0.0
        rollout_buffer.score_later(score)
        if at_once:
            rollout_buffer.settle()

    def _go_on(self, kind: PolicyKind, sample: Sampler, snapshot: Snapshot, env: VecEnv, through_forward: bool) -> Sampler:
        """What draws actions after the policy has changed, or been replaced, within a rollout."""
        if self.kind is not kind:
            return self.kind.make_sampler(env, through_forward)
        kind.begin_part()
        # What has changed in place the sampler has seen already
        return kind.remake_sampler(env, through_forward) if snapshot.is_replaced(self.policy) else sample

    def _evaluate_rollout(
        self,
        rollout_buffer: RolloutBuffer,
        dones: np.ndarray,
        truncated: list[tuple[int, int, Any]],
        unscored: slice,
        at_once: bool,
    ) -> th.Tensor:
        """Fill what the steps left open: values, log-probabilities, V of what follows the ends.

        :param unscored: steps that have neither yet
        :param at_once: whether log-probabilities cannot wait until somebody asks for them
        :return: V of the observations behind the last step, ``(n_envs, 1)``; 0 where none is wanted
        """
        if isinstance(rollout_buffer, EpisodeRolloutBuffer):
            rollout_buffer.trim()
        require_finite_rows("reward", rollout_buffer.rewards)
        if self.policy.features_extractor_class in (FlattenExtractor, NatureCNN, CombinedExtractor):
            # The user's own may know what to do with NaN
            require_finite_rows("observation", rollout_buffer.observations)
            for step, env, terminal_obs in truncated:
                require_finite_rows("terminal observation", _stack_obs([terminal_obs]), step, env)
        if unscored.start < unscored.stop:
            self._score(self.kind, rollout_buffer, unscored, not self.whole_episodes, at_once)
        n_envs = len(dones)
        last_values, terminal_values = th.zeros(n_envs), np.zeros_like(rollout_buffer.rewards)
        if self.bootstraps and not self.whole_episodes:
            last_steps = np.full(n_envs, len(rollout_buffer.rewards) - 1)
            last_values = self.kind.bootstrap_values(rollout_buffer, last_steps, np.arange(n_envs), self._last_obs)
        if self.bootstraps and truncated:
            steps, envs = (np.array([end[i] for end in truncated]) for i in (0, 1))
            observations = _stack_obs([terminal_obs for _, _, terminal_obs in truncated])
            terminal_values[steps, envs] = self.kind.bootstrap_values(rollout_buffer, steps, envs, observations)
        self._finish_rollout(rollout_buffer, last_values, terminal_values, dones)
        return last_values.reshape(n_envs, 1).to(self.device)


def _is_sb3s(callback: Any) -> bool:
    """Whether a callback and all that it calls are SB3's own, or ours, which leave the policy alone."""
    return {package_of(called) for called in walk(callback)} <= {"stable_baselines3", "sb3_contrib", "sb3_pg"}


def _call_back(callback: BaseCallback, locals_: dict[str, Any], look: Callable[[], tuple[Any, Any]]) -> bool:
    """Whether training goes on after a step, of which the callback is shown the local variables."""
    infos = look()
    callback.update_locals(locals_)
    if not callback.on_step():
        return False
    if not all(map(is_, infos, look())):
        raise RuntimeError(
            "A callback has stepped or reset the training environments within a rollout, whose episodes are lost: give it "
            "environments of its own (EvalCallback(make_vec_env(…)))."
        )
    return True


def _stack_obs(observations: list[Any]) -> Any:
    """Single observations to a batch, ``(n, …)`` or a dictionary of such."""
    if isinstance(observations[0], dict):
        return {key: np.stack([obs[key] for obs in observations]) for key in observations[0]}
    return np.stack(observations)
