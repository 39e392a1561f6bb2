"""Archives and weights from strangers: no more memory than is stated, nothing on disk, tensors and numbers only."""

import io
import re
import zipfile
from typing import Any, BinaryIO

import torch as th

# Optimizers' states lie this deep, and their hyperparameters
_MAX_DEPTH = 8


def read_archive(file: BinaryIO, names: str, limit: int) -> dict[str, bytes]:
    """Contents of all members of a zip file.

    :param file: the archive
    :param names: regular expression for the names of its members
    :param limit: bytes of the file, and of all members together
    :return: by name
    :raises ValueError: if it is too large, or a member has another name, comes twice or is not whole
    """
    if file.seek(0, io.SEEK_END) > limit:
        raise ValueError(f"it is larger than {limit // 2**20} MiB")
    members: dict[str, bytes] = {}
    with zipfile.ZipFile(file) as archive:
        members_info = archive.infolist()
        # Declared sizes are what is read at most: zipfile stops there
        if sum(info.file_size for info in members_info) > limit:
            raise ValueError(f"unpacked it would be larger than {limit // 2**20} MiB")
        for info in members_info:
            if not re.fullmatch(names, info.filename):
                raise ValueError(f"it has a member {info.filename[:80]!r}, as no model has")
            if info.filename in members:
                raise ValueError(f"it has two members {info.filename!r}")
            with archive.open(info) as member:
                members[info.filename] = member.read(info.file_size)
                if member.read(1) or len(members[info.filename]) != info.file_size:
                    raise ValueError(f"{info.filename} is not of the size it says")
    return members


def read_weights(name: str, member: bytes) -> Any:
    """Tensors that ``torch.save`` has written, with the numbers beside them.

    :param name: of the member of the archive
    :param member: its contents, an archive itself
    :return: dictionaries and lists of tensors, numbers and names
    :raises ValueError: if it is something else
    """
    # Torch gets an archive that is written here, of what Python reads in the given one: there are no two readings of it
    rewritten = io.BytesIO()
    with zipfile.ZipFile(rewritten, "w") as archive:
        for part, contents in read_archive(io.BytesIO(member), r"((?!\.\.?/)[\w.-]+/)+[\w.-]+", len(member)).items():
            archive.writestr(part, contents)
    rewritten.seek(0)
    try:
        weights = th.load(rewritten, map_location="cpu", weights_only=True)
    except Exception as error:
        asked = re.search(r"GLOBAL ([\w.]{1,100})", str(error))
        what = f"asks for {asked[1]}" if asked else f"is damaged ({type(error).__name__})"
        raise ValueError(f"{name} holds no weights: it {what}") from error
    return _plain(name, weights, 0)


def _plain(name: str, value: Any, depth: int) -> Any:
    """The value, in containers and tensors of Python's and torch's own classes."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"{name} holds no weights: it is too deep")
    if isinstance(value, dict) and all(isinstance(key, str | int) for key in value):
        return {key: _plain(name, item, depth + 1) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(name, item, depth + 1) for item in value)
    if isinstance(value, th.Tensor) and value.layout is th.strided and not value.is_quantized and value.device.type == "cpu":
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{name} holds a tensor that is larger than its numbers")
        return value.detach().as_subclass(th.Tensor)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{name} holds a {type(value).__name__}, which is no weight")
