"""NaN and infinity, caught before they reach the parameters."""

from math import isfinite
from typing import Any

import numpy as np


def require_finite(what: str, value: float) -> None:
    """Refuse a number that is not finite.

    :param what: what the number is
    :raises ValueError: naming it
    """
    if not isfinite(value):
        raise ValueError(
            f"Found NaN or infinity in {what}; training stops before a step is taken along it: the model can be saved. "
            "Try a smaller learning rate or normalised observations and rewards (VecNormalize)."
        )


def require_finite_rows(what: str, array: Any, step: int | None = None, env: int | None = None) -> None:
    """Refuse NaN and infinity in an array or a dictionary of arrays.

    :param what: what the array holds
    :param array: ``(n_steps, n_envs, …)``, or ``(n_envs, …)`` if ``step`` is given, or ``(1, …)`` if ``env`` is given too
    :param step: step of the rollout
    :param env: environment
    :raises ValueError: naming what, environment and step
    """
    for part in array.values() if isinstance(array, dict) else [array]:
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            row, column, *_ = np.argwhere(~np.isfinite(part if step is None else part[None]))[0]
            raise ValueError(
                f"Found NaN or infinity in the {what} of environment {column if env is None else env}, step "
                f"{row if step is None else step} of the rollout; training stops before the update: the model can be saved."
            )
