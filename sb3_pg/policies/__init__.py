"""The kinds of policy, and the one place that tells them apart."""

from typing import Any

from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_pg.policies.kind import PolicyKind
from sb3_pg.policies.plain import PlainKind


def make_kind(policy: ActorCriticPolicy) -> PolicyKind:
    """The policy as the algorithms see it."""
    return PlainKind(policy)


def check_policy_class(policy_class: Any) -> None:
    """Refuse what no kind here can play.

    :raises TypeError: naming the class
    """
    if not (isinstance(policy_class, type) and issubclass(policy_class, ActorCriticPolicy)):
        name = getattr(policy_class, "__name__", repr(policy_class))
        raise TypeError(f"{name} is no stochastic actor-critic policy: use a subclass of SB3's ActorCriticPolicy.")
    if issubclass(policy_class, RecurrentActorCriticPolicy):
        raise TypeError(
            f"{policy_class.__name__} has a memory, which no rollout here carries on: use sb3-contrib's RecurrentPPO."
        )


__all__ = ["PolicyKind", "check_policy_class", "make_kind"]
