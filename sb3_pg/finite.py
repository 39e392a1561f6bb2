"""NaN and infinity, caught before they reach the parameters."""

from math import isfinite
from numbers import Real
from typing import Any

import numpy as np
import torch as th
from torch.nn.parameter import is_lazy


def require_finite(what: str, value: float) -> None:
    """Refuse a number that is not finite.

    :param what: what the number is
    :raises ValueError: naming it
    """
    if not isfinite(value):
        raise ValueError(
            f"Found NaN or infinity in {what}; the update is taken back: the model can be saved. "
            "Try a smaller learning rate or normalised observations and rewards (VecNormalize)."
        )


def is_rate(value: Any, low: float = 0.0) -> bool:
    """Whether what a schedule returned is a finite number of at least ``low``."""
    return isinstance(value, Real) and isfinite(value) and value >= low  # type: ignore[operator]


def require_rate(what: str, value: float, low: float = 0.0) -> None:
    """Refuse what a schedule returned if it is no finite number, or below ``low``.

    :param what: what the schedule is of
    :raises ValueError: naming it
    """
    if not is_rate(value, low):
        range_ = " of at least 0" if low == 0.0 else ""
        raise ValueError(
            f"The schedule of {what} returned {value!r}: it has to be a finite number{range_}. The update is not made: the "
            "model can be saved."
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


def require_finite_policy(policy: th.nn.Module, ending: str) -> None:
    """Refuse parameters that are NaN or infinite.

    :param policy: the policy
    :param ending: of the message
    :raises ValueError: naming the first of them
    """
    parameters = [p.detach() for p in policy.parameters() if not is_lazy(p) and p.is_floating_point()]
    # The sum is not finite if one of them is not
    if parameters and not bool(th.stack([p.sum() for p in parameters]).isfinite().all()):
        for name, p in policy.named_parameters():
            if not is_lazy(p) and not bool(p.isfinite().all()):
                raise ValueError(f"Found NaN or infinity in the policy's {name}{ending}.")


def require_finite_actions(actions: np.ndarray, step: int) -> None:
    """Refuse to play actions that are NaN or infinite.

    :param actions: ``(n_envs, …)``
    :param step: of the rollout
    :raises ValueError: naming environment and step
    """
    if not isfinite(actions.sum()):  # of few numbers: cheaper than to look at each
        finite = np.isfinite(actions.reshape(len(actions), -1)).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"The policy chose an action that is NaN or infinite in environment {finite.argmin()}, step {step} of the "
                "rollout; it is not played. Look at what changes the policy's parameters, and at the observations."
            )
