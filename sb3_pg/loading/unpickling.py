"""Pickles from strangers: an interpreter that makes data of a few known kinds, and calls nothing that the stream names.

Python's unpickler imports, calls and sets what the stream asks for; an allow-list of names alone leaves open what they are
called with, and what is set on the results. Here a name is only a name. What is made is made by the functions of ``kinds.py``,
each of which checks its arguments; attributes are set on instances of ``STATES`` only, by name and type. Classes of policies,
optimizers and the like come out as values, and nothing of them is called.
"""

import itertools
import pickletools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import TrainFrequencyUnit

from sb3_pg.loading.kinds import ARGUMENTS, INSTANCES, MAKERS, STATES, Name, find_class, read_storage, set_state

#: Bytes of the longest pickle that is read, and of a model's data that holds such
MAX_DATA = 2**26
#: Instructions of the longest pickle that is read: a model's has some thousands
MAX_INSTRUCTIONS = 2_000_000
#: Objects, counted as often as they are referred to, and how deep they may lie in one another
MAX_OBJECTS, MAX_DEPTH = 1_000_000, 50
#: Bytes of all arrays together: one that the pickle holds once may be made of it many times
MAX_ARRAYS = 2**28


class NotAllowedError(ValueError):
    """A pickle names something that is none of the known kinds."""

    def __init__(self, module: str, name: str):
        self.path = repr(f"{module}.{name}"[:100])[1:-1]  # a stranger's, who may write to terminals
        super().__init__(f"it names '{self.path}'")


def loads(pickled: bytes, read: Callable[[str], bytes] | None = None) -> Any:
    """What a pickle holds, made without calling anything that it names.

    :param pickled: the bytes, of protocol 2 to 5
    :param read: gives the numbers of tensors by key, if there are such
    :return: plain data, NumPy's arrays, spaces, schedules, ``VecNormalize``, or classes of policies and the like
    :raises NotAllowedError: if it names something else
    :raises ValueError: if it is damaged, too long or too deep
    """
    try:
        value = _Interpreter(read).run(pickled)
        check_data(value)
    except NotAllowedError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"the pickle is damaged or made up ({type(error).__name__}: {reason!r})") from error
    return value


_PLAIN = (
    *(bool, int, float, str, bytes, bytearray, type, TrainFrequencyUnit),
    *(np.ndarray, np.generic, np.dtype, np.random.Generator, th.Tensor),
)


def check_data(value: Any) -> None:
    """Refuse what is no finished data, and data that would take forever to be looked at.

    :param value: what was read
    :raises ValueError: if so
    """
    _check(value, itertools.count(1), 0)


def _check(value: Any, counter: "itertools.count[int]", depth: int) -> None:
    if next(counter) > MAX_OBJECTS or depth > MAX_DEPTH:
        raise ValueError("too many objects, or too deep in one another")
    if isinstance(value, dict):
        parts: Iterable[Any] = itertools.chain(value.keys(), value.values())
    elif isinstance(value, list | tuple | set | frozenset | deque):
        parts = value
    elif type(value) in STATES:
        parts = vars(value).values()
    elif value is None or isinstance(value, _PLAIN):
        return
    else:
        raise ValueError(f"a {type(value).__name__} is no data")
    for part in parts:
        _check(part, counter, depth + 1)


def _as_key(value: Any) -> Any:
    """The value, if its hash is that of a few parts: of tuples within tuples it may take forever."""
    if not all(part is None or isinstance(part, _PLAIN) for part in (value if isinstance(value, tuple) else (value,))):
        raise ValueError("a key or an element that is no plain value")
    return value


class _Interpreter:
    """The stack machine that pickles are written for, without what extends it or belongs to protocols 0 and 1."""

    def __init__(self, read: Callable[[str], bytes] | None):
        self.read = read
        self.storages: dict[Any, Any] = {}
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # what lies under each mark
        self.memo: dict[int, Any] = {}
        self.array_bytes = 0

    def run(self, pickled: bytes) -> Any:
        for n, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if n == MAX_INSTRUCTIONS:
                raise ValueError("too long")
            if opcode.name == "STOP":
                (value,) = self.stack
                return value
            if opcode.name in _LITERALS:
                self.stack.append(argument)
            elif opcode.name in _INSTRUCTIONS:
                _INSTRUCTIONS[opcode.name](self, argument)
            else:
                raise ValueError(f"{opcode.name} is not for data")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def memoize(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def push_tuple(self, n: int) -> None:
        items = [self.stack.pop() for _ in range(n)]
        self.push(tuple(reversed(items)))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (list, deque):
            raise ValueError("no list to append to")
        target.extend(items)

    def add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not set:
            raise ValueError("no set to add to")
        target.update(map(_as_key, items))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict):
            raise ValueError("no dictionary to set items of")
        target.update(zip(map(_as_key, items[::2]), items[1::2], strict=True))

    def storage(self) -> None:
        if self.read is None:
            raise ValueError("no tensors are expected")
        persistent_id = self.stack.pop()
        key = _as_key(persistent_id[2])
        if key not in self.storages:  # several tensors may be views of one
            self.storages[key] = read_storage(self.read, persistent_id)
        self.push(self.storages[key])

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a name that is no text")
        path = f"{module}.{name}"
        for old, new in (("numpy.core.", "numpy._core."), ("gym.spaces.", "gymnasium.spaces.")):  # of earlier versions
            path = new + path.removeprefix(old) if path.startswith(old) else path
        if path in INSTANCES or path in MAKERS or path in ARGUMENTS:
            self.push(Name(path))
            return
        cls = find_class(module, name)
        if cls is None:
            raise NotAllowedError(module, name)
        self.push(cls)

    def name_on_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def make(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, Name) and isinstance(arguments, tuple)):
            raise ValueError("a call of what is not to be called")
        if name.path in MAKERS:
            self.push(MAKERS[name.path](*arguments))
        elif name.path in INSTANCES and not arguments:
            cls = INSTANCES[name.path]
            self.push(cls.__new__(cls))
        else:
            raise ValueError(f"a call of {name.path}")
        self.weigh()

    def build(self) -> None:
        state = self.stack.pop()
        set_state(self.stack[-1], state)
        self.weigh()

    def weigh(self) -> None:
        if isinstance(self.stack[-1], np.ndarray):
            self.array_bytes += self.stack[-1].nbytes
            if self.array_bytes > MAX_ARRAYS:
                raise ValueError("its arrays are too large")


_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_INSTRUCTIONS: dict[str, Callable[[_Interpreter, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.stack.__delitem__(-1),
    "MEMOIZE": lambda machine, _: machine.memoize(len(machine.memo)),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda machine, index: machine.memoize(index)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push_tuple(1),
    "TUPLE2": lambda machine, _: machine.push_tuple(2),
    "TUPLE3": lambda machine, _: machine.push_tuple(3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "FROZENSET": lambda machine, _: machine.push(frozenset(map(_as_key, machine.pop_to_mark()))),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "GLOBAL": lambda machine, argument: machine.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name_on_stack(),
    "BINPERSID": lambda machine, _: machine.storage(),
    "REDUCE": lambda machine, _: machine.make(),
    "NEWOBJ": lambda machine, _: machine.make(),
    "BUILD": lambda machine, _: machine.build(),
}
