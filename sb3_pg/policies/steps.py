"""Steps of a rollout as a policy is shown them, and observations of any structure."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch as th

#: What selects steps: numbers of rows, or a slice of them
Rows = slice | np.ndarray | th.Tensor


def map_obs(function: Callable[..., Any], x: Any, *others: Any) -> Any:
    """``function`` of arrays or tensors, or of the entries under each key of dictionaries of them."""
    if isinstance(x, dict):
        return {key: function(value, *(other[key] for other in others)) for key, value in x.items()}
    return function(x, *others)


def take_obs(observations: Any, rows: Any) -> Any:
    """Rows of observations: of an array or tensor, or of each entry of a dictionary of them."""
    return map_obs(lambda x: x[rows], observations)


def n_obs(observations: Any) -> int:
    """Number of rows of observations: of an array or tensor, or of a dictionary of them."""
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)


@dataclass(frozen=True)
class Steps:
    """Some steps of a rollout, in the form the policy takes them, ``(n, …)`` each.

    The steps of one environment stand next to each other and in order of time.

    :param observations: what the actions were taken on, or a dictionary of such
    :param actions: as the policy's distribution takes them
    :param context: what the kind of policy has recorded beside the observation, by name
    """

    observations: Any
    actions: th.Tensor
    context: dict[str, th.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.actions)

    def __getitem__(self, rows: Rows) -> "Steps":
        return Steps(take_obs(self.observations, rows), self.actions[rows], take_obs(self.context, rows))
