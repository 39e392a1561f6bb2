"""The kinds of policy, and the one place that tells them apart."""

from typing import Any

from sb3_pg.policies.kind import PolicyKind
from sb3_pg.policies.masked import MaskedKind
from sb3_pg.policies.masked_recurrent import (
    MaskableRecurrentActorCriticPolicy,
    MaskableRecurrentMultiInputActorCriticPolicy,
    MaskedRecurrentKind,
)
from sb3_pg.policies.plain import PlainKind
from sb3_pg.policies.recurrent import RecurrentKind

# The special before the general
_KINDS: tuple[type[PlainKind], ...] = (MaskedRecurrentKind, RecurrentKind, MaskedKind, PlainKind)


def find_kind(policy_class: Any) -> type[PolicyKind]:
    """The kind of a class of policies.

    :raises TypeError: if there is none
    """
    for kind in _KINDS:
        if isinstance(policy_class, type) and issubclass(policy_class, kind.base):
            return kind
    name = getattr(policy_class, "__name__", repr(policy_class))
    raise TypeError(
        f"policy: {name} is no stochastic actor-critic policy: use a subclass of SB3's ActorCriticPolicy, or of sb3-contrib's "
        "RecurrentActorCriticPolicy or MaskableActorCriticPolicy."
    )


def make_kind(policy: Any) -> PolicyKind:
    """The policy as the algorithms see it."""
    return find_kind(type(getattr(policy, "_orig_mod", policy)))(policy)  # behind torch.compile


__all__ = [
    "MaskableRecurrentActorCriticPolicy",
    "MaskableRecurrentMultiInputActorCriticPolicy",
    "PolicyKind",
    "find_kind",
    "make_kind",
]
