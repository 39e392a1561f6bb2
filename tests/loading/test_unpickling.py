"""The interpreter of pickles: what it reads, what it refuses, and that it calls nothing."""

import pickle
import random
import warnings
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hostile import MARKER, Call, fuzz, instructions, name, payloads, text, watched
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pg.loading.kinds import SimpleLinearSchedule
from sb3_pg.loading.unpickling import MAX_ARRAYS, NotAllowedError, loads

BOX = spaces.Box(-1.0, np.array([1.0, np.inf], dtype=np.float32), seed=3)
BOX.sample()
HONEST: list[Any] = [
    None,
    {"a": [1, -2, 2**40, 2**70, 0.5, "é", b"bytes", bytearray(b"more")], (True, False): {1, 2}, "f": frozenset({3})},
    deque([{"r": 1.0, "l": 200, "t": 0.1}], maxlen=100),
    OrderedDict(b=1, a=2),
    np.arange(6, dtype=np.int8).reshape(2, 3),
    np.asfortranarray(np.random.default_rng(0).normal(size=(3, 4))),
    np.zeros((0, 3), dtype=np.float32),
    np.array(2.0 + 1j),
    np.array([True, False]),
    [np.float64(1.5), np.int64(3), np.bool_(True), np.float32(2)],
    np.dtype(np.uint8),
    FloatSchedule(0.1),
    FloatSchedule(LinearSchedule(1.0, 0, 1)),
    ConstantSchedule(3),
    SimpleLinearSchedule(0.3),
    {"policy": ActorCriticPolicy, "cnn": NatureCNN, "of torch": [th.nn.Tanh, th.optim.Adam]},
    BOX,
    spaces.Discrete(4, start=2),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
    spaces.Dict(a=BOX, b=spaces.Discrete(2)),
]


def equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a, b))
    if isinstance(a, spaces.Space):
        return a == b and equal(a._np_random, b._np_random)
    if isinstance(a, np.random.Generator):
        return a.bit_generator.state == b.bit_generator.state
    if type(a) in (FloatSchedule, LinearSchedule, ConstantSchedule, SimpleLinearSchedule):
        return all(a(p) == b(p) for p in (1.0, 0.3, 0.0))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | deque):
        return len(a) == len(b) and all(map(equal, a, b)) and getattr(a, "maxlen", 0) == getattr(b, "maxlen", 0)
    return bool(a == b)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("value", HONEST, ids=lambda value: type(value).__name__)
def test_honest_data_are_read_as_pickle_reads_them(value: Any, protocol: int) -> None:
    if protocol < 5 and value is HONEST[1]:
        value = {"b": [1, 2**70, "é", b"bytes"]}  # sets and bytearrays are calls in the third and fourth
    pickled = cloudpickle.dumps(value, protocol)
    read = loads(pickled)
    assert equal(read, pickle.loads(pickled)) and equal(read, value)


def test_generators_go_on_alike() -> None:
    box = loads(cloudpickle.dumps(BOX))
    np.testing.assert_array_equal(box.sample(), pickle.loads(pickle.dumps(BOX)).sample())


def test_arrays_may_be_written_to() -> None:
    array = loads(cloudpickle.dumps(np.zeros(3)))
    array += 1.0
    assert array.tolist() == [1.0] * 3


def test_a_normaliser() -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=1))
    env.reset()
    read = loads(pickle.dumps(env))
    np.testing.assert_array_equal(read.obs_rms.mean, env.obs_rms.mean)
    assert read.venv is None and read.clip_obs == env.clip_obs


def test_what_is_refused_is_named() -> None:
    with pytest.raises(NotAllowedError, match=r"it names 'posix\.system'"):
        loads(pickle.dumps(Call(__import__("os").system, "true")))
    with pytest.raises(NotAllowedError, match=r"it names 'os\\x1b\[2J\\n\.system'"):  # which would clear a terminal
        loads(b"\x80\x04" + name("os\x1b[2J\n", "system") + b".")
    with pytest.raises(NotAllowedError, match=r"cloudpickle\.cloudpickle\._make_function"):
        loads(cloudpickle.dumps(lambda progress: 0.1))


def test_the_payloads_are_real(tmp_path: Path) -> None:
    for kind, payload in payloads(tmp_path).items():
        with watched() as events, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file that is not closed
            pickle.loads(payload)
        assert (tmp_path / MARKER).exists() and events, kind
        (tmp_path / MARKER).unlink()


@pytest.mark.parametrize("kind", payloads(Path()))
def test_no_payload_runs(kind: str, tmp_path: Path) -> None:
    payload = payloads(tmp_path)[kind]
    with watched() as events, pytest.raises(ValueError, match=r"it names '|the pickle is damaged or made up"):
        loads(payload)
    assert events == [] and not (tmp_path / MARKER).exists()


REACHING = [
    ("numpy", "dtype.__class__"),
    ("numpy.core.multiarray", "sys.modules"),
    ("torch.optim.adam", "Optimizer.__init__.__globals__"),
    ("torch.optim.adam", "cast"),
    ("stable_baselines3.common.policies", "warnings.sys.modules"),
    ("stable_baselines3.common.policies", "collections"),
    ("stable_baselines3.common.policies", "ABC"),
    ("stable_baselines3.common.save_util", "cloudpickle.loads"),
    ("stable_baselines3.common.torch_layers", "th.hub.load"),
    ("torch.nn.modules.activation", "warnings"),
    ("gymnasium.spaces.box", "Box.sample"),
    ("gym.spaces.box", "Box.__init__"),
    ("collections", "deque.__new__"),
    ("sb3_pg.buffers", "EpisodeRolloutBuffer.__init__"),
    ("rl_zoo3.utils", "importlib.import_module"),
    ("operator", "attrgetter"),
    ("copyreg", "_reconstructor"),
    ("copyreg", "__newobj__"),
    ("torch.storage", "_load_from_bytes"),
    ("numpy.random._pickle", "BitGenerators"),
    ("numpy.random._pickle", "__randomstate_ctor"),
    ("builtins", "type"),
    ("", ""),
    ("stable_baselines3.common.policies.", "ActorCriticPolicy"),
    ("stable_baselines3.common.vec_env.vec_normalize", "pickle.loads"),
]


@pytest.mark.parametrize("module, qualified", REACHING)
def test_names_do_not_reach_further(module: str, qualified: str) -> None:
    with watched() as events, pytest.raises(NotAllowedError):
        loads(b"\x80\x04" + name(module, qualified) + b".")
    assert events == []


INT, DTYPE = b"K\x01", name("numpy", "dtype") + text("f8") + b"\x89\x88\x87R"
ARRAY = name("numpy._core.numeric", "_frombuffer")
TANH, BOX_STATE = name("torch.nn.modules.activation", "Tanh"), name("gymnasium.spaces.box", "Box") + b")\x81}"
MANY = (ARRAY + b"(h\x00h\x01J\x00\x00\x10\x00\x85" + text("C") + b"tR") * (MAX_ARRAYS // 2**20 + 1)
MISUSED = {
    "call a class": name("torch.optim.adam", "Adam") + b")R.",
    "instance of a class": name("stable_baselines3.common.policies", "ActorCriticPolicy") + b")\x81.",
    "instance with arguments": name("gymnasium.spaces.box", "Box") + INT + b"\x85\x81.",
    "state of a class": TANH + b"}" + text("forward") + INT + b"sb.",
    "items of a class": TANH + text("forward") + INT + b"s.",
    "append to a class": TANH + INT + b"a.",
    "method in a state": BOX_STATE + text("sample") + INT + b"sb.",
    "class of a state": BOX_STATE + text("__class__") + INT + b"sb.",
    "wrong type in a state": name("gymnasium.spaces.dict", "Dict") + b")\x81}" + text("_shape") + text("x") + b"sb.",
    "class in a state": BOX_STATE + text("dtype") + TANH + b"sb.",
    "two states": name("stable_baselines3.common.utils", "ConstantSchedule") + b")\x81N}" + text("val") + INT + b"s\x86b.",
    "state of a dictionary": b"}}" + text("update") + INT + b"sb.",
    "schedule of a class": name("stable_baselines3.common.utils", "FloatSchedule") + b")\x81}" + text("value_schedule")
    + name("torch.optim.adam", "Adam") + b"sb.",
    "a name as data": name("numpy", "ndarray") + b".",
    "a maker as data": name("numpy", "dtype") + b"\x85.",
    "objects": name("numpy", "dtype") + text("O8") + b"\x89\x88\x87R.",
    "a type with fields": name("numpy", "dtype") + text("f8,i4") + b"\x89\x88\x87R.",
    "metadata of a type": DTYPE + b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00}tb.",
    "array of another size": ARRAY + b"C\x04abcd" + DTYPE + INT + b"\x85" + text("C") + b"(tR.",
    "negative shape": ARRAY + b"(C\x08abcdefgh" + DTYPE + b"J\xff\xff\xff\xff\x85" + text("C") + b"tR.",
    "another bit generator": name("numpy.random._pickle", "__bit_generator_ctor") + text("MT19937") + b"\x85R.",
    "another array class": name("numpy._core.multiarray", "_reconstruct") + name("numpy", "dtype") + b"K\x00\x85C\x01b\x87R.",
    "persistent id": text("x") + b"Q.",
    "extension": b"\x82\x01.",
    "out-of-band buffer": b"\x97.",
    "new object with keywords": name("collections", "OrderedDict") + b")}\x92.",
    "nothing": b".",
    "a mark": b"(.",
    "no end": b"N",
    "empty": b"",
    "unknown memo": b"h\x07.",
    "underflow": b"\x86.",
    "list as key": b"}]Ns.",
    "a list in itself": b"]\x94h\x00a.",
    "deep": b"]" * 200 + b"a" * 199 + b".",
    "laughs": b"(]\x94" + b"".join(b"](h%ch%ce\x94" % (i, i) for i in range(40)) + b"t.",
    "hash of tuples in tuples": b"}" + b")\x94" + b"".join(b"0h%ch%c\x86\x94" % (i, i) for i in range(60)) + b"Ns.",
    "element of tuples in tuples": b"(" + b")\x94" + b"".join(b"0h%ch%c\x86\x94" % (i, i) for i in range(60)) + b"\x91.",
    "unit of tuples in tuples": name("stable_baselines3.common.type_aliases", "TrainFrequencyUnit")
    + b")\x94" + b"".join(b"0h%ch%c\x86\x94" % (i, i) for i in range(60)) + b"\x85R.",
    "a tensor": b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x01tQ.",
    "a number of megabytes": b"\x8b\x00\x00\x10\x00" + bytes(2**20) + b".",
    "shape of many dimensions": ARRAY + b"(C\x00" + DTYPE + b"(" + b"K\x00" * 100 + b"t" + text("C") + b"tR.",
    "fifty million": b"C\x01a\x94" + b"0h\x00" * 2_100_000 + b".",
    "one array many times": b"\x8e" + (2**20).to_bytes(8, "little") + bytes(2**20) + b"\x940"
    + name("numpy", "dtype") + text("b1")
    + b"\x89\x88\x87R\x940](" + MANY + b"e.",
}  # fmt: skip


@pytest.mark.parametrize("kind", MISUSED)
def test_allowed_names_cannot_be_misused(kind: str) -> None:
    with watched() as events, pytest.raises(ValueError, match="the pickle is damaged or made up") as refusal:
        loads(b"\x80\x05" + MISUSED[kind])
    assert events == [] and len(str(refusal.value)) < 250 and "\n" not in str(refusal.value)


def test_what_misuse_looks_like_when_it_is_right() -> None:
    """The cases above fail for their own reason: with it mended, they are read."""
    right = {
        "wrong type in a state": name("gymnasium.spaces.dict", "Dict") + b")\x81}" + text("_shape") + b")sb.",
        "array of another size": ARRAY + b"(C\x08abcdefgh" + DTYPE + INT + b"\x85" + text("C") + b"tR.",
        "metadata of a type": DTYPE + b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.",
        "state of a schedule": name("stable_baselines3.common.utils", "ConstantSchedule")
        + b")\x81}" + text("val") + INT + b"sb.",
        "deep": b"]" * 20 + b"a" * 19 + b".",
        "laughs": b"(]\x94" + b"".join(b"](h%ch%ce\x94" % (i, i) for i in range(10)) + b"t.",
    }  # fmt: skip
    for pickled in right.values():
        loads(b"\x80\x05" + pickled)


def test_fuzzed_pickles() -> None:
    """Nothing is run and nothing else than ValueError comes out, whatever is done to honest pickles."""
    rng = random.Random(0)
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=1))
    env.reset()
    honest = [cloudpickle.dumps(value) for value in HONEST] + [pickle.dumps(env), cloudpickle.dumps({"kwargs": HONEST[2:16]})]
    assert all(b"".join(instructions(pickled)) == pickled for pickled in honest)
    outcomes = []
    with watched() as events:
        for i in range(500):
            pickled = fuzz(honest[i % len(honest)], rng)
            try:
                loads(pickled)
                outcomes.append("read")
            except NotAllowedError:
                outcomes.append("named")
            except ValueError as error:
                assert str(error).startswith("the pickle is damaged or made up")
                outcomes.append("damaged")
    assert events == [] and {"read", "named", "damaged"} == set(outcomes) and outcomes.count("read") < 250
