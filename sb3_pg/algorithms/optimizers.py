"""Optimizers that go on when the user puts other parameters into the policy, and that take their steps in one kernel."""

from collections.abc import Mapping
from operator import is_
from typing import TYPE_CHECKING

import torch as th
from torch.nn import Parameter

if TYPE_CHECKING:
    from sb3_pg.algorithms.policy_gradient import PolicyGradient


def fuse(optimizer: th.optim.Optimizer) -> None:
    """Let Adam take its step in one kernel, which is several times faster on small networks, unless the user has chosen."""
    if type(optimizer) in (th.optim.Adam, th.optim.AdamW):
        for group in optimizer.param_groups:
            is_open = group["fused"] is None and group["foreach"] is None and not group["differentiable"]
            if is_open and _can_be_fused(group["params"]):
                group["fused"] = True


def _can_be_fused(parameters: list[Parameter]) -> bool:
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


def _set_parameters(optimizer: th.optim.Optimizer, group: dict, parameters: list[Parameter]) -> None:
    held = {id(p) for p in parameters}
    for p in group["params"]:
        if id(p) not in held:
            optimizer.state.pop(p, None)
    group["params"] = parameters
    if group.get("fused") and not _can_be_fused(parameters):
        group["fused"] = False


def find_critic_parameters(model: "PolicyGradient") -> list[Parameter]:
    """The critic's parameters, those that are frozen included.

    :raises ValueError: if it is known that there are none where the critic is used
    """
    critic_parameters = model.kind.critic_parameters(trainable=False)
    # A policy that cannot be asked before the environments have been is asked at the first update
    if model.uses_critic and not critic_parameters and model.kind.divide():
        raise ValueError(
            "The policy has no parameters of its own for V(s): use weights or a baseline without a critic, such as "
            'VanillaPG(weights="reward_to_go") or ReinforceBaseline(baseline="running_mean").'
        )
    return critic_parameters


def make_critic_optimizer(model: "PolicyGradient") -> th.optim.Optimizer:
    """An optimizer of the policy's class for the critic's parameters."""
    optimizer: th.optim.Optimizer = model.policy.optimizer_class(
        [{"params": find_critic_parameters(model)}],
        lr=model.critic_lr_schedule(1.0),  # type: ignore[call-arg]
        **model.policy.optimizer_kwargs,
    )
    fuse(optimizer)
    return optimizer


def follow_policy(model: "PolicyGradient") -> None:
    """Let the optimizers hold what the user has put into the policy, or in the place of it, since the last update."""
    before, now = model._policy_parameters, dict(model.policy.named_parameters())
    if not {id(p) for p in before.values()} & {id(p) for p in now.values()}:  # another policy, with its own optimizer
        model._setup_critic_optimizer()
        return
    if not (before.keys() == now.keys() and all(now[name] is p for name, p in before.items())):
        follow_replacements(model.policy.optimizer, before, now)
        model._policy_parameters = now
    critic_parameters = find_critic_parameters(model)
    (group,) = model.critic_optimizer.param_groups
    held = group["params"]
    if not (len(held) == len(critic_parameters) and all(map(is_, held, critic_parameters))):
        _set_parameters(model.critic_optimizer, group, critic_parameters)
        fuse(model.critic_optimizer)
