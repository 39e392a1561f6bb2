"""Checkpoints from which a training goes on as if it had never stopped.

Environments cannot be saved in general. So a checkpoint is a point of the training itself: there a run, stopped later or not,
resets its environments and seeds all generators anew, with seeds that follow from the run's and the checkpoint's number.
Whatever comes after depends on what the checkpoint holds, and on nothing else.
"""

import os
import re
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, ProgressBarCallback
from stable_baselines3.common.logger import CSVOutputFormat, TensorBoardOutputFormat
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import get_latest_run_id, set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg import distributed
from sb3_pg.algorithms.model import Model
from sb3_pg.rollouts.callbacks import walk
from sb3_pg.saving import NORMALIZER, TRAINING, add_member, is_plain, read_member, set_statistics, write_model

SelfModel = TypeVar("SelfModel", bound=Model)

# Of SB3's callbacks: what ``learn`` sets anew
_NOT_SAVED = ("locals", "globals", "verbose", "num_timesteps")
# Files of a run that grow line by line
_GROWING = ("*.monitor.csv", "monitor.csv", "*.tfevents.*")


class CheckpointCallback(BaseCallback):
    """Write a checkpoint at the first end of a rollout after every ``save_freq`` steps: ``rl_model_<steps>_steps.zip``.

    Every checkpoint is a model that ``load`` opens, with the statistics of ``VecNormalize``, and holds what :func:`resume`
    goes on with: optimizers, counters, logs, and the state of the callbacks. Files are written to their end or not at all.

    The state of SB3's callbacks is their attributes, as far as they are plain data. A callback of your own takes part if it
    has ``state_dict()``, which returns a dictionary of numbers, texts, lists and arrays, and ``load_state_dict(state)``.

    At a checkpoint the environments are reset, so that episodes in progress are given up, and all generators are seeded anew.
    Everything that is random has to follow from ``reset(seed=…)`` and from the generators of Python, NumPy and torch.

    :param save_freq: environment steps between two checkpoints, of all environments together
    :param folder: where to write them
    :param name_prefix: what their names begin with
    :raises ValueError: if ``save_freq`` is not positive; when training starts, if the environments do not follow a seed
    """

    def __init__(self, save_freq: int, folder: str | Path, name_prefix: str = "rl_model"):
        super().__init__()
        if not isinstance(save_freq, int | np.integer) or save_freq < 1:
            raise ValueError(f"save_freq must be a positive number of steps, not {save_freq!r}.")
        self.save_freq, self.folder, self.name_prefix = int(save_freq), Path(folder), name_prefix
        self._resumed: dict[str, Any] | None = None
        self._number = -1  # of the last checkpoint; the start of the training is the first

    def _on_training_start(self) -> None:
        if distributed.size() > 1:
            raise ValueError("Exact checkpoints are of one process: with several, use SB3's CheckpointCallback.")
        if self._resumed is None and self._number < 0:
            seed = self.model.seed
            self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
            self._next = self.model.num_timesteps
            _check_seeds(self.training_env, self._seed)

    def _on_rollout_start(self) -> None:
        model = self.model
        assert isinstance(model, Model)
        if self._resumed is not None:
            self._restore(model, self._resumed)
            self._begin(model)
            for i, n_steps in enumerate(self._resumed["abandoned"]):
                self.training_env.env_method("note_abandoned", n_steps, indices=i)
            self._resumed = None
            return
        if model.num_timesteps < self._next:
            return
        self._number += 1
        self._next = model.num_timesteps + self.save_freq
        if self._number > 0:
            self._write(model)
        self._begin(model)

    def _on_step(self) -> bool:
        return True

    def _begin(self, model: Model) -> None:
        """Seed and reset all that goes on from here."""
        of_generators, of_envs, of_evaluations = _derive(self._seed, self._number)
        set_random_seed(of_generators)
        model.action_space.seed(of_generators)
        for i, callback in enumerate(_with_state(model._callback)):
            if isinstance(callback, EvalCallback):
                callback.eval_env.seed(of_evaluations + 1000 * i)
        env = self.training_env
        env.seed(of_envs)
        model._last_obs = env.reset()  # type: ignore[assignment]
        model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        model._left = None

    def _write(self, model: Model) -> None:
        for output in model.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat):
                output.writer.flush()
            elif isinstance(output, CSVOutputFormat):
                output.file.flush()
        log_folder, env = model.logger.get_dir(), self.training_env
        state = {
            "seed": self._seed,
            "number": self._number,
            "total_timesteps": model._total_timesteps,
            "learn": [model._log_interval, model._tb_log_name, model._n_rollouts, model._next_log],
            "save": [self.save_freq, self._next, self.name_prefix],
            "logger": [model.logger.name_to_value, model.logger.name_to_count,
                       {name: list(formats or ()) for name, formats in model.logger.name_to_excluded.items()}],
            "abandoned": env.env_method("count_abandoned") if env.has_attr("count_abandoned") else [],
            "callbacks": [_state_of(callback) for callback in _with_state(model._callback)],
            "log_files": _sizes(Path(log_folder)) if log_folder else {},
            "files": _sizes(self.folder),
        }  # fmt: skip
        archive = model._to_archive()
        add_member(archive, TRAINING, state)
        write_model(self.folder / f"{self.name_prefix}_{model.num_timesteps}_steps.zip", archive)

    def _restore(self, model: Model, state: dict[str, Any]) -> None:
        self._seed, self._number = state["seed"], state["number"]
        self.save_freq, self._next, self.name_prefix = state["save"]
        _, _, model._n_rollouts, model._next_log = state["learn"]
        logger = model.logger
        values, counts, excluded = state["logger"]
        logger.name_to_value.update(values)
        logger.name_to_count.update(counts)
        logger.name_to_excluded.update({name: tuple(formats) for name, formats in excluded.items()})
        callbacks = _with_state(model._callback)
        if len(callbacks) != len(state["callbacks"]):
            raise ValueError(
                f"The checkpoint was written with {len(state['callbacks'])} callbacks, and there are {len(callbacks)}: resume "
                "with the callbacks of the run that wrote it."
            )
        for callback, of_callback in zip(callbacks, state["callbacks"], strict=True):
            _set_state(callback, of_callback)
        normalize = model.get_vec_normalize_env()
        if normalize is not None and state["normalizer"] is not None:
            # The resets since then have been counted
            set_statistics(normalize, state["normalizer"])


def resume(
    cls: type[SelfModel],
    path: str | Path,
    env: GymEnv,
    callback: MaybeCallback = None,
    progress_bar: bool = False,
    trusted: bool = True,
    **kwargs: Any,
) -> SelfModel:
    """Go on with a training that :class:`CheckpointCallback` has written, to the number of steps it was started with.

    The end is that of the training which was not interrupted, bit for bit, if ``env``, ``callback`` and the machine are the
    same. TensorBoard's logs and ``Monitor`` files are cut back to the checkpoint; make the environments with
    ``monitor_kwargs=dict(override_existing=False)``.

    :param cls: class of the model
    :param path: a checkpoint, or a folder, of which the newest one that is whole is taken
    :param env: environments as the training had them. ``VecNormalize`` gets its statistics
    :param callback: the callbacks of the training, without the ``CheckpointCallback``
    :param progress_bar: show a progress bar
    :param trusted: as of ``load``
    :param kwargs: what else ``load`` takes
    :return: the trained model
    :raises ValueError: if there is no checkpoint, or the callbacks are others
    """
    file, state = find_checkpoint(path)
    model = cls.load(file, env=env, trusted=trusted, **kwargs)
    checkpoints = CheckpointCallback(state["save"][0], file.parent, state["save"][2])
    checkpoints._resumed = state
    log_interval, tb_log_name, *_ = state["learn"]
    if model.tensorboard_log is not None:
        name = Path(tb_log_name).name
        _cut_back(Path(model.tensorboard_log) / f"{name}_{get_latest_run_id(model.tensorboard_log, name)}", state["log_files"])
    _cut_back(file.parent, state["files"])
    others = callback if isinstance(callback, list) else [] if callback is None else [callback]
    return model.learn(
        state["total_timesteps"] - model.num_timesteps,
        callback=[checkpoints, *others],  # type: ignore[list-item]
        log_interval=log_interval,
        tb_log_name=tb_log_name,
        reset_num_timesteps=False,
        progress_bar=progress_bar,
    )


def find_checkpoint(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of a folder that is whole, and what a training goes on with.

    :param path: folder, or one checkpoint
    :return: the file, and the state of the training
    :raises ValueError: if there is none
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.glob("*_steps.zip"), key=_n_steps, reverse=True)
    for file in files:
        try:
            state = read_member(file, TRAINING)
            if state is not None:
                return file, {**state, "normalizer": read_member(file, NORMALIZER)}
        except ValueError:
            continue  # not whole
    raise ValueError(f"{path} has no checkpoint to go on from: train with a CheckpointCallback, or sb3-pg train --save-freq.")


def _n_steps(file: Path) -> int:
    number = re.search(r"_(\d+)_steps\.zip$", file.name)
    return int(number[1]) if number else -1


def _derive(seed: int, number: int) -> list[int]:
    """Seeds of a checkpoint: of generators, environments and evaluations."""
    return [int(x) % 2**30 for x in np.random.SeedSequence([seed, number]).generate_state(3)]


def _check_seeds(env: VecEnv, seed: int) -> None:
    """Refuse environments that begin otherwise with the same seed."""
    first = []
    for _ in range(2):
        env.unwrapped.seed(seed)
        observations = env.unwrapped.reset()
        first.append([np.array(x) for x in (observations.values() if isinstance(observations, dict) else [observations])])
    if not all(map(np.array_equal, *first)):
        raise ValueError(
            "The environments do not follow reset(seed=…), so a training cannot go on from a checkpoint as if it had not "
            "stopped: seed their generators in reset (EnvPool takes no seeds there: use Gymnasium's environments), or save "
            "models with SB3's CheckpointCallback."
        )


def _with_state(callback: BaseCallback | None) -> list[BaseCallback]:
    """A callback and all that it calls, but for lists, ours and those that show the progress."""
    stateless = CallbackList | CheckpointCallback | ProgressBarCallback
    return [called for called in walk(callback) if isinstance(called, BaseCallback) and not isinstance(called, stateless)]


def _state_of(callback: BaseCallback) -> dict[str, Any]:
    state: dict[str, Any] = {
        "class": type(callback).__name__,
        "n_calls": callback.n_calls,
        "num_timesteps": callback.num_timesteps,
    }
    if hasattr(callback, "state_dict"):
        state["own"] = callback.state_dict()
        if not is_plain(state["own"]):
            raise TypeError(
                f"state_dict() of {type(callback).__name__} holds something else than numbers, texts, lists and arrays."
            )
    elif type(callback).__module__.partition(".")[0] in ("stable_baselines3", "sb3_contrib", "sb3_pg", "rl_zoo3"):
        state["own"] = {name: x for name, x in vars(callback).items() if name not in _NOT_SAVED and is_plain(x)}
    return state


def _set_state(callback: BaseCallback, state: dict[str, Any]) -> None:
    if type(callback).__name__ != state["class"]:
        raise ValueError(f"The checkpoint was written with a {state['class']} where there is a {type(callback).__name__} now.")
    callback.n_calls, callback.num_timesteps = state["n_calls"], state["num_timesteps"]
    if hasattr(callback, "load_state_dict"):
        callback.load_state_dict(state["own"])
    else:
        # What the constructor has set, such as paths, is this run's own
        own = {name: x for name, x in state.get("own", {}).items() if name in vars(callback) and not isinstance(x, str)}
        vars(callback).update(own)


def _sizes(folder: Path) -> dict[str, int]:
    """How far the files of a run have come."""
    return {file.name: file.stat().st_size for pattern in _GROWING for file in folder.glob(pattern)}


def _cut_back(folder: Path, sizes: dict[str, int]) -> None:
    """Take back what was logged after the checkpoint."""
    for pattern in _GROWING:
        for file in folder.glob(pattern):
            if file.name not in sizes:
                if ".tfevents." in file.name:
                    file.unlink()
            elif file.stat().st_size > sizes[file.name]:
                os.truncate(file, sizes[file.name])
