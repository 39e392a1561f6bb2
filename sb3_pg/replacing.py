"""Other values in the place of attributes, for a while: rl-zoo3 has no setting for most of what we change."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def replacing(*attributes: tuple[Any, str, Any]) -> Iterator[None]:
    """Replace attributes within a ``with`` statement.

    :param attributes: class or module, name, and the value to replace its own with
    """
    with ExitStack() as stack:
        for owner, name, value in attributes:
            stack.callback(setattr, owner, name, vars(owner)[name])
            setattr(owner, name, value)
        yield
