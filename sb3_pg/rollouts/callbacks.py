"""Callbacks that call other callbacks."""

from collections.abc import Iterator
from typing import Any

# Attributes under which SB3's callbacks, and their lists, keep what they call
_CALLED = ("callbacks", "callback", "callback_on_new_best", "callback_after_eval")


def package_of(callback: Any) -> str:
    """Name of the package that a callback comes from."""
    return type(callback).__module__.partition(".")[0]


def walk(callback: Any) -> Iterator[Any]:
    """A callback and all that it calls, lists of callbacks and functions of the user's included.

    :param callback: of SB3's, a function, a list of these, or None
    """
    if isinstance(callback, list | tuple):
        for each in callback:
            yield from walk(each)
    elif callback is not None:
        yield callback
        for name in _CALLED:
            yield from walk(getattr(callback, name, None))
