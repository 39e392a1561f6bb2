"""Updates that are made completely or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch as th
from torch.nn.parameter import is_lazy

from sb3_pg.finite import require_finite_policy

if TYPE_CHECKING:
    from sb3_pg.algorithms.policy_gradient import PolicyGradient

_ENDING = "; the update is taken back: the model can be saved"


@contextmanager
def undone_on_error(model: "PolicyGradient") -> Iterator[None]:
    """Take an update back if it ends with an error, or with parameters that are not finite.

    :raises ValueError: if the parameters are not finite in the end
    """
    tensors = [x.detach() for x in (*model.policy.parameters(), *model.policy.buffers()) if not is_lazy(x)]
    before = [x.clone() for x in tensors]
    optimizers = [model.policy.optimizer, model.critic_optimizer]
    states = [{p: {key: _copy(x) for key, x in state.items()} for p, state in o.state.items()} for o in optimizers]
    moments = model.target_moments
    try:
        with th.enable_grad():
            yield
        require_finite_policy(model.policy, _ENDING)
    except BaseException as error:
        spoilt = _find_spoilt(model) if isinstance(error, Exception) else None
        with th.no_grad():
            for x, old in zip(tensors, before, strict=True):
                x.copy_(old)
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.state.clear()
            optimizer.state.update(state)
            optimizer.zero_grad()
        model.target_moments = moments
        if spoilt is not None:
            raise spoilt from error
        if isinstance(error, ValueError) and str(error).startswith("Expected parameter"):  # torch's, of a distribution
            raise ValueError(
                f"The policy has no distribution of actions after the step{_ENDING}. Try a smaller learning rate."
            ) from error
        raise


def _find_spoilt(model: "PolicyGradient") -> ValueError | None:
    """What went wrong first, where an error came of parameters that are not finite."""
    try:
        require_finite_policy(model.policy, _ENDING)
    except ValueError as error:
        return error
    return None


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, th.Tensor) else value
