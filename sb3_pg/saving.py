"""Files that are whole or not there, and what a saved model holds beside what SB3 saves."""

import io
import os
import zipfile
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_pg import loading

#: Members of the archive of a model: statistics of ``VecNormalize``, and what a training goes on with
NORMALIZER, TRAINING = "vec_normalize.pt", "training.pt"
# Bytes of the largest of them that is read
_MAX_MEMBER = 2**26
_SETTINGS = ("training", "norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")


def write_atomically(path: str | Path, contents: bytes) -> None:
    """Write a file so that at any moment the old one or the new one is there, and whole.

    :param path: the file; its folder is made if it is not there
    :param contents: all of it
    :raises OSError: if it cannot be written; the old file is then left as it was
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every system lets a folder be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_model(path: str | Path | io.BufferedIOBase, archive: io.BytesIO) -> None:
    """Write a model, to its end or not at all.

    :param path: file, which gets ``.zip`` if its name has no suffix, as SB3 does it; or a file-like object
    :param archive: the model
    """
    if isinstance(path, str | Path):
        write_atomically(path if Path(path).suffix else f"{path}.zip", archive.getvalue())
    else:
        path.write(archive.getvalue())


def add_member(archive: io.BytesIO, name: str, state: dict[str, Any]) -> None:
    """Put plain data and arrays into an archive.

    :param archive: a zip file in memory
    :param name: of the new member
    :param state: dictionaries, lists, numbers, texts and NumPy's arrays
    """
    with zipfile.ZipFile(archive, "a") as members, members.open(name, "w", force_zip64=True) as member:
        th.save(_to_torch(state), member)


def read_member(path: str | Path | io.BufferedIOBase, name: str) -> dict[str, Any] | None:
    """What :func:`add_member` has put into a file. Nothing of it is run.

    :param path: file, with or without ``.zip``, or a file-like object
    :param name: of the member
    :return: None if the file has no such member
    :raises ValueError: if it is damaged or larger than 64 MiB
    """
    is_path = isinstance(path, str | Path)
    if not is_path:
        path.seek(0)  # type: ignore[union-attr]
    with open_path(path, "r", suffix="zip") if is_path else nullcontext(path) as file:  # type: ignore[arg-type]
        try:
            member = loading.read_member(file, name, _MAX_MEMBER)  # type: ignore[arg-type]
            if member is None:
                return None
            state = loading.read_weights(name, member)
        except Exception as error:
            raise ValueError(f"{name} of {path} cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{name} of {path} holds no state.")
    plain: dict[str, Any] = _to_numpy(state)
    return plain


def is_plain(value: Any) -> bool:
    """Whether a value is data that :func:`add_member` takes."""
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    return value is None or isinstance(value, bool | int | float | str | np.bool_ | np.integer | np.floating)


def _to_torch(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_torch(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_torch(item) for item in value]
    if isinstance(value, np.ndarray):
        return th.from_numpy(np.array(value))
    return value.item() if isinstance(value, np.generic) else value


def _to_numpy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_numpy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_numpy(item) for item in value]
    return value.numpy() if isinstance(value, th.Tensor) else value


# Statistics of VecNormalize


def moments_of_obs(env: VecNormalize) -> dict[str, RunningMeanStd]:
    """Moments of the observations by key, those of a single one under ``""``; empty if they are not normalised."""
    rms: Any = getattr(env, "obs_rms", {})
    return rms if isinstance(rms, dict) else {"": rms}


def normalizer_state(env: VecNormalize) -> dict[str, Any]:
    """Statistics and settings of ``VecNormalize``, as plain data."""
    state = {name: getattr(env, name) for name in _SETTINGS}
    statistics = {"ret_rms": _moments(env.ret_rms), "returns": env.returns}
    if env.norm_obs:
        statistics["obs_rms"] = {key: _moments(rms) for key, rms in moments_of_obs(env).items()}
    return {**state, **statistics}


def set_statistics(env: VecNormalize, state: dict[str, Any]) -> None:
    """Give ``VecNormalize`` the statistics of :func:`normalizer_state`; its settings stay.

    :raises ValueError: if they are those of other observations
    """
    _set_moments(env.ret_rms, state["ret_rms"])
    if np.shape(state["returns"]) == np.shape(env.returns):
        env.returns = np.array(state["returns"])
    if env.norm_obs and "obs_rms" in state:
        for key, rms in moments_of_obs(env).items():
            _set_moments(rms, state["obs_rms"][key])


def normalize_as(env: VecEnv, state: dict[str, Any]) -> VecEnv:
    """The environments, normalised with statistics of :func:`normalizer_state`, unless they have seen something themselves."""
    normalize = unwrap_vec_normalize(env)
    if normalize is None:
        env = normalize = VecNormalize(env, **{name: state[name] for name in _SETTINGS})
    if normalize.ret_rms.count < 1.0:
        set_statistics(normalize, state)
    return env


def _moments(rms: RunningMeanStd) -> dict[str, Any]:
    return {"mean": np.array(rms.mean), "var": np.array(rms.var), "count": float(rms.count)}


def _set_moments(rms: RunningMeanStd, moments: dict[str, Any]) -> None:
    if np.shape(moments["mean"]) != np.shape(rms.mean):
        raise ValueError(
            f"The statistics are of observations of shape {np.shape(moments['mean'])}, and these have {np.shape(rms.mean)}."
        )
    rms.mean, rms.var = np.array(moments["mean"]), np.array(moments["var"])
    rms.count = moments["count"]
