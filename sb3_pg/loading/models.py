"""Models from strangers: read part by part and written anew in memory, with only what was understood. SB3 loads that."""

import base64
import inspect
import io
import itertools
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import open_path, recursive_getattr
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from sb3_pg.loading.archives import read_archive, read_weights
from sb3_pg.loading.errors import NotTrustedError, fitting_together, reading
from sb3_pg.loading.unpickling import MAX_DATA, NotAllowedError, check_data, loads

#: Bytes of the largest archive that is read, packed or unpacked
MAX_ARCHIVE = 2**30
# Matrices and vectors of all networks together
_MAX_PARAMETERS = 10_000
_MEMBERS = r"vec_normalize\.pt|training\.pt|data|_stable_baselines3_version|system_info\.txt|[A-Za-z]\w*(\.[A-Za-z]\w*)*\.pth"
#: Tensors of SB3's algorithms that belong to no network
_VARIABLES = {"log_ent_coef", "ent_coef_tensor"}
# Made anew from the arguments whenever a model is set up
_DERIVED = (
    *("lr_schedule", "critic_lr_schedule", "_own_critic_lr_schedule", "ent_coef_schedule", "target_kl_schedule"),
    "exploration_schedule",
)
# A model that trains on does not write where its file says
_NOT_READ = {*_DERIVED, "tensorboard_log"}
# Classes stand where they are asked for, and nowhere else
_CLASSES: dict[str, type] = {
    "policy_class": BasePolicy,
    "features_extractor_class": BaseFeaturesExtractor,
    "activation_fn": th.nn.Module,
    "optimizer_class": th.optim.Optimizer,
    "rollout_buffer_class": BaseBuffer,
    "replay_buffer_class": BaseBuffer,
}
_NUMBER = (int, float, np.integer, np.floating, type(None))
_NUMBERS = (
    *(
        "n_envs",
        "n_steps",
        "batch_size",
        "seed",
        "verbose",
        "gamma",
        "gae_lambda",
        "vf_coef",
        "max_grad_norm",
        "sde_sample_freq",
    ),
    *("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_current_progress_remaining", "_n_updates", "_n_calls"),
    *("_episode_num", "_stats_window_size", "_next_log", "_n_rollouts", "_log_interval", "start_time"),
)
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("observation_space", "action_space"), spaces.Space),
    **dict.fromkeys(("policy_kwargs", "rollout_buffer_kwargs", "replay_buffer_kwargs"), dict),
    **dict.fromkeys(_NUMBERS, _NUMBER),
    **dict.fromkeys(("use_sde", "normalize_targets"), (bool, np.bool_)),
    "target_moments": (list, tuple),
}


def load_model(
    algorithm: type[Any], path: str | Path | io.BufferedIOBase, custom_objects: dict[str, Any] | None = None, **kwargs: Any
) -> Any:
    """A model of one of SB3's algorithms, of a file that is not trusted.

    :param algorithm: class that saved it, such as ``A2C``
    :param path: file, with or without ``.zip``, or a file-like object
    :param custom_objects: what to take in the place of saved objects, by name
    :param kwargs: what else ``load`` of the class takes
    :return: the model
    :raises NotTrustedError: naming what the file asks for and does not get
    :raises ValueError: if it is no model or damaged
    """
    archive, objects = read_model(algorithm, path, custom_objects)
    device = kwargs.pop("device", "auto")
    return set_up(path, archive, partial(algorithm.load, archive, custom_objects=objects, **kwargs), device)


def set_up(path: str | Path | io.BufferedIOBase, archive: io.BytesIO, load: Callable[..., Any], device: Any) -> Any:
    """Load what :func:`read_model` has written, and see whether it fits together.

    Networks of any size can be described in a few words. They are made without memory first, and for good if the weights fit.

    :param path: of the file that was read, for errors
    :param archive: what was written
    :param load: loads the model, on the ``device`` that it is given
    :param device: where the model shall be
    :return: the model
    :raises ValueError: saying what does not fit
    """
    with fitting_together(path):
        with th.device("meta"), _WithoutMemory(), _few_parameters(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again
            load(device="meta", print_system_info=False)
        archive.seek(0)
        model = load(device=device)
        for name in model._get_torch_save_params()[0]:
            part = recursive_getattr(model, name)
            if isinstance(part, th.optim.Optimizer):
                _check_optimizer(name, part)
        return model


class _WithoutMemory(TorchFunctionMode):
    """What SB3 does with a tensor that it makes: to move it to the CPU, and to ask whether its numbers are valid."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (th.Tensor.to, th.Tensor.__bool__) and args[0].is_meta:
            return args[0] if function is th.Tensor.to else True
        return function(*args, **(kwargs or {}))


@contextmanager
def _few_parameters() -> Iterator[None]:
    """Refuse to make modules without end."""
    counter = itertools.count(1)

    def count(module: th.nn.Module, name: str, parameter: Any) -> None:
        if next(counter) > _MAX_PARAMETERS:
            raise ValueError(f"its networks have more than {_MAX_PARAMETERS} parameters")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _check_optimizer(name: str, optimizer: th.optim.Optimizer) -> None:
    """Torch takes any state, and fails at the first step."""
    for group in optimizer.param_groups:
        if any(isinstance(value, str | list | dict) for key, value in group.items() if key != "params"):
            raise ValueError(f"{name} has settings that are no numbers")
    for parameter, state in optimizer.state.items():
        for value in state.values():
            if isinstance(value, th.Tensor) and value.numel() != 1 and value.shape != parameter.shape:
                raise ValueError(f"{name} was one of other parameters")


def read_model(
    algorithm: type[BaseAlgorithm], path: str | Path | io.BufferedIOBase, custom_objects: dict[str, Any] | None = None
) -> tuple[io.BytesIO, dict[str, Any]]:
    """Read a model, and write it anew with only what was understood.

    :param algorithm: class whose ``load`` will get it
    :param path: file, with or without ``.zip``, or a file-like object
    :param custom_objects: what to take in the place of saved objects, by name: these are not read
    :return: an archive and custom objects, of which ``load`` of the class makes the model
    :raises NotTrustedError: naming what the file asks for and does not get
    :raises ValueError: if it is no model, damaged, or larger than ``MAX_ARCHIVE``
    """
    is_path = isinstance(path, str | Path)
    with open_path(path, "r", suffix="zip") if is_path else nullcontext(path) as file, reading(path):
        members = read_archive(file, _MEMBERS, MAX_ARCHIVE)  # type: ignore[arg-type]
        weights = {name: read_weights(name, members[name]) for name in members if name.endswith(".pth")}
        _check_variables(weights)
        apart = {name.split(".")[0] for name in weights}.union(object.__new__(algorithm)._excluded_save_params())
        objects = _read_data(algorithm, members, apart, custom_objects or {})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as rewritten:
        rewritten.writestr("data", json.dumps(dict.fromkeys(objects)))
        for name, state in weights.items():
            with rewritten.open(name, "w", force_zip64=True) as member:
                th.save(state, member)
        system = members.get("system_info.txt", b"")[:10_000].decode("ascii", "replace")
        rewritten.writestr("system_info.txt", re.sub(r"[^\x20-\x7e\n]", "?", system))
    archive.seek(0)
    return archive, objects


def _check_variables(weights: dict[str, Any]) -> None:
    # SB3 sets an attribute of whatever these names lead to
    for file in ("pytorch_variables.pth", "tensors.pth"):
        variables = weights.get(file)
        if not (variables is None or (isinstance(variables, dict) and variables.keys() <= _VARIABLES)):
            raise ValueError(f"{file} holds variables that are none of SB3's")


def _read_data(
    algorithm: type[BaseAlgorithm], members: dict[str, bytes], apart: set[str], custom_objects: dict[str, Any]
) -> dict[str, Any]:
    """Attributes of the model, by name."""
    if "data" not in members:
        raise ValueError("it has no data, as a model has")
    if len(members["data"]) > MAX_DATA:
        raise ValueError(f"its data is larger than {MAX_DATA // 2**20} MiB")
    saved = json.loads(members["data"])
    if not isinstance(saved, dict):
        raise ValueError("its data is no dictionary")
    objects: dict[str, Any] = {}
    for name, item in saved.items():
        if name in custom_objects:
            objects[name] = custom_objects[name]
        elif name not in _NOT_READ:
            _check_name(algorithm, name, apart)
            objects[name] = _read_object(name, item)
    missing = {"policy_class", "observation_space", "action_space", "policy_kwargs", "verbose"} - objects.keys()
    if missing:
        raise ValueError(f"its data lacks {min(missing)}")
    return objects


def _check_name(algorithm: type[BaseAlgorithm], name: str, apart: set[str]) -> None:
    """Refuse to set what is no setting: methods, properties, what is saved apart or not at all."""
    of_class = inspect.getattr_static(algorithm, name, None)
    is_setting = name.isidentifier() and not name.startswith("__") and name not in apart
    if not is_setting or not (of_class is None or isinstance(of_class, bool | int | float | str | tuple)):
        raise ValueError(f"its data sets {name[:80]!r}, which is no setting of {algorithm.__name__}")


def _read_object(name: str, item: Any) -> Any:
    is_pickle = isinstance(item, dict) and ":serialized:" in item
    try:
        value = loads(base64.b64decode(item[":serialized:"], validate=True)) if is_pickle else item
    except NotAllowedError as error:
        raise NotTrustedError(
            f"{name} asks for {error.path}, which files that are not trusted do not get",
            f"custom_objects={{{name!r}: …}} to put something in its place, or ",
        ) from error
    except Exception as error:
        raise ValueError(f"its {name} is damaged: {error}") from error
    check_data(value)
    if name in _TYPES and not isinstance(value, _TYPES[name]):
        raise ValueError(f"its {name} is a {type(value).__name__}")
    if name == "policy_class" and not isinstance(value, type):
        raise ValueError("its policy_class is no class")
    _check_classes(name, value)
    return value


def _check_classes(name: Any, value: Any) -> None:
    base = _CLASSES.get(name) if isinstance(name, str) else None
    if isinstance(value, type):
        if base is None or not issubclass(value, base):
            raise ValueError(f"its {name!r} is {value.__name__}, which does not belong there")
    elif base is not None and value is not None:
        raise ValueError(f"its {name} is no class")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_classes(key, item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_classes(None, item)
