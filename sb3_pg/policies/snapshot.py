"""A policy as it was, for steps that were played before a callback changed it."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import numpy as np
import torch as th
from torch import nn

_version = attrgetter("_version")
# Numbers of a tensor that are compared: all of log_std, biases and small layers, the first of others
_N_COMPARED = 256


class Snapshot:
    """Parameters and modules of a policy, to notice that the user has changed them and to have them back for a while.

    What is replaced is noticed, and so is what is changed in place: by torch's own count, and on the CPU, for changes of
    ``.data`` that torch does not count, by the first numbers of each tensor. It is a copy of the parameters, which costs
    about as much as a forward pass, once a rollout: a change is noticed when it has happened.

    :param policy: as it is to be remembered
    """

    def __init__(self, policy: nn.Module):
        self.policy = policy
        modules = list(policy.modules())
        places: list[dict[str, Any]] = [d for m in modules for d in (m._modules, m._parameters) if d]
        self._entries = [place.values() for place in places]  # views, as the dictionaries are
        self._objects = list(chain.from_iterable(self._entries))
        self._contents = [(place, dict(place)) for place in (*places, *(m._buffers for m in modules))]
        self._flat_weights = [(m, list(m._flat_weights)) for m in modules if isinstance(m, nn.RNNBase)]
        self._parameters = list(policy.parameters())
        tensors = [*self._parameters, *policy.buffers()]
        self._copies = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self._versions = list(map(_version, self._parameters))
        self._addresses = list(map(th.Tensor.data_ptr, self._parameters))
        on_cpu = [p for p in self._parameters if p.device.type == "cpu" and p.dtype in (th.float16, th.float32, th.float64)]
        self._firsts: list[Any] = [_first_numbers(p) for p in on_cpu]
        self._numbers = b"".join(self._firsts)

    def is_replaced(self, policy: Any) -> bool:
        """Whether anything of the policy is another object, or elsewhere in memory, than it was."""
        return not (
            policy is self.policy
            and all(map(is_, chain.from_iterable(self._entries), self._objects))
            and list(map(th.Tensor.data_ptr, self._parameters)) == self._addresses
        )

    def is_changed(self, policy: Any) -> bool:
        """Whether the policy is not what it was."""
        return (
            list(map(_version, self._parameters)) != self._versions
            or self.is_replaced(policy)
            or b"".join(self._firsts) != self._numbers
        )

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The policy that was remembered is as it was, meanwhile."""
        contents = [(place, dict(place)) for place, _ in self._contents]
        flat_weights = [(module, module._flat_weights) for module, _ in self._flat_weights]
        data = [(tensor, tensor.data) for tensor, _ in self._copies]
        try:
            _put(self._contents, self._flat_weights, self._copies)
            yield
        finally:
            _put(contents, flat_weights, data)


def _put(contents: list[Any], flat_weights: list[Any], data: list[Any]) -> None:
    for place, entries in contents:
        place.clear()
        place.update(entries)
    for module, weights in flat_weights:
        module._flat_weights = weights
    for tensor, values in data:
        tensor.data = values


def _first_numbers(parameter: nn.Parameter) -> np.ndarray:
    """As they lie in memory, whatever the order of the dimensions."""
    data = parameter.detach()
    n = data.untyped_storage().nbytes() // data.element_size() - data.storage_offset()
    numbers: np.ndarray = data.as_strided((min(n, _N_COMPARED),), (1,)).numpy()  # a view
    return numbers
