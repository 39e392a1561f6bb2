"""Policies that are shown which actions are legal: sb3-contrib's MaskableActorCriticPolicy family."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg.policies.plain import PlainKind


class MaskedKind(PlainKind):
    """A policy over the legal actions alone: π(a∣s) ∝ exp(h(s,a)) · 1[a legal in s].

    The masks are those of the environments' ``action_masks()``, sb3-contrib's convention: True where an action is legal, for
    MultiDiscrete one after the other, for MultiBinary two a bit. They are kept with the steps as ``action_masks``.
    """

    base: type[BasePolicy] = MaskableActorCriticPolicy
    has_context = True

    @classmethod
    def make_policy(
        cls,
        policy_class: Any,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        use_sde: bool,
        **policy_kwargs: Any,
    ) -> Any:
        """contrib's take no ``use_sde``, which is for continuous actions."""
        if isinstance(action_space, spaces.Box):
            raise ValueError(f"{policy_class.__name__} masks discrete actions, but {action_space} is continuous.")
        return policy_class(observation_space, action_space, lr_schedule, **policy_kwargs)

    def check_env(self, env: VecEnv) -> None:
        """Refuse environments that do not say what is legal."""
        if not is_masking_supported(env):
            raise ValueError(
                f"{type(self.policy).__name__} needs environments with a method action_masks(): add one, or wrap them in "
                "sb3_contrib.common.wrappers.ActionMasker."
            )

    def _begin(self, env: VecEnv) -> None:
        super()._begin(env)
        space, self._env, self._n_rollout_steps = self.policy.action_space, env, 0
        sizes = [space.n] if isinstance(space, spaces.Discrete) else getattr(space, "nvec", None)
        sizes = [2] * int(np.prod(space.shape)) if sizes is None else sizes  # type: ignore[arg-type]
        # Where the logits of each categorical begin, and how many there are in all
        self._begins, self._n_logits = np.cumsum([0, *sizes[:-1]]), int(np.sum(sizes))

    def _observe(self, episode_starts: np.ndarray) -> Mapping[str, np.ndarray]:
        of_envs = [np.asarray(mask, dtype=bool).ravel() for mask in self._env.env_method("action_masks")]
        for env, mask in enumerate(of_envs):
            if len(mask) != self._n_logits:
                raise ValueError(
                    f"action_masks() of environment {env} gives {len(mask)} values, but {self.policy.action_space} needs "
                    f"{self._n_logits}: one for each action, MultiDiscrete's dimensions one after the other, two for each bit."
                )
        masks = np.stack(of_envs)
        has_legal = np.logical_or.reduceat(masks, self._begins, axis=1).all(axis=1)
        if not has_legal.all():
            raise ValueError(
                f"No action is legal in environment {int(has_legal.argmin())} at step {self._n_rollout_steps} of the rollout: "
                "action_masks() has to leave one in every dimension, or the episode has to end there."
            )
        self._n_rollout_steps += 1
        return {**super()._observe(episode_starts), "action_masks": masks}

    def _make_outputs(self) -> Callable[[Any, Mapping[str, np.ndarray]], np.ndarray]:
        outputs = super()._make_outputs()
        return lambda obs, context: np.where(context["action_masks"], outputs(obs, context), -np.inf)

    def _arguments(self, context: Mapping[str, Any]) -> dict[str, Any]:
        return {"action_masks": context["action_masks"]}

    def _divergence(self, old: Any, new: Any) -> th.Tensor:
        """Over the legal actions, summed over the dimensions of the action. SB3's knows no masks."""
        divergence: Any = 0.0
        for p, q in zip(*(getattr(x, "distributions", None) or [x.distribution] for x in (old, new)), strict=True):
            of_action = p.probs * (p.logits - q.logits)
            divergence = divergence + th.where(p.masks, of_action, 0.0).sum(dim=1)
        return divergence  # type: ignore[no-any-return]
