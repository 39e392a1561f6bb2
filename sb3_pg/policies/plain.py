"""Policies without memory or masks: SB3's ActorCriticPolicy family and what users derive from it."""

from collections.abc import Iterable
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg.losses import pseudo_entropy
from sb3_pg.policies import kind
from sb3_pg.policies.kind import PolicyKind, Sampler
from sb3_pg.policies.sampling import NOT_SHARED, make_sampler, overrides
from sb3_pg.policies.steps import Rows, Steps, map_obs, n_obs, take_obs

if TYPE_CHECKING:
    from stable_baselines3.common.buffers import RolloutBuffer

    from sb3_pg.rollouts.buffers import EpisodeRolloutBuffer


class PlainKind(PolicyKind):
    """A policy whose steps can be scored in any order, each from its observation alone."""

    def make_sampler(self, env: VecEnv, through_forward: bool = False) -> Sampler:
        """The cheapest way to draw actions that the policy allows."""
        return make_sampler(self.policy, env.num_envs, through_forward)

    def log_prob_and_entropy(self, steps: Steps) -> tuple[th.Tensor, th.Tensor]:
        """Of the policy's own ``evaluate_actions`` where it has one, else the same without the critic."""
        log_prob: th.Tensor
        entropy: th.Tensor | None
        if overrides(self.policy, "evaluate_actions", *NOT_SHARED):
            _, log_prob, entropy = self.policy.evaluate_actions(steps.observations, steps.actions)
        else:
            distribution = self.policy.get_distribution(steps.observations)
            log_prob, entropy = distribution.log_prob(steps.actions), distribution.entropy()
        return log_prob, pseudo_entropy(log_prob) if entropy is None else entropy

    def values(self, steps: Steps) -> th.Tensor:
        """What the policy's own ``evaluate_actions``, and so A2C, says V is."""
        return self._evaluate_critic(steps.observations)

    def _evaluate_critic(self, obs: Any) -> th.Tensor:
        if overrides(self.policy, "extract_features", "evaluate_actions") and not overrides(self.policy, "predict_values"):
            # SB3's predict_values skips both
            values = self.policy.evaluate_actions(obs, self._zero_actions(n_obs(obs)))[0]
        else:
            values = self.policy.predict_values(obs)
        return values.flatten()

    def kl_divergence(self, steps: Steps) -> th.Tensor:
        """One divergence a dimension of the action where these are independent, summed."""
        with th.no_grad():
            old = copy(self.policy.get_distribution(steps.observations))
        divergence: th.Tensor = kl_divergence(old, self.policy.get_distribution(steps.observations))
        return divergence.reshape(len(divergence), -1).sum(dim=1)

    def check_divergence(self) -> None:
        """Refuse policies whose log-probabilities come from somewhere else than ``get_distribution``."""
        if overrides(self.policy, "evaluate_actions", *NOT_SHARED):
            raise ValueError(
                f"NaturalPG needs the distribution that log π comes from, and {type(self.policy).__name__} overrides one of "
                f"{', '.join(('evaluate_actions', *NOT_SHARED))}: use VanillaPG, or override _get_action_dist_from_latent."
            )

    def fill(self, buffer: "EpisodeRolloutBuffer", with_values: bool) -> None:
        """One batched pass over the steps in use, in the order of time."""
        n_rows = buffer.buffer_size * buffer.n_envs
        observations = map_obs(lambda a: a.reshape(n_rows, *a.shape[2:]), buffer.observations)
        actions = buffer.actions.reshape(n_rows, -1)
        values, log_probs = buffer.values.reshape(-1), buffer.log_probs.reshape(-1)  # views
        values[:] = log_probs[:] = 0.0
        used = np.flatnonzero(buffer.mask)
        with th.no_grad():
            for chunk in _slices(len(used)):
                rows = used[chunk]
                steps = self.to_steps(take_obs(observations, rows), actions[rows], {})
                log_probs[rows] = self.log_prob_and_entropy(steps)[0].cpu().numpy()
                if with_values:
                    values[rows] = self.values(steps).cpu().numpy()

    def bootstrap_values(self, buffer: "RolloutBuffer", steps: np.ndarray, envs: np.ndarray, observations: Any) -> th.Tensor:
        """V of the observations alone."""
        with th.no_grad():
            chunks = [take_obs(observations, chunk) for chunk in _slices(n_obs(observations))]
            tensors = (map_obs(lambda x: th.as_tensor(x, device=self.policy.device), chunk) for chunk in chunks)
            return th.cat([self._evaluate_critic(obs).cpu() for obs in tensors])

    def chunks(self, steps: Steps) -> Iterable[Rows]:
        """Slices, which are views."""
        return _slices(len(steps))

    def minibatches(self, steps: Steps, size: int, shuffled: bool = True) -> Iterable[Rows]:
        """Parts of equal size: no remainder of one sample, which would be noise (and batch norm refuses)."""
        n_parts = -(-len(steps) // size)
        if n_parts == 1:
            return [slice(None)]
        device = steps.actions.device
        order = th.randperm(len(steps), device=device) if shuffled else th.arange(len(steps), device=device)
        return order.tensor_split(n_parts)

    def excerpt(self, steps: Steps, size: int, shuffled: bool = False) -> Rows:
        """At random where a pattern in time must not matter: every second step may see one half of a two-phase environment."""
        return th.randperm(len(steps))[:size] if shuffled else slice(None, None, -(-len(steps) // size))

    def _evaluate_zeros(self, obs: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        values, log_prob, _ = self.policy.evaluate_actions(obs, actions)
        return values, log_prob


def _slices(n: int) -> Iterable[slice]:
    return (slice(start, start + kind.CHUNK_SIZE) for start in range(0, n, kind.CHUNK_SIZE))
