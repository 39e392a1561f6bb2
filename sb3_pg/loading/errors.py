"""What is said of a file that is refused, in one sentence."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_File = str | Path | io.BufferedIOBase


class NotTrustedError(ValueError):
    """A file asks for something that a file which is not trusted does not get.

    :param reason: which file asks for what
    :param instead: what to pass in its place, if there is such a thing
    """

    def __init__(self, reason: str, instead: str = ""):
        super().__init__(f"{reason}: pass {instead}trusted=True if you know where the file comes from.")
        self.reason, self.instead = reason, instead


def describe(path: _File) -> str:
    """A file, as errors name it."""
    return repr(str(path))[1:-1] if isinstance(path, str | Path) else f"the {type(path).__name__}"


def first_words(error: Exception) -> str:
    """What an error says, of which a stranger may be the author: on one line, without control characters, not too long."""
    words = " ".join(str(error).split())
    text = repr(words[:200] + ("…" if len(words) > 200 else ""))[1:-1]
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


@contextmanager
def reading(path: _File) -> Iterator[None]:
    """Say in one sentence why a file cannot be read.

    :raises NotTrustedError: as it is, naming the file
    :raises ValueError: naming the file, for whatever else goes wrong
    """
    try:
        yield
    except NotTrustedError as error:
        raise NotTrustedError(f"{describe(path)}: {error.reason}", error.instead) from error
    except Exception as error:
        raise ValueError(f"{describe(path)} cannot be read: {first_words(error)}") from error


@contextmanager
def fitting_together(path: _File) -> Iterator[None]:
    """Say in one sentence why nothing can be made of a file whose parts have been read.

    :raises ValueError: naming the file, for whatever goes wrong
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{describe(path)} does not fit: {first_words(error)}") from error
