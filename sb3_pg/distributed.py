"""The seam between the processes of a training: every sum over a rollout goes through here.

A rollout is that of all processes (*ranks*) together. Whatever is a statistic of it is summed or gathered over them:
gradients, the mean and deviation of the weights, the moments of the baselines, Fisher products, counts, metrics. There is one
process for now, and these functions are the identity.
"""

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import torch as th

Number = TypeVar("Number", int, float, np.ndarray, th.Tensor)
Samples = TypeVar("Samples", np.ndarray, th.Tensor)


def total(x: Number) -> Number:
    """The sum over the ranks of a number or an array of the same shape on all of them."""
    return x


def gather(samples: Samples) -> Samples:
    """The samples of all ranks, one rank after the other, ``(n, …)`` with another n on each."""
    return samples


def sum_gradients(parameters: Iterable[th.nn.Parameter]) -> None:
    """Add up the ``.grad`` of the ranks, in place, so that all hold the gradient of the whole rollout."""
