"""Archives and weights from strangers: no more memory than is stated, nothing on disk, tensors and numbers only."""

import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from sb3_pg.loading.unpickling import NotAllowedError, loads

# Bytes of what says how the numbers of a member are tensors
_MAX_STRUCTURE = 2**22
# Bytes of an archive's list of members, of each of which zipfile makes an object
_MAX_DIRECTORY = 2**22


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
    with _open(file) as archive:
        members_info = archive.infolist()
        if sum(info.file_size for info in members_info) > limit:
            raise ValueError(f"unpacked it would be larger than {limit // 2**20} MiB")
        for info in members_info:
            if not re.fullmatch(names, info.filename):
                raise ValueError(f"it has a member {info.filename[:80]!r}, as no model has")
            if info.filename in members:
                raise ValueError(f"it has two members {info.filename!r}")
            members[info.filename] = _read(archive, info)
    return members


def read_member(file: BinaryIO, name: str, limit: int) -> bytes | None:
    """Contents of one member of a zip file.

    :param file: the archive
    :param name: of the member
    :param limit: bytes of the member
    :return: None if there is no such member
    :raises ValueError: if it is too large or not whole
    """
    with _open(file) as archive:
        if name not in archive.namelist():
            return None
        info = archive.getinfo(name)
        if info.file_size > limit:
            raise ValueError(f"it is larger than {limit // 2**20} MiB")
        return _read(archive, info)


@contextmanager
def _open(file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    bounded = _BoundedReads(file)
    with zipfile.ZipFile(bounded) as archive:  # type: ignore[arg-type]
        bounded.limit = None  # the list of members has been read
        yield archive


class _BoundedReads:
    """A file of which no read is longer than a limit: zipfile reads the list of members at once, however long it is."""

    limit: int | None = _MAX_DIRECTORY

    def __init__(self, file: BinaryIO):
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, n: int = -1) -> bytes:
        if self.limit is not None and n > self.limit:
            raise ValueError("it has too many members")
        return self._file.read(n)


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member, of which no more is unpacked than the archive says."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is compressed in a way that no model is")
    with archive.open(info) as member:
        contents = member.read(info.file_size)
        if member.read(1) or len(contents) != info.file_size:
            raise ValueError(f"{info.filename} is not of the size it says")
        return contents


def read_weights(name: str, member: bytes) -> Any:
    """Tensors that ``torch.save`` has written, with the numbers beside them.

    :param name: of the member of the archive
    :param member: its contents, an archive itself
    :return: dictionaries and lists of tensors, numbers and names
    :raises ValueError: if it is something else
    """
    parts = read_archive(io.BytesIO(member), r"[\w-][\w.-]*/(\.?[\w-][\w.-]*/)*\.?[\w-][\w.-]*", len(member))
    folder = next(iter(parts), "").partition("/")[0]
    try:
        if parts.get(f"{folder}/byteorder", b"little") != b"little":
            raise ValueError("its numbers are of another order of bytes")
        pickled = parts[f"{folder}/data.pkl"]
        if len(pickled) > _MAX_STRUCTURE:
            raise ValueError("it has too many tensors")
        return loads(pickled, lambda key: parts[f"{folder}/data/{key}"])
    except NotAllowedError as error:
        raise ValueError(f"{name} holds no weights: it asks for {error.path}") from error
    except Exception as error:
        raise ValueError(f"{name} holds no weights: {error}") from error
