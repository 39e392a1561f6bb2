"""What a file from a stranger may hold, and how each kind is made: by functions of this file, of parts that they check."""

import math
import re
import sys
from collections import OrderedDict, deque
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize


class SimpleLinearSchedule:
    """rl-zoo3's ``lin_…``, of the same values: importing rl-zoo3 would replace gymnasium's ``TimeLimit``."""

    def __init__(self, initial_value: float):
        self.initial_value = initial_value

    def __call__(self, progress_remaining: float) -> float:
        """The initial value, times what remains of the training."""
        return progress_remaining * self.initial_value


# Instances, with the attributes that may be set and their types: all that these classes have

_None = type(None)
_NUMBER = (int, float, np.integer, np.floating)
_SCHEDULE = (FloatSchedule, ConstantSchedule, LinearSchedule, SimpleLinearSchedule)
_SPACE: dict[str, Any] = {"dtype": (np.dtype, _None), "_shape": (tuple, _None), "_np_random": (np.random.Generator, _None)}
STATES: dict[type, dict[str, Any]] = {
    spaces.Box: {**_SPACE, **dict.fromkeys(("low", "high", "bounded_below", "bounded_above"), np.ndarray),
                 **dict.fromkeys(("low_repr", "high_repr"), (str, _None))},
    spaces.Discrete: {**_SPACE, "n": (int, np.integer), "start": (int, np.integer)},
    spaces.MultiDiscrete: {**_SPACE, "nvec": np.ndarray, "start": np.ndarray},
    spaces.MultiBinary: {**_SPACE, "n": (int, np.integer, tuple, list, np.ndarray)},
    spaces.Dict: {**_SPACE, "spaces": dict, "sort_keys": bool},
    FloatSchedule: {"value_schedule": _SCHEDULE},
    ConstantSchedule: {"val": _NUMBER},
    LinearSchedule: dict.fromkeys(("start", "end", "end_fraction"), _NUMBER),
    SimpleLinearSchedule: {"initial_value": _NUMBER},
    RunningMeanStd: {"mean": (np.ndarray, np.floating), "var": (np.ndarray, np.floating), "count": _NUMBER},
    VecNormalize: {
        **dict.fromkeys(("observation_space", "action_space"), spaces.Space), "num_envs": int, "render_mode": (str, _None),
        "obs_rms": (RunningMeanStd, dict), "ret_rms": RunningMeanStd, "norm_obs_keys": (list, _None), "old_reward": np.ndarray,
        "old_obs": (np.ndarray, dict), "obs_spaces": dict, "metadata": (dict, _None),
        **dict.fromkeys(("training", "norm_obs", "norm_reward"), (bool, np.bool_)),
        **dict.fromkeys(("clip_obs", "clip_reward", "gamma", "epsilon"), _NUMBER),
        **dict.fromkeys(("reset_infos", "_seeds", "_options"), list),
    },
}  # fmt: skip
INSTANCES: dict[str, Any] = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in STATES}
INSTANCES["rl_zoo3.utils.SimpleLinearSchedule"] = SimpleLinearSchedule


def set_state(target: Any, state: Any) -> None:
    """Set what an object holds.

    :raises ValueError: if it is not the state of such an object
    """
    if type(target) in STATES:
        types = STATES[type(target)]
        for key in state.keys() if isinstance(state, dict) else [state]:
            if not (isinstance(key, str) and key in types and isinstance(state[key], types[key])):
                raise ValueError(f"a {type(target).__name__} has no such {str(key)[:40]!r}")
        if isinstance(target, spaces.Space | VecNormalize):  # which mend the states of earlier versions
            target.__setstate__({key: state[key] for key in state if key not in ("low_repr", "high_repr")})
        else:
            vars(target).update(state)
    elif isinstance(target, np.dtype) and state in ((3, "<", *_NO_FIELDS), (3, "|", *_NO_FIELDS)):
        pass  # it is made so
    elif isinstance(target, np.ndarray):
        _set_array(target, state)
    elif isinstance(target, np.random.PCG64):
        _set_generator(target, state)
    elif not isinstance(target, Unused | OrderedDict):  # beside the weights: versions of the modules
        raise ValueError(f"a {type(target).__name__} has no state")


# What is made of arguments

_NO_FIELDS = (None, None, None, -1, -1, 0)


def _dtype(kind: str, align: bool, copy: bool) -> np.dtype:
    if not re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", kind) or (align, copy) != (False, True):
        raise ValueError("no type of numbers")
    return np.dtype(f"<{kind}")


def _array(data: bytes | bytearray, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    is_shape = type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape)
    if not (is_shape and isinstance(data, bytes | bytearray) and isinstance(dtype, np.dtype) and order in ("C", "F")):
        raise ValueError("no array")
    if len(shape) > 64 or max(shape, default=0) > 2**40 or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError("an array of another size")
    return np.ndarray(shape, dtype, bytearray(data), order=order)  # type: ignore[arg-type]


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    return _array(data, dtype, (), "C")[()]


def _empty_array(cls: Any, shape: tuple[int, ...], kind: bytes) -> np.ndarray:
    """An array whose contents follow, in pickles of protocols before the fifth."""
    if not (isinstance(cls, Name) and cls.path == "numpy.ndarray" and shape == (0,) and kind == b"b"):
        raise ValueError("no array")
    return np.empty(0, dtype=np.int8)


def _set_array(target: np.ndarray, state: Any) -> None:
    version, shape, dtype, is_fortran, data = state
    if version != 1 or not (target.shape == (0,) and target.dtype == np.int8 and isinstance(data, bytes)):
        raise ValueError("no array")
    _array(data, dtype, shape, "F" if is_fortran is True else "C")
    target.__setstate__((1, shape, dtype, is_fortran is True, data))  # type: ignore[arg-type]


def _bit_generator(kind: Any) -> np.random.PCG64:
    if not (kind == "PCG64" or (isinstance(kind, Name) and kind.path == "numpy.random._pcg64.PCG64")):
        raise ValueError("no generator but PCG64, which is gymnasium's")
    return np.random.PCG64(0)


def _set_generator(target: np.random.PCG64, state: Any) -> None:
    values = state[0] if isinstance(state, tuple) else state  # beside them: the seeds of children
    inner = values["state"]
    if not all(type(n) is int and 0 <= n < 2**128 for n in (inner["state"], inner["inc"])):
        raise ValueError("no state of PCG64")
    if values["has_uint32"] not in (0, 1) or not (type(values["uinteger"]) is int and 0 <= values["uinteger"] < 2**32):
        raise ValueError("no state of PCG64")
    target.state = {
        "bit_generator": "PCG64",
        "state": {"state": inner["state"], "inc": inner["inc"]},
        "has_uint32": int(values["has_uint32"]),
        "uinteger": values["uinteger"],
    }


def _generator(bit_generator: Any, constructor: Any = None) -> np.random.Generator:
    made = bit_generator if isinstance(bit_generator, np.random.PCG64) else _bit_generator(bit_generator)
    return np.random.Generator(made)


def _deque(items: tuple[()], maxlen: int | None = None) -> "deque[Any]":
    if items != () or not (maxlen is None or type(maxlen) is int):
        raise ValueError("no deque that is filled later")
    return deque(maxlen=maxlen)


def _frequency_unit(value: str) -> TrainFrequencyUnit:
    if type(value) is not str:
        raise ValueError("no TrainFrequencyUnit")
    return TrainFrequencyUnit(value)


def _train_freq(frequency: int, unit: TrainFrequencyUnit) -> TrainFreq:
    if not (type(frequency) is int and isinstance(unit, TrainFrequencyUnit)):
        raise ValueError("no TrainFreq")
    return TrainFreq(frequency, unit)


# Tensors

_STORAGES = {
    **{"DoubleStorage": th.float64, "FloatStorage": th.float32, "HalfStorage": th.float16, "BFloat16Storage": th.bfloat16},
    **{"LongStorage": th.int64, "IntStorage": th.int32, "ShortStorage": th.int16, "CharStorage": th.int8},
    **{"ByteStorage": th.uint8, "BoolStorage": th.bool},
}


def read_storage(read: Callable[[str], bytes], persistent_id: Any) -> "Storage":
    """The numbers of which tensors are views.

    :param read: gives the bytes of a storage, by its key
    :param persistent_id: what ``torch.save`` has written in its place; the device does not matter
    :raises ValueError: if it is something else
    """
    kind, name, key, _, n = persistent_id
    if not (kind == "storage" and isinstance(name, Name) and isinstance(key, str)):
        raise ValueError("no storage")
    dtype, data = _STORAGES[name.path.removeprefix("torch.")], read(key)
    if type(n) is not int or n * dtype.itemsize != len(data):
        raise ValueError("a storage of another size")
    return Storage(th.frombuffer(bytearray(data), dtype=dtype) if n else th.empty(0, dtype=dtype))


def _tensor(storage: "Storage", offset: int, size: Any, stride: Any, requires_grad: bool, hooks: Any) -> th.Tensor:
    if not (isinstance(storage, Storage) and type(size) is tuple and type(stride) is tuple and len(size) == len(stride) < 10):
        raise ValueError("no tensor")
    if not all(type(n) is int and 0 <= n < 2**63 for n in (offset, *size, *stride)):
        raise ValueError("no tensor")
    if math.prod(size) > storage.numbers.numel():
        raise ValueError("a tensor that is larger than its numbers")
    return storage.numbers.as_strided(size, stride, offset)


class Storage:
    """Numbers of which tensors are views: ``numbers`` is (n,)."""

    def __init__(self, numbers: th.Tensor):
        self.numbers = numbers


MAKERS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _dtype,
    "numpy._core.numeric._frombuffer": _array,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.multiarray._reconstruct": _empty_array,
    "numpy.random._pickle.__bit_generator_ctor": _bit_generator,
    "numpy.random._pickle.__generator_ctor": _generator,
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence": lambda *_: Unused(),
    "torch._utils._rebuild_tensor_v2": _tensor,
    "collections.deque": _deque,
    "collections.OrderedDict": lambda: OrderedDict(),
    "stable_baselines3.common.type_aliases.TrainFreq": _train_freq,
    "stable_baselines3.common.type_aliases.TrainFrequencyUnit": _frequency_unit,
}


class Name:
    """What a stream has named, and nothing more."""

    def __init__(self, path: str):
        self.path = path


class Unused:
    """Stands for what nobody needs: the seeds from which a generator's children would come."""


#: Names that are arguments of what is made
ARGUMENTS = (
    *("numpy.ndarray", "numpy.random._pcg64.PCG64", "numpy.random.bit_generator.SeedSequence"),
    *(f"torch.{storage}" for storage in _STORAGES),
)


# Classes that may be mentioned: those of a module that derive from a base. They are values, and nobody calls them here

_POLICIES = (
    *("stable_baselines3.common.policies", "sb3_contrib.common.recurrent.policies", "sb3_contrib.common.maskable.policies"),
    *(f"stable_baselines3.{algo}.policies" for algo in ("dqn", "sac", "td3")),
    *(f"sb3_contrib.{algo}.policies" for algo in ("ars", "crossq", "qrdqn", "tqc")),
    "sb3_pg.policies.masked_recurrent",
)
_BUFFERS = (
    *("stable_baselines3.common.buffers", "stable_baselines3.her.her_replay_buffer"),
    *("sb3_contrib.common.recurrent.buffers", "sb3_contrib.common.maskable.buffers"),
    *("sb3_pg.rollouts.buffers", "sb3_pg.buffers"),
)
_OPTIMIZERS = (
    *("adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "lbfgs"),
    *("nadam", "radam", "rmsprop", "rprop", "sgd", "sparse_adam"),
)
_BASES: dict[str, type] = {
    **dict.fromkeys(_POLICIES, BasePolicy),
    **dict.fromkeys(_BUFFERS, BaseBuffer),
    **dict.fromkeys(
        (*(f"torch.optim.{name}" for name in _OPTIMIZERS), "stable_baselines3.common.sb2_compat.rmsprop_tf_like"),
        th.optim.Optimizer,
    ),
    "stable_baselines3.common.torch_layers": BaseFeaturesExtractor,
    "torch.nn.modules.activation": th.nn.Module,
}


def find_class(module: str, name: str) -> type | None:
    """A class that may be mentioned, or None.

    :param module: in which it stands
    :param name: its own; names with dots, which would reach into other objects, are no class's
    """
    base = _BASES.get(module)
    if base is None or "." in name:
        return None
    found = getattr(sys.modules.get(module) or import_module(module), name, None)
    return found if isinstance(found, type) and issubclass(found, base) else None
