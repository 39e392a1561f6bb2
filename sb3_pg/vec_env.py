"""Vector environments of Gymnasium and of EnvPool, as SB3 and this package take environments."""

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize

# Names of Gymnasium's autoreset modes
_NEXT_STEP, _SAME_STEP, _DISABLED = "NextStep", "SameStep", "Disabled"
# Under which environments hand over masks in their infos
_MASKS = ("action_masks", "action_mask")
# Wrappers that would take the reset of an environment for a step of it
_COUNTING = (VecNormalize, VecFrameStack, VecMonitor)


class GymnasiumVecEnv(VecEnv):
    """SB3's interface to a ``gymnasium.vector.VectorEnv`` or an EnvPool of ``env_type="gymnasium"``, at its speed.

    What SB3 is owed at the end of an episode is there in every autoreset mode: the first observation of the next episode,
    a copy of the last one as ``terminal_observation``, ``TimeLimit.truncated``, ``reset_infos`` and the statistics of the
    episode, as ``Monitor`` writes them. Nothing is done for single environments at other steps: the infos of a step that
    ended no episode are empty, whatever the environments had to say.

    - ``SAME_STEP``, and ``DISABLED``, where the ended episodes are reset here, need nothing else.
    - ``NEXT_STEP``: ``SyncVectorEnv``, ``AsyncVectorEnv`` and EnvPool are reset here at once, as if disabled. All others
      spend one row an episode on the reset, in which the action is ignored. The algorithms of this package leave those rows
      out; for everything else that steps the environments they would be steps of the episode, so it is refused with an error.

    EnvPool takes its seed from ``envpool.make(…, seed=…)`` alone.

    :param env: the environments
    :param reset_rows: ``"skip"``, or ``"keep"`` to have reset rows taken for steps, as algorithms that know none of them do
    :param monitor_file: where to write the statistics of all episodes, as ``Monitor`` does; None for nowhere
    :raises TypeError: if ``env`` is no vector environment
    :raises ValueError: if ``reset_rows`` is something else
    """

    def __init__(self, env: VectorEnv, reset_rows: str = "skip", monitor_file: str | None = None):
        if not isinstance(env, VectorEnv):
            raise TypeError(f"env must be a gymnasium.vector.VectorEnv, not {env!r}: single environments need no adapter.")
        if reset_rows not in ("skip", "keep"):
            raise ValueError(f'reset_rows must be "skip" or "keep", not {reset_rows!r}.')
        self.env: Any = env
        base: Any = env.unwrapped
        mode = env.metadata.get("autoreset_mode", _NEXT_STEP)
        self._mode = getattr(mode, "value", mode)
        self._is_envpool = any(cls.__module__.partition(".")[0] == "envpool" for cls in type(base).__mro__)
        if self._mode == _NEXT_STEP and base is env and (self._is_envpool or isinstance(env, SyncVectorEnv | AsyncVectorEnv)):
            self._mode = _DISABLED  # a reset between two steps leaves nothing for the next step to reset
        self._keeps = reset_rows == "keep"
        #: Which rows of the last step were resets and no steps, ``(n_envs,)``
        self._was_reset: np.ndarray = np.zeros(env.num_envs, dtype=bool)
        self._to_be_reset, self._is_read = self._was_reset, True
        #: Masks in the infos, ``(n_envs, …)``; None if there are none
        self._masks: np.ndarray | None = None
        self._mask_source: str | None = None
        #: Steps and rewards of the episodes in progress, ``(n_envs,)``
        self.episode_lengths = np.zeros(env.num_envs, dtype=np.int64)
        self.episode_returns = np.zeros(env.num_envs)
        self._t_start, self._monitor = time.time(), None
        if monitor_file is not None:
            header: dict[str, Any] = {
                "t_start": self._t_start,
                "env_id": str(None if env.spec is None else getattr(env.spec, "id", None)),
            }
            self._monitor = ResultsWriter(monitor_file, header)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._no_infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        #: Those of the last step
        self.buf_infos: list[dict[str, Any]] = self._no_infos

    @property
    def has_reset_rows(self) -> bool:
        """Whether an environment spends a row on its reset, in which no step is taken."""
        return self._mode == _NEXT_STEP and not self._keeps

    @property
    def reset_rows(self) -> np.ndarray:
        """Which environments did not take the last step, but were reset in its place, ``(n_envs,)``."""
        self._is_read = True
        return self._was_reset

    def reset(self) -> Any:
        """Reset all environments, with the seeds and options that were set since the last time.

        :return: observations, ``(n_envs, …)`` or a dictionary of such
        """
        if any(options != self._options[0] for options in self._options):
            raise ValueError("Gymnasium's vector environments take the same options for all environments.")
        seeds = {} if self._is_envpool or self._seeds[0] is None else {"seed": self._seeds[0]}
        observations, infos = self.env.reset(**seeds, **({"options": self._options[0]} if self._options[0] else {}))
        self.reset_infos = [_of_env(infos, i) for i in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        self.episode_lengths[:], self.episode_returns[:] = 0, 0.0
        self._was_reset = self._to_be_reset = np.zeros(self.num_envs, dtype=bool)
        self._is_read = True
        self.buf_infos = [{}, *self._no_infos[1:]]
        self._note_masks(infos)
        return self._to_sb3(observations)

    def step_async(self, actions: np.ndarray) -> None:
        """Take note of the actions.

        :param actions: ``(n_envs, …)``
        """
        self._actions = np.asarray(actions, dtype=self.action_space.dtype)

    def step_wait(self) -> Any:
        """Take the step.

        :return: observations, rewards, whether the episode is over, and infos
        :raises RuntimeError: if a reset took the place of a step and nobody asks which
        """
        if not self._is_read:
            raise RuntimeError(
                f"Environment {int(self._was_reset.argmax())} was reset in the place of a step, which only the training of "
                "sb3_pg's algorithms can leave out: evaluate on stable_baselines3.common.env_util.make_vec_env(…), and train "
                'others on gymnasium.make_vec(…, vectorization_mode="sync"), or on GymnasiumVecEnv(env, reset_rows="keep") to '
                "have it taken for a step."
            )
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        observations = self._to_sb3(observations)
        dones = np.logical_or(terminated, truncated)
        # The first is another at every step, as all of SB3's are: whoever looks sees whether somebody else has stepped
        self.buf_infos = step_infos = [{}, *self._no_infos[1:]]
        self._note_masks(infos)
        self.episode_lengths += 1
        self.episode_returns += rewards
        if self._mode == _NEXT_STEP:
            self._was_reset, self._to_be_reset = self._to_be_reset, dones
            if not self._keeps and self._was_reset.any():
                self._is_read = False
                self.episode_lengths[self._was_reset], self.episode_returns[self._was_reset] = 0, 0.0
                self._note_resets(infos, np.flatnonzero(self._was_reset))
        if dones.any():
            ended = np.flatnonzero(dones)
            is_same_step = self._mode == _SAME_STEP
            last_infos = infos.get("final_info", {}) if is_same_step else infos
            if is_same_step:  # an array of objects
                last_observations = [self._to_sb3(_row(infos["final_obs"], i)) for i in ended.tolist()]
            else:
                of_ended = _row(observations, ended)
                last_observations = [_row(of_ended, row) for row in range(len(ended))]
            cut = (np.asarray(truncated) & ~np.asarray(terminated))[ended].tolist()
            for row, (i, episode) in enumerate(zip(ended.tolist(), self._end_episodes(ended), strict=True)):
                step_infos[i] = {
                    "episode": episode,
                    **(_of_env(last_infos, i) if last_infos else {}),
                    "terminal_observation": last_observations[row],
                    "TimeLimit.truncated": cut[row],
                }
            if is_same_step:
                self._note_resets(infos, ended)
            elif self._mode == _DISABLED:
                self._reset_ended(ended, dones, observations)
        return observations, np.asarray(rewards, dtype=np.float32), dones, step_infos

    def _reset_ended(self, ended: np.ndarray, dones: np.ndarray, observations: Any) -> None:
        """Reset the environments whose episode is over, and put what they show in place."""
        first, infos = self.env.reset(options={"reset_mask": dones.copy()})
        # EnvPool returns the environments that were reset, Gymnasium all
        rows = np.arange(len(ended)) if self._is_envpool else ended
        for array, new in zip(_leaves(observations), _leaves(self._to_sb3(first)), strict=True):
            array[ended] = new[rows]
        self._note_masks(infos, ended, rows)
        self._note_resets(infos, ended, rows)

    def _note_resets(self, infos: dict[str, Any], envs: np.ndarray, rows: np.ndarray | None = None) -> None:
        for i, row in zip(envs.tolist(), envs if rows is None else rows, strict=True):
            info = _of_env(infos, row) if infos else {}
            self.reset_infos[i] = {key: info[key] for key in info if key not in ("final_obs", "final_info")}

    def _note_masks(self, infos: dict[str, Any], envs: Any = slice(None), rows: Any = slice(None)) -> None:
        for name in _MASKS:
            if name in infos:
                masks = np.asarray(infos[name], dtype=bool)
                if self._masks is None:
                    self._masks = np.ones((self.num_envs, *masks.shape[1:]), dtype=bool)
                self._masks[envs] = masks[rows]

    def _end_episodes(self, ended: np.ndarray) -> list[dict[str, Any]]:
        """Their statistics, as Monitor writes them."""
        returns, lengths = self.episode_returns[ended].round(6).tolist(), self.episode_lengths[ended].tolist()
        self.episode_returns[ended], self.episode_lengths[ended] = 0.0, 0
        t = round(time.time() - self._t_start, 6)
        episodes: list[dict[str, Any]] = [{"r": r, "l": n, "t": t} for r, n in zip(returns, lengths, strict=True)]
        if self._monitor is not None:
            for episode in episodes:
                self._monitor.write_row(episode)
        return episodes

    def _to_sb3(self, observations: Any) -> Any:
        """A copy of observations, of the types that the spaces say."""
        if isinstance(self.observation_space, gym.spaces.Dict):
            return {key: np.array(observations[key], dtype=space.dtype) for key, space in self.observation_space.items()}
        return np.array(observations, dtype=self.observation_space.dtype)

    def close(self) -> None:
        """Close the environments."""
        self.env.close()
        if self._monitor is not None:
            self._monitor.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Renderings of the environments, if they render arrays."""
        images = self.env.render()
        return [None] * self.num_envs if images is None else list(images)

    # Attributes

    def has_attr(self, attr_name: str) -> bool:
        """Whether the environments have an attribute; masks that they hand over in their infos count as ``action_masks``."""
        if attr_name == "action_masks":
            return self._find_mask_source() != "nowhere"
        return self._has(attr_name)

    def _has(self, name: str) -> bool:
        base = self.env.unwrapped
        if hasattr(base, "envs"):
            return all(env.has_wrapper_attr(name) for env in base.envs)
        if hasattr(base, "env_fns"):
            # In other processes, which would not survive the question
            env = base.env_fns[0]()
            try:
                return bool(env.has_wrapper_attr(name))
            finally:
                env.close()
        return hasattr(base, name)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of each environment; if they are one object, which has it, the same for all.

        :param attr_name: its name
        :param indices: of environments; None for all
        :return: in the order of the indices
        :raises AttributeError: if there is none
        """
        if attr_name == "render_mode":
            values: Any = [self.env.render_mode] * self.num_envs
        elif self._is_made_of_envs:
            values = self.env.unwrapped.get_attr(attr_name)
        else:
            values = [getattr(self.env.unwrapped, attr_name)] * self.num_envs
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of each environment, or of the object that they are.

        :param attr_name: its name
        :param value: the same for all
        :param indices: of environments; None for all
        :raises ValueError: if some of the environments cannot be told from the others
        """
        if self._needs_all(attr_name, indices):
            if self._is_made_of_envs:
                self.env.unwrapped.set_attr(attr_name, [value] * self.num_envs)
            else:
                setattr(self.env.unwrapped, attr_name, value)
            return
        for i in self._get_indices(indices):
            self.env.unwrapped.envs[i].set_wrapper_attr(attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> Any:
        """Call a method of each environment, or of the object that they are, which is called once.

        :param method_name: its name
        :param indices: of environments; None for all
        :return: what they return, in the order of the indices; what the one object returns, if that is one item for each
            environment. Masks are an array, ``(n, …)``, where the environments hand over one
        :raises ValueError: if some of the environments cannot be told from the others
        """
        if method_name == "action_masks" and self._find_mask_source() == "infos":
            assert self._masks is not None
            return self._or_all_legal(self._masks)[list(self._get_indices(indices))]
        if not self._needs_all(method_name, indices):
            envs = [self.env.unwrapped.envs[i] for i in self._get_indices(indices)]
            return [env.get_wrapper_attr(method_name)(*method_args, **method_kwargs) for env in envs]
        if self._is_made_of_envs:
            return list(self.env.unwrapped.call(method_name, *method_args, **method_kwargs))
        result = getattr(self.env.unwrapped, method_name)(*method_args, **method_kwargs)
        if isinstance(result, np.ndarray) and len(result) == self.num_envs:
            return self._or_all_legal(result) if method_name == "action_masks" else list(result)
        return list(result) if isinstance(result, list | tuple) and len(result) == self.num_envs else [result] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        """Whether each environment is wrapped. ``Monitor``'s part is played here; wrappers in other processes are not seen.

        :param wrapper_class: a class of wrappers
        :param indices: of environments; None for all
        """
        envs: list[gym.Env] = getattr(self.env.unwrapped, "envs", [])
        if issubclass(wrapper_class, Monitor):
            return [True for _ in self._get_indices(indices)]
        return [bool(envs) and is_wrapped(envs[i], wrapper_class) for i in self._get_indices(indices)]

    @property
    def _is_made_of_envs(self) -> bool:
        return hasattr(self.env.unwrapped, "get_attr") and hasattr(self.env.unwrapped, "call")

    def _needs_all(self, name: str, indices: Any) -> bool:
        """Whether all environments are asked at once: those in other processes, and those that are one object."""
        if hasattr(self.env.unwrapped, "envs"):
            return False
        if len(set(self._get_indices(indices))) < self.num_envs:
            raise ValueError(
                f"{type(self.env.unwrapped).__name__} takes {name!r} for all environments at once: leave indices out."
            )
        return True

    def _find_mask_source(self) -> str:
        """Where masks come from: the environments' own ``"method"``, their ``"infos"`` or ``"nowhere"``."""
        if self._mask_source is None:
            if self._has("action_masks"):
                self._mask_source = "method"
            else:
                self._note_masks(self.env.reset()[1])
                self._mask_source = "nowhere" if self._masks is None else "infos"
        return self._mask_source

    def _or_all_legal(self, masks: np.ndarray) -> np.ndarray:
        """Where the next step is a reset any action will do."""
        masks = np.array(masks, dtype=bool).reshape(self.num_envs, -1)
        masks[self._to_be_reset] = True
        return masks


def find_layers(env: VecEnv) -> list[VecEnv]:
    """Vector environments from the outermost wrapper to what is wrapped."""
    layers = [env]
    while isinstance(layers[-1], VecEnvWrapper):
        layers.append(layers[-1].venv)
    return layers


def skipped_rows(env: VecEnv, has_mask: bool = True) -> GymnasiumVecEnv | None:
    """The environments under all wrappers, if some of their rows are resets, which whoever steps them has to leave out.

    :param env: the environments
    :param has_mask: whether the buffer can leave rows out
    :raises ValueError: if the buffer or a wrapper would take these rows for steps
    """
    *wrappers, base = find_layers(env)
    if not (isinstance(base, GymnasiumVecEnv) and base.has_reset_rows):
        return None
    counting = [type(wrapper).__name__ for wrapper in wrappers if isinstance(wrapper, _COUNTING)]
    if counting or not has_mask:
        raise ValueError(
            f"{(counting or ['This rollout_buffer_class'])[0]} takes every row for a step, and these environments spend one "
            "an episode on their reset: use autoreset_mode=SAME_STEP, or "
            'gymnasium.make_vec(…, vectorization_mode="sync") without Gymnasium\'s wrappers around it.'
        )
    return base


# Infos and observations of single environments


def _of_env(infos: dict[str, Any], i: int) -> dict[str, Any]:
    """What the infos of all environments say of one."""
    return {
        key: _row(value, i) if not isinstance(value, dict) else _of_env(value, i)
        for key, value in infos.items()
        if not key.startswith("_") and _is_of(infos.get(f"_{key}"), i) and (isinstance(value, dict) or np.ndim(value) > 0)
    }


def _is_of(mask: Any, i: int) -> bool:
    return mask is None or bool(mask[i])


def _row(batch: Any, i: Any) -> Any:
    return {key: _row(value, i) for key, value in batch.items()} if isinstance(batch, dict) else batch[i]


def _leaves(observations: Any) -> list[np.ndarray]:
    return list(observations.values()) if isinstance(observations, dict) else [observations]
