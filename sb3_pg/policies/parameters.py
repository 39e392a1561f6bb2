"""Which parameters of a policy are the critic's, found by what V and log π depend on."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_pg.policies.kernels import differentiable
from sb3_pg.policies.steps import map_obs

# Passes, the first at the parameters as they are and the others near them, and observations in each. One alone may see a dead
# ReLU, an output that is initialised to zero, or one of several branches
_N_PASSES, _N_OBSERVATIONS = 3, 4
# Numbers without bounds, or with bounds far apart, are drawn from a part of their range: networks overflow on the rest
_WIDTH = 6.0
_MOST_LEVELS = 1000
# What derivative an output has by a parameter
_NONE, _ZERO, _NOT_ZERO = 0, 1, 2
# Where SB3's and sb3-contrib's policies, and most that derive from them, have the critic's parameters
_NAMES = {"value_net", "vf_features_extractor", "lstm_critic", "critic"}


def sample(space: spaces.Space, n: int = _N_OBSERVATIONS) -> Any:
    """Elements of a space, always the same, as vector environments return them: ``(n, …)`` or a dictionary of such."""
    if isinstance(space, spaces.Dict):
        return {key: sample(part, n) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Box):
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        is_wide = high - low > (_WIDTH if space.dtype.kind == "f" else _MOST_LEVELS)  # type: ignore[union-attr]
        from_low = np.maximum(low, np.minimum(-_WIDTH / 2, high - _WIDTH))
        low, high = np.where(is_wide, from_low, low), np.where(is_wide, np.minimum(from_low + _WIDTH, high), high)
        space = spaces.Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype)  # type: ignore[arg-type]
    space = deepcopy(space)  # its generator is the environment's
    space.seed(0)
    return np.stack([space.sample() for _ in range(n)])


def guess_critic_parameters(policy: nn.Module) -> list[nn.Parameter]:
    """The critic's parameters by their names, for as long as the policy cannot be asked."""
    return [p for name, p in policy.named_parameters() if _NAMES & set(name.split("."))]


def find_critic_parameters(
    policy: Any, evaluate: Callable[[Any, th.Tensor], tuple[th.Tensor, th.Tensor]], observations: Any, actions: th.Tensor
) -> list[nn.Parameter]:
    """The parameters that V depends on and log π does not.

    A derivative of log π that is there and always zero, as by the rest of a tensor that the actor takes a slice of, is no
    dependence if that of V is not zero there. Where both are zero, as by weights that meet zeros only, it is the actor's.

    :param policy: left as it was, in evaluation mode
    :param evaluate: from observations and actions to V and log π, with their graph, ``(n,)`` each
    :param observations: ``(n, …)`` or a dictionary of such
    :param actions: as the policy's distribution takes them, ``(n, …)``
    :return: the critic's parameters, in the order of the policy's
    """
    policy.set_training_mode(False)  # the mode that the policy acts and is scored in
    obs = map_obs(lambda x: th.as_tensor(x, device=policy.device), observations)
    if any(map(nn.parameter.is_lazy, policy.parameters())):
        with th.no_grad():  # a first pass makes them
            evaluate(obs, actions)
    parameters = [p for p in policy.parameters() if p.is_floating_point()]
    frozen = [p for p in parameters if not p.requires_grad]  # now; the user may thaw them
    before = [p.detach().clone() for p in parameters]
    # Parameters moved at random may give NaN: what depends on what shows all the same
    validates = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    generator = th.Generator().manual_seed(0)
    of_actor, of_critic = [_NONE] * len(parameters), [_NONE] * len(parameters)
    try:
        for p in frozen:
            p.requires_grad_(True)
        with th.random.fork_rng([policy.device] if policy.device.type == "cuda" else []):
            for i in range(_N_PASSES):
                if i > 0:
                    _move(parameters, before, generator)
                with differentiable(policy):
                    values, log_prob = evaluate(obs, actions)
                of_critic = list(map(max, of_critic, _depends(values, parameters)))
                of_actor = list(map(max, of_actor, _depends(log_prob, parameters)))
            _restore(parameters, before)
            with th.no_grad():  # the policy remembers its last distribution: one with a graph could not be copied
                evaluate(obs, actions)
    finally:
        _restore(parameters, before)
        th.distributions.Distribution.set_default_validate_args(validates)
        for p in frozen:
            p.requires_grad_(False)
    return [p for p, critic, actor in zip(parameters, of_critic, of_actor, strict=True) if critic > actor]


def _depends(output: th.Tensor, parameters: list[nn.Parameter]) -> list[int]:
    """What derivative the outputs have by each of the parameters."""
    if not output.requires_grad:
        return [_NONE] * len(parameters)
    weights = th.linspace(1.0, 2.0, output.numel(), device=output.device).reshape(output.shape)  # no two cancel
    gradients = th.autograd.grad((output * weights).sum(), parameters, retain_graph=True, allow_unused=True)
    return [_NONE if gradient is None else _NOT_ZERO if bool((gradient != 0).any()) else _ZERO for gradient in gradients]


def _move(parameters: list[nn.Parameter], origin: list[th.Tensor], generator: th.Generator) -> None:
    for p, old in zip(parameters, origin, strict=True):
        scale = 0.3 * old.square().mean().sqrt() + 0.01
        p.data.copy_(old + scale * th.randn(old.shape, generator=generator).to(old))


def _restore(parameters: list[nn.Parameter], origin: list[th.Tensor]) -> None:
    for p, old in zip(parameters, origin, strict=True):
        p.data.copy_(old)
