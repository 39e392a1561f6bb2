"""Rollout buffers for cut rollouts and for whole episodes of unknown length."""

from collections.abc import Callable, Generator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples

from sb3_pg import estimators
from sb3_pg.policies.steps import map_obs

_SAMPLED = ("observations", "actions", "values", "log_probs", "advantages", "returns")
_STORED = (*_SAMPLED, "rewards", "episode_starts", "timesteps", "mask")


def hold(stored: Any, values: Any) -> Any:
    """Arrays, whatever the observation space says, that hold what the policy sees: VecNormalize makes floats of anything.

    :param stored: an array, or a dictionary of such
    :param values: what is to be written there, of the same structure
    :return: ``stored``, with arrays of another type in the place of those that would cut or round the values
    """
    if isinstance(stored, dict):
        return {key: hold(array, values[key]) for key, array in stored.items()}
    # Networks take float32, whatever they are given
    seen = np.dtype(np.float32) if values.dtype == np.float64 else values.dtype
    fits = stored.dtype in (np.float32, np.float64) or np.can_cast(seen, stored.dtype)
    return stored if fits else stored.astype(seen)


def _by_env(array: np.ndarray) -> np.ndarray:
    """Zeros of the same shape, ``(n_steps, n_envs, …)``, in memory environment by environment: an update reads them so."""
    return np.zeros((array.shape[1], array.shape[0], *array.shape[2:]), array.dtype).swapaxes(0, 1)


class EpisodeRolloutBuffer(RolloutBuffer):
    """SB3's rollout buffer, which also takes rollouts of any length and marks the steps that the update may use.

    Beside SB3's fields, all ``(n_steps, n_envs, …)`` until :meth:`get` or :meth:`samples` flattens them:

    - ``advantages``: the weights Ψ (return, reward-to-go or GAE, less the baseline), not standardised and without γᵗ;
    - ``returns``: the critic's targets, λ-returns under GAE and rewards-to-go otherwise;
    - ``rewards``: as the environment gave them (SB3 adds γV at time limits; here :meth:`compute_returns_and_advantage` does);
    - ``mask``: True on the steps in use. The others belong to episodes beyond the window or quota, played while the last
      counted episodes finish: using those that happen to have ended would favour short ones;
    - ``timesteps``: steps since the start of the episode, which may lie in an earlier rollout;
    - ``context``: what the kind of policy needs beside the observation to score a step, by name;
    - ``log_probs``: computed when somebody asks for them, or by the update, which computes them anyway.

    It starts with room for ``buffer_size`` steps, doubles when full, and keeps its memory for the next rollout. Observations
    lie there environment by environment, so that flattening them copies nothing.
    Parameters are those of :class:`stable_baselines3.common.buffers.RolloutBuffer`.
    """

    timesteps: np.ndarray
    mask: np.ndarray
    context: Mapping[str, np.ndarray] = MappingProxyType({})
    #: What makes the weights of this rollout from V behind its last step and ``dones``; None until they have been made
    weigh: Callable[[th.Tensor, np.ndarray], None] | None = None
    _storage: dict[str, Any]
    _score: Callable[[], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return {name: value for name, value in vars(self).items() if name not in ("weigh", "_score")}  # the model's

    @property  # type: ignore[override]
    def log_probs(self) -> np.ndarray:
        """log π(a∣s) of the policy that has played the step, ``(n_steps, n_envs)``."""
        self.settle()
        log_probs: np.ndarray = vars(self)["log_probs"]
        return log_probs

    @log_probs.setter
    def log_probs(self, log_probs: np.ndarray) -> None:
        vars(self)["log_probs"] = log_probs

    def score_later(self, score: Callable[[], None]) -> None:
        """Have the log-probabilities written by ``score`` when somebody asks for them.

        :param score: to be called as long as the policy is the one that has played
        """
        self._score = score

    def settle(self) -> None:
        """Have the log-probabilities written now, if they are still to be."""
        if self._score is not None and not self.generator_ready:
            score, self._score = self._score, None
            score()

    def take_log_probs(self, log_probs: np.ndarray) -> None:
        """Write the log-probabilities that the update has computed, unless somebody has asked for them before.

        :param log_probs: of the steps in use, in the order of :meth:`samples`, ``(n_used,)``
        """
        if self._score is not None:
            self._score = None
            self.log_probs[np.flatnonzero(self.mask.T), 0] = log_probs

    def reset(self) -> None:
        """Forget the rollout; keep the memory."""
        if not hasattr(self, "_storage"):  # called by SB3's constructor
            super().reset()
            if isinstance(self.action_space, spaces.Box) and self.actions.dtype not in (np.float32, np.float64):
                # A Gaussian's samples are what has to be scored, not their integer parts or roundings
                self.actions = self.actions.astype(np.float32)
            self.observations = map_obs(_by_env, self.observations)
            self.timesteps = np.zeros((self.buffer_size, self.n_envs), dtype=np.int64)
            self.mask = np.zeros((self.buffer_size, self.n_envs), dtype=bool)
            self._storage = {name: getattr(self, name) for name in _STORED}
            self._n_steps = self.buffer_size
        self._storage.setdefault("context", {})  # buffers pickled by 0.1.0 have none
        self.__dict__.update(self._storage)
        self.buffer_size = self._n_steps
        self.generator_ready = False
        self.weigh = self._score = None
        self.pos = 0
        self.full = False

    def _grow(self) -> None:
        try:
            grown = {
                name: map_obs(lambda a: np.concatenate([a, np.zeros_like(a)]), array) for name, array in self._storage.items()
            }
        except MemoryError as error:
            raise MemoryError(
                f"An episode has gone on for {len(self.rewards)} steps, and twice as many do not fit in memory: give the "
                'environment a time limit (gymnasium.wrappers.TimeLimit), or use VanillaPG with weights="gae", which learns '
                "from parts of episodes."
            ) from error
        self._storage.update(grown)
        self.__dict__.update(self._storage)

    def add(
        self,
        obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor | None = None,
        log_prob: th.Tensor | None = None,
        timestep: np.ndarray | int = 0,
        mask: np.ndarray | bool = True,
        context: Mapping[str, np.ndarray] = MappingProxyType({}),
    ) -> None:
        """Append one step of every environment.

        :param obs: observations the actions were taken on, ``(n_envs, …)`` or a dictionary of such
        :param action: ``(n_envs, …)``
        :param reward: ``(n_envs,)``
        :param episode_start: whether the step is the first of its episode, ``(n_envs,)``
        :param value: V(obs), ``(n_envs,)`` or ``(n_envs, 1)``; None if it is filled in later
        :param log_prob: log π(action∣obs), ``(n_envs,)``; None if it is filled in later
        :param timestep: steps since the start of the episode, ``(n_envs,)``
        :param mask: whether the step is in use, ``(n_envs,)``
        :param context: what the kind of policy needs to score the step, ``(n_envs, …)`` each
        """
        pos, n_envs = self.pos, self.n_envs
        if pos == 0:
            self._storage["observations"] = self.observations = hold(self._storage["observations"], obs)
        if pos == len(self.rewards):
            self._grow()
        if isinstance(self.observations, dict):
            for key, array in self.observations.items():
                array[pos] = obs[key].reshape(array.shape[1:])
        else:
            # Discrete observations come as (n_envs,) and are stored as (n_envs, 1)
            self.observations[pos] = obs.reshape(self.observations.shape[1:])
        self.actions[pos] = action.reshape((n_envs, self.action_dim))
        self.rewards[pos] = reward
        self.episode_starts[pos] = episode_start
        self.timesteps[pos] = timestep
        self.mask[pos] = mask
        for name, rows in context.items():
            if name not in self.context:
                self._storage["context"][name] = np.zeros((len(self.rewards), *rows.shape), rows.dtype)
            self.context[name][pos] = rows
        if value is not None and log_prob is not None:
            self.values[pos] = value.detach().cpu().numpy().reshape(n_envs)
            self.log_probs[pos] = log_prob.detach().cpu().numpy().reshape(n_envs)
        self.pos = pos + 1
        self.full = self.pos == self.buffer_size

    def trim(self) -> None:
        """End the rollout: from here on the fields are as long as the rollout, and ``buffer_size`` says how long."""
        rewards = self.rewards
        for name, array in self._storage.items():
            setattr(self, name, map_obs(lambda a: a[: self.pos], array))
        if len(rewards) == self.pos:
            self.rewards[...] = rewards  # the user may have put an array of their own there
        self.generator_ready = False
        self.buffer_size = self.pos
        self.full = True

    def done_steps(self, dones: np.ndarray) -> np.ndarray:
        """Last steps of episodes.

        :param dones: whether the last row ended an episode, ``(n_envs,)``
        :return: ``(n_steps, n_envs)``
        """
        return np.concatenate([self.episode_starts[1:], np.asarray(dones)[None]]).astype(bool)

    def episodes(self, done_steps: np.ndarray) -> list[tuple[int, slice]]:
        """The whole episodes in use, environment by environment.

        :param done_steps: whether a step ended an episode, ``(n_steps, n_envs)``, of :meth:`done_steps`
        :return: environment and rows of each
        """
        episodes = []
        for env in range(self.n_envs):
            ends = (np.flatnonzero(done_steps[:, env]) + 1).tolist()
            rows = (slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True))
            episodes += [(env, row) for row in rows if self.mask[row.start, env]]
        return episodes

    def next_values(self, last_values: th.Tensor, done_steps: np.ndarray, terminal_values: np.ndarray | None) -> np.ndarray:
        """V of the state that each step reached, which :func:`sb3_pg.estimators.gae` takes.

        :param last_values: V of the observations after the last step, ``(n_envs,)``
        :param done_steps: whether a step ended an episode, ``(n_steps, n_envs)``, of :meth:`done_steps`
        :param terminal_values: V of the terminal observation where an episode was truncated, 0 elsewhere,
            ``(n_steps, n_envs)``; None if nothing was truncated
        :return: ``(n_steps, n_envs)``
        """
        bootstrap = np.zeros_like(self.values) if terminal_values is None else terminal_values
        following = np.concatenate([self.values[1:], last_values.detach().cpu().numpy().reshape(1, -1)])
        return np.where(done_steps, bootstrap, following)

    def compute_returns_and_advantage(
        self,
        last_values: th.Tensor,
        dones: np.ndarray,
        weights: str | None = None,
        terminal_values: np.ndarray | None = None,
    ) -> None:
        """Fill ``advantages`` with the weights Ψ and ``returns`` with the critic's targets.

        With the first two arguments alone, as callbacks call it after they have changed ``rewards``, it makes what the model
        made: its weights, with the same V at time limits and the same baseline.

        :param last_values: V of the observations after the last step, ``(n_envs,)``; bootstraps episodes in progress
        :param dones: whether the last step ended an episode, ``(n_envs,)``
        :param weights: ``"return"``, ``"reward_to_go"`` or ``"gae"``, without a baseline; None for those of the model, or
            ``"gae"`` for a rollout that is not a model's
        :param terminal_values: V of the terminal observation where an episode was truncated, 0 elsewhere,
            ``(n_steps, n_envs)``; used by ``"gae"``. None if nothing was truncated
        """
        if weights is None and terminal_values is None and self.weigh is not None:
            self.weigh(last_values, dones)
            return
        weights = "gae" if weights is None else weights
        self.trim()
        done_steps = self.done_steps(dones)
        if weights == "gae":
            next_values = self.next_values(last_values, done_steps, terminal_values)
            self.advantages[...] = estimators.gae(
                self.rewards, self.values, next_values, done_steps, self.gamma, self.gae_lambda
            )
            self.returns[...] = self.advantages + self.values
        else:
            returns = estimators.reward_to_go(self.rewards, done_steps, self.gamma)
            # The total return is the reward-to-go of the first step
            psi = {"return": estimators.episode_first(returns, done_steps), "reward_to_go": returns}
            self.advantages[...] = psi[weights]
            self.returns[...] = returns

    def _flatten(self) -> None:
        """Make the sampled fields ``(n_steps · n_envs, …)``, environment by environment, as SB3 does before sampling."""
        assert self.full, "The rollout has not ended"
        if not self.generator_ready:
            for name in _SAMPLED:
                setattr(self, name, map_obs(self.swap_and_flatten, vars(self)[name]))
            self.generator_ready = True

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:  # type: ignore[override]
        """Yield the steps in use once, in random order.

        :param batch_size: samples a minibatch; None for all at once
        """
        self.settle()
        self._flatten()
        indices = np.random.permutation(np.flatnonzero(self.mask.T))
        batch_size = batch_size or len(indices)
        for start in range(0, len(indices), batch_size):
            yield self._get_samples(indices[start : start + batch_size])

    def samples(self) -> tuple[RolloutBufferSamples | DictRolloutBufferSamples, th.Tensor, dict[str, th.Tensor]]:
        """All steps in use, in order; on the CPU views of the buffer's memory where every step is.

        Log-probabilities that nobody has asked for are 0 until :meth:`take_log_probs`.

        :return: the samples, their timesteps and their context, ``(n_used, …)`` each
        """
        self._flatten()
        used: Any = slice(None) if self.mask.all() else np.flatnonzero(self.mask.T)

        def to_torch(array: np.ndarray) -> th.Tensor:
            return th.as_tensor(array[used], device=self.device)

        # SB3's samples carry float actions, whatever the action space
        fields = [map_obs(to_torch, self.observations), to_torch(self.actions).float()]
        fields += [to_torch(vars(self)[name]).flatten() for name in ("values", "log_probs", "advantages", "returns")]
        sample_class: Any = DictRolloutBufferSamples if isinstance(self.observations, dict) else RolloutBufferSamples
        context = {
            name: to_torch(self.swap_and_flatten(array).reshape(-1, *array.shape[2:])) for name, array in self.context.items()
        }
        return sample_class(*fields), to_torch(self.swap_and_flatten(self.timesteps)).flatten(), context


class EpisodeDictRolloutBuffer(EpisodeRolloutBuffer, DictRolloutBuffer):  # type: ignore[misc]
    """:class:`EpisodeRolloutBuffer` for dictionary observations."""
