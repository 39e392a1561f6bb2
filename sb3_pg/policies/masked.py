"""Policies that are shown which actions are legal: sb3-contrib's MaskableActorCriticPolicy family."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import (
    MaskableBernoulliDistribution,
    MaskableCategorical,
    MaskableCategoricalDistribution,
    MaskableMultiCategoricalDistribution,
)
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv
from torch.distributions import Categorical

from sb3_pg.policies.plain import PlainKind

_OF_CONTRIB = (MaskableCategoricalDistribution, MaskableMultiCategoricalDistribution, MaskableBernoulliDistribution)


class MaskedCategorical(MaskableCategorical):
    """A categorical over the legal values alone: the others have probability 0 and no gradient, to the bit.

    contrib's normalises the logits of all values before it masks some, and takes −10⁸ for −∞: large logits lose their digits,
    and rounding errors reach the logits of illegal values.
    """

    def __init__(self, logits: th.Tensor):
        self._original_logits, self.masks = logits, None
        Categorical.__init__(self, logits=logits)

    def apply_masking(self, masks: Any) -> None:
        """Forbid the values where ``masks``, of the shape of the logits, is False; None forbids nothing."""
        logits = self._original_logits
        self.masks = None if masks is None else th.as_tensor(masks, dtype=th.bool, device=logits.device).reshape(logits.shape)
        if self.masks is not None:
            logits = logits.masked_fill(~self.masks, -th.inf)
            logits = logits - logits.amax(dim=-1, keepdim=True).detach()  # the same policy, with more digits
        self.__dict__.pop("probs", None)  # those of other logits
        Categorical.__init__(self, logits=logits)

    def entropy(self) -> th.Tensor:
        """Of the legal values."""
        return Categorical.entropy(self)  # type: ignore[no-any-return, no-untyped-call]


class MaskedCategoricalDistribution(MaskableCategoricalDistribution):
    """contrib's distribution for Discrete actions, of a :class:`MaskedCategorical`."""

    def proba_distribution(self, action_logits: th.Tensor) -> Any:
        """Set the logits, ``(n, n_actions)``."""
        self.distribution = MaskedCategorical(action_logits.view(-1, self.action_dim))
        return self


class MaskedMultiCategoricalDistribution(MaskableMultiCategoricalDistribution):
    """contrib's distribution for MultiDiscrete actions, and MultiBinary ones as categoricals of two, of the same kind."""

    def proba_distribution(self, action_logits: th.Tensor) -> Any:
        """Set the logits, ``(n, n_logits)``."""
        parts = th.split(action_logits.view(-1, sum(self.action_dims)), list(self.action_dims), dim=1)
        self.distributions = [MaskedCategorical(part) for part in parts]
        return self


def make_masked_distribution(action_space: spaces.Space) -> MaskedCategoricalDistribution | MaskedMultiCategoricalDistribution:
    """The distribution over the legal actions of a Discrete, MultiDiscrete or MultiBinary space."""
    if isinstance(action_space, spaces.Discrete):
        return MaskedCategoricalDistribution(int(action_space.n))
    return MaskedMultiCategoricalDistribution(_n_choices(action_space))


def _n_choices(action_space: spaces.Space) -> list[int]:
    """Values of each categorical that an action consists of."""
    if isinstance(action_space, spaces.Discrete):
        return [int(action_space.n)]
    is_multi_discrete = isinstance(action_space, spaces.MultiDiscrete)
    return action_space.nvec.tolist() if is_multi_discrete else [2] * int(np.prod(action_space.shape))  # type: ignore


def _has_legal(masks: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Whether a value of every categorical is legal, ``(n,)``; ``begins``: where their logits begin."""
    return np.asarray(np.logical_or.reduceat(masks, begins, axis=1).all(axis=1))


class MaskedKind(PlainKind):
    """A policy over the legal actions alone: π(a∣s) ∝ exp(h(s,a)) · 1[a legal in s].

    The masks are those of the environments' ``action_masks()``, sb3-contrib's convention: True where an action is legal, for
    MultiDiscrete one after the other, for MultiBinary two a bit. They are kept with the steps as ``action_masks``.
    """

    base: type[BasePolicy] = MaskableActorCriticPolicy
    has_context = True

    @classmethod
    def make_policy(cls, policy_class: Any, *args: Any, use_sde: bool = False, **policy_kwargs: Any) -> Any:
        """contrib's take no ``use_sde``, which is for continuous actions."""
        _, action_space, _ = args
        if isinstance(action_space, spaces.Box):
            raise ValueError(f"{policy_class.__name__} masks discrete actions, but {action_space} is continuous.")
        policy = super().make_policy(policy_class, *args, **policy_kwargs)
        if type(policy.action_dist) in _OF_CONTRIB:
            policy.action_dist = make_masked_distribution(action_space)
        return policy

    def check_env(self, env: VecEnv) -> None:
        """Refuse environments that do not say what is legal."""
        if not is_masking_supported(env):
            raise ValueError(
                f"{type(self.policy).__name__} needs environments with a method action_masks(): add one, or wrap them in "
                "sb3_contrib.common.wrappers.ActionMasker."
            )

    def ask(self, env: VecEnv) -> dict[str, Any]:
        """Their masks."""
        self.check_env(env)
        return {"action_masks": get_action_masks(env)}

    def check_masks(self, action_masks: Any) -> None:
        """Of a batch of observations or a single one."""
        masks, sizes = np.asarray(action_masks, dtype=bool), _n_choices(self.policy.action_space)
        if masks.size % sum(sizes):
            raise ValueError(f"action_masks have {masks.size} values, but {self.policy.action_space} needs {sum(sizes)} each.")
        if not _has_legal(masks.reshape(-1, sum(sizes)), np.cumsum([0, *sizes[:-1]])).all():
            raise ValueError("action_masks leave no action legal: one has to be in every dimension.")

    def _begin(self, env: VecEnv) -> None:
        super()._begin(env)
        self._env, self._n_rollout_steps, sizes = env, 0, _n_choices(self.policy.action_space)
        # Where the logits of each categorical begin, and how many there are in all
        self._begins, self._n_logits = np.cumsum([0, *sizes[:-1]]), sum(sizes)

    def _observe(self, episode_starts: np.ndarray) -> Mapping[str, np.ndarray]:
        asked = self._env.env_method("action_masks")
        if isinstance(asked, np.ndarray):  # those of all environments at once
            asked = asked.reshape(len(asked), -1)
        for env, mask in enumerate(asked[:1] if isinstance(asked, np.ndarray) else asked):
            if np.size(mask) != self._n_logits:
                raise ValueError(
                    f"action_masks() of environment {env} gives {np.size(mask)} values, but {self.policy.action_space} needs "
                    f"{self._n_logits}: one for each action, MultiDiscrete's dimensions one after the other, two for each bit."
                )
        masks = np.asarray(asked, dtype=bool).reshape(len(asked), -1)
        has_legal = _has_legal(masks, self._begins)
        if not has_legal.all():
            raise ValueError(
                f"No action is legal in environment {int(has_legal.argmin())} at step {self._n_rollout_steps} of the rollout: "
                "action_masks() has to leave one in every dimension, or the episode has to end there."
            )
        self._n_rollout_steps += 1
        return {**super()._observe(episode_starts), "action_masks": masks}

    def _make_outputs(self, n_envs: int) -> Callable[[Any, Mapping[str, np.ndarray]], np.ndarray]:
        outputs = super()._make_outputs(n_envs)
        return lambda obs, context: np.where(context["action_masks"], outputs(obs, context), -np.inf)

    def _arguments(self, context: Mapping[str, Any]) -> dict[str, Any]:
        return {"action_masks": context["action_masks"]}

    def _divergence(self, old: Any, new: Any) -> th.Tensor:
        """Over the legal actions, summed over the dimensions of the action. SB3's knows no masks."""
        divergence: Any = 0.0
        for p, q in zip(*(getattr(x, "distributions", None) or [x.distribution] for x in (old, new)), strict=True):
            divergence = divergence + (p.probs * (p.logits - q.logits).masked_fill(~p.masks, 0.0)).sum(dim=1)
        return divergence  # type: ignore[no-any-return]
