"""What an attacker writes into files, and an eye on what happens when they are read."""

import io
import os
import pickle
import pickletools
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARKER = "hostile_code_ran"


class Call:
    """A pickle of it calls a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def text(value: str) -> bytes:
    """The instruction that pushes a text."""
    encoded = value.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def name(module: str, qualified: str) -> bytes:
    """The instructions that push what a module has under a name, which may have dots."""
    return text(module) + text(qualified) + b"\x93"


def payloads(folder: Path) -> dict[str, bytes]:
    """Pickles each of which, where they are trusted, makes a file ``MARKER`` in the folder."""
    target = str(folder / MARKER)
    python, shell = f"open({target!r}, 'w').close()", f"touch {target}"
    of_builtins = name("builtins", "getattr") + name("builtins", "__dict__") + text("__getitem__") + b"\x86R"
    pickles = {
        "os.system": pickle.dumps(Call(os.system, shell), 4),
        "eval": pickle.dumps(Call(eval, python), 4),
        "exec": pickle.dumps(Call(exec, python), 4),
        "subprocess": pickle.dumps(Call(subprocess.call, ["touch", target]), 4),
        "open": pickle.dumps(Call(open, target, "w"), 4),
        "inside of honest data": pickle.dumps({"net_arch": [64, Call(os.system, shell)]}, 5),
        "as a key": pickle.dumps({Call(os.system, shell): 1}, 5),
        "exec through getattr": b"\x80\x04" + of_builtins + text("exec") + b"\x85R" + text(python) + b"\x85R.",
        "posix in protocol 0": f"cposix\nsystem\n(S'{shell}'\ntR.".encode(),
        "posix by INST": f"(S'{shell}'\niposix\nsystem\n.".encode(),
        "posix by OBJ": f"(cposix\nsystem\nS'{shell}'\no.".encode(),
        "os in an allowed module": b"\x80\x04" + name("numpy", "lib._npyio_impl.os.system") + text(shell) + b"\x85R.",
        "globals of an allowed class": b"\x80\x04" + name("torch.optim.adam", "Adam.__init__.__globals__") + b"0"
        + name("stable_baselines3.common.save_util", "os.system") + text(shell) + b"\x85R.",
        "the importer of our own file": b"\x80\x04" + name("sb3_pg.loading.kinds", "import_module") + text("os") + b"\x85R"
        + b"\x94" + name("builtins", "getattr") + b"h\x00" + text("system") + b"\x86R" + text(shell) + b"\x85R.",
    }  # fmt: skip
    with_partial = {"partial": _Partial(shell)}
    return {**pickles, "functools.partial": pickle.dumps(with_partial, 4)}


class _Partial:
    def __init__(self, shell: str):
        self.shell = shell

    def __reduce__(self) -> Any:
        import functools

        return Call(functools.partial(os.system, self.shell)).__reduce__()


def rewrite(archive: bytes, members: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file with members replaced, added or, where None, left out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(out, "w", compression) as target:
        for member in [*source.namelist(), *(new for new in members if new not in source.namelist())]:
            contents = members[member] if member in members else source.read(member)
            if contents is not None:
                target.writestr(member, contents)
    return out.getvalue()


def flip_bits(contents: bytes, rng: random.Random, n: int) -> bytes:
    """Contents with ``n`` bits flipped."""
    changed = bytearray(contents)
    for _ in range(n):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def instructions(pickled: bytes) -> list[bytes]:
    positions = [position for _, _, position in pickletools.genops(pickled)]
    return [pickled[start:end] for start, end in zip(positions, [*positions[1:], len(pickled)], strict=True)]


def fuzz(pickled: bytes, rng: random.Random) -> bytes:
    """A pickle with instructions dropped, doubled, exchanged, or put between."""
    parts = instructions(pickled)
    foreign = [name("os", "system"), b"cbuiltins\neval\n", b"\x82\x01", b"Q", b"R",
               b"b", b"\x81", b"\x92", b"o", b"0", b"2",
               b"(", b"t", b"e", b"u", b"d", b"l", b"}", b"]", b")", b"\x85", b"\x86", b"N", b"\x93", b"h\x00",
               b"h\x05", b"h\x10",
               b"\x94", b"\x97", b"\x98", b"1", text("__class__"), text("__reduce__")]  # fmt: skip
    for _ in range(rng.randint(1, 6)):
        i, j = rng.randrange(1, len(parts)), rng.randrange(1, len(parts))
        kind = rng.randrange(4)
        if kind == 0 and len(parts) > 3:
            del parts[i]
        elif kind == 1:
            parts.insert(i, parts[j])
        elif kind == 2:
            parts[i], parts[j] = parts[j], parts[i]
        else:
            parts.insert(i, rng.choice(foreign))
    return b"".join(parts)


# Python tells of what is done in a process. What reading a file may not do:
_FORBIDDEN = ("os.", "subprocess.", "socket.", "shutil.", "pickle.find_class", "code.__new__", "exec", "compile", "marshal.",
              "ctypes.", "builtins.", "webbrowser.", "pty.", "tempfile.")  # fmt: skip
_HARMLESS = ("os.listdir", "os.scandir", "os.putenv", "builtins.id")
_seen: list[str] | None = None


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event == "open":
        if isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _seen.append(f"open {arguments[0]!r}")
    elif event.startswith(_FORBIDDEN) and event not in _HARMLESS:
        _seen.append(f"{event} {arguments!r}"[:200])


sys.addaudithook(_look)


@contextmanager
def watched() -> Iterator[list[str]]:
    """Notice code that is run, names that are looked up by a pickle, and files that are written."""
    global _seen
    _seen = events = []
    try:
        yield events
    finally:
        _seen = None
