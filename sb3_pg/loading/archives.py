"""Archives and weights from strangers: no more memory than is stated, nothing on disk, tensors and numbers only."""

import io
import re
import zipfile
from typing import Any, BinaryIO

from sb3_pg.loading.unpickling import NotAllowedError, loads

# Bytes of what says how the numbers of a member are tensors
_MAX_STRUCTURE = 2**22


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
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{info.filename} is compressed in a way that no model is")
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
