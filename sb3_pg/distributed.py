"""The seam between the processes of a training: every sum over a rollout goes through here.

A rollout is that of all processes (*ranks*) together. Whatever is a statistic of it is summed or gathered over them:
gradients, the mean and deviation of the weights, the moments of the baselines, Fisher products, counts, metrics.

Processes that ``torchrun`` has started join when training starts; a process group that is there already is used as it is.
With one process all of this is the identity. Every rank has to call these functions equally often:
what may happen on one rank alone, an error above all, ends the others through :func:`parting_together`.
"""

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import blake2b
from itertools import chain, repeat
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th

Number = TypeVar("Number", int, float, np.ndarray, th.Tensor)
Samples = TypeVar("Samples", np.ndarray, th.Tensor)
Item = TypeVar("Item")

# What torchrun tells the processes it starts
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Of the store that all ranks see: the first error, and how many have heard of it
_ERROR, _HEARD = "sb3_pg/error", "sb3_pg/heard"
# Seconds that a rank with an error waits for the others to hear of it: torchrun ends all once one has ended
_PATIENCE = 10.0

# The group that this module has started, if it has; whether an error has parted the ranks
_is_ours = False
_is_parted = False
# Group of the tensors on the CPU, where that of the user's has no backend for them
_of_cpu: Any = None


def _group() -> Any:
    """``torch.distributed`` if there are several ranks and they have joined, else None."""
    if "torch.distributed" not in sys.modules or not th.distributed.is_available() or not th.distributed.is_initialized():
        return None
    return th.distributed if th.distributed.get_world_size() > 1 else None


def _is_launched() -> bool:
    return all(name in os.environ for name in _LAUNCHED) and int(os.environ["WORLD_SIZE"]) > 1


def rank() -> int:
    """Number of this process among those that train together, from 0, before they have joined as well.

    Rank 0 logs, shows, saves and evaluates. For callbacks that are to act once: ``if distributed.rank() == 0``.
    """
    group = _group()
    return int(group.get_rank()) if group is not None else int(os.environ["RANK"]) if _is_launched() else 0


def size() -> int:
    """How many processes train together, before they have joined as well."""
    group = _group()
    return int(group.get_world_size()) if group is not None else int(os.environ["WORLD_SIZE"]) if _is_launched() else 1


def choose_device() -> None:
    """Give each of the ranks of a machine a GPU of its own, if there are several."""
    if _is_launched() and th.cuda.is_available():
        th.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % th.cuda.device_count())


def join() -> None:
    """Have the ranks that ``torchrun`` has started meet, unless they have.

    :raises RuntimeError: if an error has parted them
    """
    global _is_ours, _of_cpu
    if _is_parted:
        raise RuntimeError("The processes of this training have parted after an error: start all of them anew.")
    group = _group()
    if group is None and _is_launched():
        # Imported later, it would hold the group in its functions' defaults: threads that outlive Python abort the process
        import torch.distributed.nn  # noqa: F401

        th.distributed.init_process_group("cpu:gloo,cuda:nccl" if th.cuda.is_available() else "gloo")
        _is_ours = True
        atexit.register(_leave)
    elif group is not None and not _is_ours and _of_cpu is None and "cpu" not in group.get_backend_config():
        _of_cpu = group.new_group(backend="gloo")  # what NCCL alone does not reduce: counts, metrics, seeds


def _leave() -> None:
    if _is_ours and _group() is not None:
        with suppress(RuntimeError):
            th.distributed.destroy_process_group()


# Sums


def total(x: Number) -> Number:
    """The sum over the ranks of a number or an array of the same shape on all of them."""
    return x if _group() is None else _reduce(x, "SUM")


def most(x: int) -> int:
    """The largest of the ranks' numbers."""
    return x if _group() is None else _reduce(x, "MAX")


def total_padded(x: np.ndarray) -> np.ndarray:
    """The sum over the ranks of arrays whose last axis differs in length; what is missing there counts as 0."""
    if _group() is None:
        return x
    return total(np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, most(x.shape[-1]) - x.shape[-1])]))


def of_each(x: np.ndarray) -> np.ndarray:
    """Arrays of one shape of all ranks, ``(size, *shape)``."""
    rows = np.zeros((size(), *x.shape), x.dtype)
    rows[rank()] = x
    return total(rows)


class Spread(NamedTuple):
    """Samples of all ranks: how many, their mean, and the sum of their squared deviations from it."""

    n: int
    mean: float
    squares: float


def spreads(*samples: th.Tensor) -> list[Spread]:
    """Put together the moments of what the ranks have, in one sum (Chan, Golub & LeVeque 1979).

    :param samples: float64, ``(n,)`` each, with another n on each rank
    :return: one for each of them
    """
    own = []
    for x in samples:
        mean = x.sum() / max(len(x), 1)
        own.append([float(len(x)), mean.item(), (x - mean).square().sum().item()])
    n, means, squares = np.moveaxis(of_each(np.array(own)), -1, 0)
    totals = n.sum(axis=0)
    mean = (n * means).sum(axis=0) / np.maximum(totals, 1)
    squares = (squares + n * (means - mean) ** 2).sum(axis=0)
    return [Spread(int(n), m, s) for n, m, s in zip(totals.tolist(), mean.tolist(), squares.tolist(), strict=True)]


def gather(samples: Samples) -> Samples:
    """The samples of all ranks, one rank after the other, ``(n, …)`` with another n on each."""
    group = _group()
    if group is None:
        return samples
    own = th.as_tensor(samples)
    lengths = of_each(np.array(len(own)))
    padded = own.new_zeros(int(lengths.max()), *own.shape[1:])
    padded[: len(own)] = own
    of_all = [th.empty_like(padded) for _ in lengths]
    _call(lambda: group.all_gather(of_all, padded, _for(padded)), padded)
    together = th.cat([part[:n] for part, n in zip(of_all, lengths, strict=True)])
    return together.numpy() if isinstance(samples, np.ndarray) else together


def gather_items(items: list[Item]) -> list[list[Item]]:
    """Small objects of all ranks, one list a rank."""
    group = _group()
    if group is None:
        return [items]
    of_all: list[Any] = [None] * size()
    _call(lambda: group.all_gather_object(of_all, items, _of_cpu))
    return of_all


def sum_gradients(parameters: Iterable[th.nn.Parameter]) -> None:
    """Add up the ``.grad`` of the ranks, in place, so that all hold the gradient of the whole rollout."""
    if _group() is None:
        return
    parameters = list(parameters)
    if not parameters:
        return
    # A parameter may have no gradient on some ranks: what they have played does not depend on it
    has_gradient = th.tensor([p.grad is not None for p in parameters]).to(parameters[0])
    gradients = [th.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = total(th.cat([*(g.flatten() for g in gradients), has_gradient]))
    *sums, has_gradient = th.split(flat, [*(p.numel() for p in parameters), len(parameters)])
    for p, gradient, is_there in zip(parameters, sums, has_gradient.tolist(), strict=True):
        if is_there:
            p.grad = gradient.view_as(p).to(p)


def aligned(parts: Iterable[Item]) -> Iterator[Item | None]:
    """The parts of this rank, and None as often as other ranks have more: all take part in what is summed a part."""
    if _group() is None:
        return iter(parts)
    parts = list(parts)
    return chain(parts, repeat(None, most(len(parts)) - len(parts)))


# What is the same on all ranks


def copy_from_first(tensors: Iterable[th.Tensor]) -> None:
    """Overwrite tensors with those of rank 0."""
    group = _group()
    if group is None:
        return
    alike: dict[tuple[th.dtype, th.device], list[th.Tensor]] = {}
    for x in tensors:
        alike.setdefault((x.dtype, x.device), []).append(x.detach())
    for together in alike.values():
        flat = th.cat([x.flatten() for x in together])
        _call(partial(group.broadcast, flat, 0, _for(flat)), flat)
        for x, part in zip(together, th.split(flat, [x.numel() for x in together]), strict=True):
            x.copy_(part.view_as(x))


def of_first(item: Item) -> Item:
    """A small object of rank 0."""
    group = _group()
    if group is None:
        return item
    items = [item]
    _call(lambda: group.broadcast_object_list(items, 0, _of_cpu))
    return items[0]


def require_equal(tensors: Mapping[str, th.Tensor]) -> None:
    """Refuse tensors whose bits are not those of the other ranks, by checksums.

    :param tensors: by name, in the same order on all ranks
    :raises RuntimeError: naming the first of them
    """
    if _group() is None:
        return
    checksums = np.array([_checksum(x) for x in tensors.values()], dtype=np.int64)
    digest = int.from_bytes(blake2b(checksums.tobytes(), digest_size=7).digest(), "big")
    largest, of_negative = _reduce(np.array([digest, -digest]), "MAX")
    if largest == -of_negative:
        return  # as usual, and in one sum
    if most(len(checksums)) != -most(-len(checksums)):
        raise RuntimeError("The ranks have drifted apart: they do not hold the same number of parameters.")
    largest = _reduce(np.stack([checksums, -checksums]), "MAX")
    differs = largest[0] != -largest[1]
    if differs.any():
        raise RuntimeError(
            f"The ranks have drifted apart: {list(tensors)[int(differs.argmax())]} is not the same on all of them. What "
            "changes the policy, such as a callback, has to do so on every rank alike."
        )


def _checksum(x: th.Tensor) -> int:
    bits = {8: th.int64, 4: th.int32, 2: th.int16, 1: th.uint8}
    x = x.detach().contiguous()
    return int(x.view(bits[x.element_size()]).sum(dtype=th.int64).item())


# Machinery


def _reduce(x: Any, operation: str) -> Any:
    group = _group()
    sums = th.tensor(x) if isinstance(x, int | float | np.generic) else th.as_tensor(x).detach().clone().contiguous()
    sums = sums.double() if isinstance(x, float) else sums
    _call(lambda: group.all_reduce(sums, getattr(group.ReduceOp, operation), _for(sums)), sums)
    return sums if isinstance(x, th.Tensor) else sums.numpy() if isinstance(x, np.ndarray) else sums.item()


def _for(x: th.Tensor) -> Any:
    """The group that has a backend for a tensor; None for that of all ranks."""
    return None if x.is_cuda else _of_cpu


def _call(communicate: Callable[[], Any], x: th.Tensor | None = None) -> None:
    """Let the ranks communicate.

    :raises RuntimeError: if one of them has gone, saying which and why as far as that is known
    """
    try:
        if x is not None and x.is_cuda:
            # Fails at once where a rank has gone; NCCL would wait
            th.distributed.all_reduce(th.zeros(1), group=_of_cpu)
        communicate()
    except RuntimeError as error:
        raise _EndedError(_first_error(error)) from error


def _first_error(broken: RuntimeError) -> str:
    store = _store()
    with suppress(RuntimeError):  # the store may have gone with its rank
        if store.check([_ERROR]):
            return str(store.get(_ERROR).decode())
    return (
        "Another rank has ended without an error that it could tell of: it was killed, or its script has ended before the "
        f"others'. ({str(broken).splitlines()[0]})"
    )


class _EndedError(RuntimeError):
    """Another rank has ended."""


def _store() -> Any:
    return th.distributed.distributed_c10d._get_default_store()


@contextmanager
def parting_together() -> Iterator[None]:
    """End on all ranks what an error, or Ctrl-C, ends on one: the others raise an error that names the rank and the cause."""
    try:
        yield
    except BaseException as error:
        if _group() is not None:
            _part(error)
        raise


def _part(error: BaseException) -> None:
    global _is_parted
    store, others = _store(), size()
    _is_parted = True
    with suppress(RuntimeError):  # the store may have gone with its rank
        if not isinstance(error, _EndedError):
            cause = f"{type(error).__name__}: {error}".rstrip(": ")
            store.compare_set(_ERROR, "", f"Rank {rank()} has ended with {cause}")
        store.add(_HEARD, 1)
    # Whoever waits for this rank hears of it
    th.distributed.destroy_process_group()
    deadline = time.monotonic() + _PATIENCE
    with suppress(RuntimeError):
        while store.add(_HEARD, 0) < others and time.monotonic() < deadline:
            time.sleep(0.01)
