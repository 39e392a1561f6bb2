"""Actions as policies choose them and as environments take them: SB3's policies count from 0, in one dimension."""

from typing import Any

import numpy as np
from gymnasium import spaces


def policy_action_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The space a policy for these actions is made for: the space itself, unless it begins elsewhere than at 0 or has rows.

    :param space: of the environment's actions
    :return: the same choices, counted from 0 and in one dimension
    """
    if isinstance(space, spaces.Discrete) and space.start != 0:
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete) and (space.nvec.ndim != 1 or np.any(_starts(space))):
        return spaces.MultiDiscrete(space.nvec.ravel())
    if isinstance(space, spaces.MultiBinary) and len(space.shape) != 1:
        return spaces.MultiBinary(int(np.prod(space.shape)))
    return space


def to_env_actions(actions: np.ndarray, space: spaces.Space[Any]) -> np.ndarray:
    """Actions of a policy as the environment takes them, where :func:`policy_action_space` is another space.

    :param actions: of the policy, ``(*policy_action_space(space).shape)`` or a batch of such
    :param space: of the environment's actions
    :return: ``(*space.shape)``, or a batch of such
    """
    if isinstance(space, spaces.Discrete):
        return np.asarray(actions + space.start)  # an array also of a single action
    if isinstance(space, spaces.MultiDiscrete):
        actions = actions + np.ravel(_starts(space))
    return actions.reshape(*actions.shape[:-1], *space.shape)  # type: ignore[misc]


def _starts(space: spaces.MultiDiscrete) -> Any:
    return getattr(space, "start", 0)  # spaces that an old gymnasium has saved have none
