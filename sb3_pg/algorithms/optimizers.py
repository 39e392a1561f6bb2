"""Optimizers that go on when the user puts other parameters into the policy, and that take their steps in one kernel."""

from collections.abc import Mapping

import torch as th
from torch.nn import Parameter
from torch.nn.parameter import is_lazy


def fuse(optimizer: th.optim.Optimizer) -> None:
    """Let Adam take its step in one kernel, which is several times faster on small networks, unless the user has chosen."""
    if type(optimizer) in (th.optim.Adam, th.optim.AdamW):
        for group in optimizer.param_groups:
            is_open = group["fused"] is None and group["foreach"] is None and not group["differentiable"]
            if is_open and _can_be_fused(group["params"]):
                group["fused"] = True


def _can_be_fused(parameters: list[Parameter]) -> bool:
    if any(map(is_lazy, parameters)):
        return False
    on_known_device = all(p.device.type in ("cpu", "cuda") for p in parameters)
    # The kernel goes through memory from end to end
    is_dense = all(p.is_contiguous() or p.is_contiguous(memory_format=th.channels_last) for p in parameters)
    return on_known_device and is_dense


def follow_replacements(optimizer: th.optim.Optimizer, before: Mapping[str, Parameter], now: Mapping[str, Parameter]) -> None:
    """Give an optimizer of a policy what the user has put into the policy since it was made; the others keep their state.

    What the optimizer has been made without stays out of it.

    :param optimizer: of the policy
    :param before: the policy's parameters when they were last looked at, by name
    :param now: the policy's parameters
    """
    old, new = {id(p) for p in before.values()}, {id(p) for p in now.values()}
    kept = {id(p) for group in optimizer.param_groups for p in group["params"]}
    successors = {
        id(p): now[name] for name, p in before.items() if name in now and id(p) not in new and id(now[name]) not in old
    }
    placed = {id(p) for p in successors.values()}
    for group in optimizer.param_groups:
        in_place = [successors.get(id(p), p) for p in group["params"]]
        _set_parameters(optimizer, group, [p for p in in_place if id(p) in new or id(p) not in old])
    added = [p for p in now.values() if id(p) not in old | placed | kept]
    if added:
        group = optimizer.param_groups[0]
        parameters = [*group["params"], *added]
        if len(optimizer.param_groups) == 1 and {id(p) for p in parameters} == new:
            parameters = list(now.values())  # in the order in which a policy is given to its optimizer, and loaded
        _set_parameters(optimizer, group, parameters)


def hold_parameters(optimizer: th.optim.Optimizer, parameters: list[Parameter]) -> None:
    """Make an optimizer with one group of parameters hold these; those that it held keep their state."""
    (group,) = optimizer.param_groups
    _set_parameters(optimizer, group, parameters)


def _set_parameters(optimizer: th.optim.Optimizer, group: dict, parameters: list[Parameter]) -> None:
    held = {id(p) for p in parameters}
    for p in group["params"]:
        if id(p) not in held:
            optimizer.state.pop(p, None)
    group["params"] = parameters
    if group.get("fused") and not _can_be_fused(parameters):
        group["fused"] = False
