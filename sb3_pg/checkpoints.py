"""Checkpoints from which a training goes on as if it had never stopped.

Environments cannot be saved in general. So a checkpoint is a point of the training itself: there a run, stopped later or not,
resets its environments and seeds all generators anew, with seeds that follow from the run's and the checkpoint's number.
Whatever comes after depends on what the checkpoint holds, and on nothing else.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, ProgressBarCallback
from stable_baselines3.common.logger import CSVOutputFormat, JSONOutputFormat, Logger, TensorBoardOutputFormat, configure
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import get_latest_run_id, set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg import distributed
from sb3_pg.algorithms.model import Model
from sb3_pg.loading import NotTrustedError
from sb3_pg.rollouts.callbacks import walk
from sb3_pg.saving import NORMALIZER, TRAINING, add_member, is_plain, read_member, set_statistics, write_model

SelfModel = TypeVar("SelfModel", bound=Model)

# Of SB3's callbacks: what ``learn`` sets anew
_NOT_SAVED = ("locals", "globals", "verbose", "num_timesteps")
# What a training goes on with, and how many parts some of it has
_PARTS: dict[str, tuple[Any, int | None]] = {
    **{"seed": (int, None), "number": (int, None), "total_timesteps": (int | float, None)},
    **{"learn": (list, 4), "save": (list, 3), "logger": (list, 3)},
    **dict.fromkeys(("abandoned", "callbacks"), (list, None)),
    **dict.fromkeys(("log_files", "files"), (dict, None)),
}
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

    With several processes rank 0 writes, and as many have to go on; a callback's ``state_dict()`` is that of each rank.

    :param save_freq: environment steps between two checkpoints, of all environments together
    :param folder: where to write them
    :param name_prefix: what their names begin with
    :raises ValueError: if ``save_freq`` is not positive, or ``name_prefix`` is a path; when training starts, if the
        environments do not follow a seed
    """

    #: Seeds and resets are every rank's
    acts_on_every_rank = True

    def __init__(self, save_freq: int, folder: str | Path, name_prefix: str = "rl_model"):
        super().__init__()
        if not isinstance(save_freq, int | np.integer) or save_freq < 1:
            raise ValueError(f"save_freq must be a positive number of steps, not {save_freq!r}.")
        if not isinstance(name_prefix, str) or re.search(r"[/\\\0]", name_prefix):
            raise ValueError(f"name_prefix is what the names of the files begin with, no path: {name_prefix!r}.")
        self.save_freq, self.folder, self.name_prefix = int(save_freq), Path(folder), name_prefix
        self._resumed: dict[str, Any] | None = None
        self._number = -1  # of the last checkpoint; the start of the training is the first

    def _on_training_start(self) -> None:
        if self._resumed is None and self._number < 0:
            seed = self.model.seed
            self._seed = distributed.of_first(int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed)
            self._next = self.model.num_timesteps
            _check_seeds(self.training_env, self._seed)

    def _on_rollout_start(self) -> None:
        model = self.model
        assert isinstance(model, Model)
        if self._resumed is not None:
            self._restore(model, self._resumed)
            self._begin(model)
            for i, n_steps in enumerate(self._resumed["abandoned"][distributed.rank()]):
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
        of_generators, of_envs, of_evaluations = _derive(self._seed, self._number, distributed.rank())
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
        env = self.training_env
        abandoned = env.env_method("count_abandoned") if env.has_attr("count_abandoned") else []
        of_callbacks = [_state_of(callback) for callback in _with_state(model._callback)]
        of_all = [of_rank for (of_rank,) in distributed.gather_items([(abandoned, of_callbacks)])]
        if distributed.rank() == 0:
            self._write_file(model, *zip(*of_all, strict=True))
        distributed.of_first(None)  # nobody goes on, and logs, before the file is there

    def _write_file(self, model: Model, abandoned: Sequence[list[int]], of_callbacks: Sequence[list[dict[str, Any]]]) -> None:
        for output in model.logger.output_formats:
            stream = getattr(output, "writer", getattr(output, "file", None))  # TensorBoard's, or a file
            if stream is not None:
                stream.flush()
        log_folder = model.logger.get_dir()
        state = {
            "seed": self._seed,
            "number": self._number,
            "total_timesteps": model._total_timesteps,
            "learn": [model._log_interval, model._tb_log_name, model._n_rollouts, model._next_log],
            "save": [self.save_freq, self._next, self.name_prefix],
            "logger": [model.logger.name_to_value, model.logger.name_to_count,
                       {name: list(formats or ()) for name, formats in model.logger.name_to_excluded.items()}],
            "abandoned": list(abandoned),
            "callbacks": list(of_callbacks),
            "log_files": _sizes(Path(log_folder)) if log_folder else {},
            "own_log": _lengths(model.logger) if model._custom_logger and log_folder else None,
            "files": _sizes(self.folder),
        }  # fmt: skip
        archive = model._to_archive()
        add_member(archive, TRAINING, state)
        write_model(self.folder / f"{self.name_prefix}_{model.num_timesteps}_steps.zip", archive)

    def _restore(self, model: Model, state: dict[str, Any]) -> None:
        self._seed, self._number = state["seed"], state["number"]
        self._next = state["save"][1]
        _, _, model._n_rollouts, model._next_log = state["learn"]
        logger = model.logger
        values, counts, excluded = state["logger"]
        logger.name_to_value.update(values)
        logger.name_to_count.update(counts)
        logger.name_to_excluded.update({name: tuple(formats) for name, formats in excluded.items()})
        callbacks = _with_state(model._callback)
        of_callbacks = state["callbacks"][distributed.rank()]
        if len(callbacks) != len(of_callbacks):
            raise ValueError(
                f"The checkpoint was written with {len(of_callbacks)} callbacks, and there are {len(callbacks)}: resume with "
                "the callbacks of the run that wrote it."
            )
        for callback, of_callback in zip(callbacks, of_callbacks, strict=True):
            _set_state(callback, of_callback)
        normalize = model.get_vec_normalize_env()
        if normalize is not None and state["normalizer"] is not None:
            # The resets since then have been counted
            set_statistics(normalize, state["normalizer"])
        if model._moments is not None:
            model._moments.begin()


def resume(
    cls: type[SelfModel],
    path: str | Path,
    env: GymEnv,
    callback: MaybeCallback = None,
    progress_bar: bool = False,
    trusted: bool = True,
    log_folder: str | Path | None = None,
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
    :param log_folder: where the training's own logger, of SB3's ``configure``, writes to, if it had one: it goes on there
    :param kwargs: what else ``load`` takes
    :return: the trained model
    :raises ValueError: if there is no checkpoint; if the callbacks or the number of processes are others; for a
        ``log_folder`` where the training had no logger of its own
    """
    file, state = find_checkpoint(path)
    if len(state["callbacks"]) != distributed.size():
        raise ValueError(
            f"{file} was written by {len(state['callbacks'])} processes, and this is a training of {distributed.size()}: "
            "start as many, or load it as a model and learn on."
        )
    model = cls.load(file, env=env, trusted=trusted, **kwargs)
    checkpoints = CheckpointCallback(state["save"][0], file.parent, state["save"][2])
    checkpoints._resumed = state
    log_interval, tb_log_name, *_ = state["learn"]
    if not trusted and Path(str(tb_log_name)).name != tb_log_name:
        raise NotTrustedError(f"{file} logs to {str(tb_log_name)[:100]!r}, a path")
    if distributed.rank() == 0:
        _cut_logs_back(model, file.parent, state)
        if log_folder is not None:
            model.set_logger(_reopen(Path(log_folder), state))
    others = callback if isinstance(callback, list) else [] if callback is None else [callback]
    return model.learn(
        state["total_timesteps"] - model.num_timesteps,
        callback=[checkpoints, *others],  # type: ignore[list-item]
        log_interval=log_interval,
        tb_log_name=tb_log_name,
        reset_num_timesteps=False,
        progress_bar=progress_bar,
    )


def _cut_logs_back(model: Model, folder: Path, state: dict[str, Any]) -> None:
    """Take back what was logged after the checkpoint."""
    if model.tensorboard_log is not None:
        name = Path(state["learn"][1]).name
        log = Path(model.tensorboard_log) / f"{name}_{get_latest_run_id(model.tensorboard_log, name)}"
        if _sizes(log).keys() & state["log_files"].keys():  # it is this training's
            _cut_back(log, state["log_files"])
    _cut_back(folder, state["files"])


_FORMATS = {CSVOutputFormat: "csv", JSONOutputFormat: "json", TensorBoardOutputFormat: "tensorboard"}
_LOGS = {"csv": "progress.csv", "json": "progress.json", "log": "log.txt"}


def _lengths(logger: Logger) -> list[tuple[str, int]]:
    """The formats of a logger, and how many lines the file of each has."""
    formats = [_FORMATS.get(type(x), "log" if getattr(x, "own_file", False) else "stdout") for x in logger.output_formats]
    folder = Path(logger.get_dir() or "")
    return [(kind, len(_read_lines(folder / _LOGS[kind])) if kind in _LOGS else 0) for kind in formats]


def _reopen(folder: Path, state: dict[str, Any]) -> Logger:
    """A logger of the same formats, whose files have what they had at the checkpoint."""
    if state["own_log"] is None:
        raise ValueError("log_folder: the training had no logger of its own, whose files could go on.")
    _cut_back(folder, state["log_files"])
    lines = {kind: _read_lines(folder / _LOGS[kind])[:n] for kind, n in state["own_log"] if kind in _LOGS}
    logger = configure(str(folder), [kind for kind, _ in state["own_log"]])
    for (kind, _), output in zip(state["own_log"], logger.output_formats, strict=True):
        if kind in lines:
            output.file.writelines(lines[kind])  # type: ignore[attr-defined]
            if isinstance(output, CSVOutputFormat):
                # Columns that came later are left, empty
                output.keys = lines[kind][0].rstrip("\n").split(",") if lines[kind] else []
    return logger


def _read_lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []


def find_checkpoint(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of a folder that is whole, and what a training goes on with.

    :param path: folder, or one checkpoint
    :return: the file, and the state of the training
    :raises ValueError: if there is none
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.glob("*_steps.zip"), key=steps_of, reverse=True)
    for file in files:
        try:
            state = read_member(file, TRAINING)
            if state is not None and _is_complete(state):
                return file, {**state, "normalizer": read_member(file, NORMALIZER)}
        except ValueError:
            continue  # not whole
    cause = "train with a CheckpointCallback, or sb3-pg train --save-freq" if path.exists() else "there is no such folder"
    raise ValueError(f"{path} has no checkpoint to go on from: {cause}.")


def _is_complete(state: dict[str, Any]) -> bool:
    has_parts = all(isinstance(state.get(name), kind) for name, (kind, _) in _PARTS.items())
    return has_parts and all(n is None or len(state[name]) == n for name, (_, n) in _PARTS.items())


def steps_of(file: Path) -> int:
    """Environment steps that a checkpoint was written at, by its name.

    :param file: the checkpoint, ``rl_model_<steps>_steps.zip``
    :return: the steps; -1 if the name does not say
    """
    number = re.search(r"_(\d+)_steps\.zip$", file.name)
    return int(number[1]) if number else -1


def _derive(seed: int, number: int, rank: int) -> list[int]:
    """Seeds of a checkpoint: of generators, environments and evaluations."""
    return [int(x) % 2**30 for x in np.random.SeedSequence([seed, number, rank]).generate_state(3)]


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
    for pattern in _GROWING:
        for file in folder.glob(pattern):
            if file.name not in sizes:
                if ".tfevents." in file.name:
                    file.unlink()
            elif file.stat().st_size > sizes[file.name]:
                os.truncate(file, sizes[file.name])
