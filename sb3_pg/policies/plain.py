"""Policies without memory or masks: SB3's ActorCriticPolicy family and what users derive from it."""

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg.losses import pseudo_entropy
from sb3_pg.policies import kind
from sb3_pg.policies.kernels import differentiable, twice_differentiable
from sb3_pg.policies.kind import PolicyKind, Sample, Sampler
from sb3_pg.policies.sampling import (
    draw_with_noise,
    is_altered,
    is_plain_mlp,
    numpy_features,
    numpy_outputs,
    takes_noise,
    torch_outputs,
)
from sb3_pg.policies.steps import Rows, Steps, map_obs, n_obs, take_obs

if TYPE_CHECKING:
    from stable_baselines3.common.buffers import RolloutBuffer

    from sb3_pg.rollouts.buffers import EpisodeRolloutBuffer

# SB3's get_distribution skips an overridden extract_features, its forward and evaluate_actions skip get_distribution: who
# overrides one of them has a policy whose own forward and evaluate_actions have to be asked, as SB3's algorithms do
_NOT_SHARED = ("extract_features", "get_distribution")


class PlainKind(PolicyKind):
    """A policy whose steps can be scored in any order, each from its observation alone."""

    #: The class whose methods a user's policy may have replaced
    base: type[BasePolicy] = ActorCriticPolicy

    def overrides(self, *names: str) -> bool:
        """Whether the policy replaces any of these methods of its base: in a subclass or on the instance."""
        policy, base = self.policy, self.base
        return any(name in vars(policy) or getattr(type(policy), name, None) is not getattr(base, name) for name in names)

    # Acting

    def make_sampler(self, env: VecEnv, through_forward: bool = False) -> Sampler:
        """The cheapest way to draw actions that the policy allows (see policies/sampling.py)."""
        self._begin(env)
        return self.remake_sampler(env, through_forward)

    def remake_sampler(self, env: VecEnv, through_forward: bool = False) -> Sampler:
        """As the policy is now."""
        policy = self.policy
        if through_forward or self.overrides("forward", "__call__", *_NOT_SHARED) or is_altered(policy):
            return self._sample_forward
        if self.overrides("_get_action_dist_from_latent") or not takes_noise(policy.action_dist):
            return self._sample_distribution
        outputs, draw = self._make_outputs(env.num_envs), draw_with_noise(policy, env.num_envs)

        def sample(obs: Any, episode_starts: np.ndarray) -> Sample:
            context = self._observe(episode_starts)
            return Sample(draw(outputs(obs, context)), None, None, context)

        return sample

    def _sample_forward(self, obs: Any, episode_starts: np.ndarray) -> Sample:
        context = self._observe(episode_starts)
        with th.no_grad():
            actions, values, log_probs = self._forward(obs_as_tensor(obs, self.policy.device), context)
        return Sample(actions.cpu().numpy(), values, log_probs, context)

    def _sample_distribution(self, obs: Any, episode_starts: np.ndarray) -> Sample:
        context = self._observe(episode_starts)
        with th.no_grad():
            actions = self._act(obs_as_tensor(obs, self.policy.device), context).get_actions()
        return Sample(actions.cpu().numpy().reshape(-1, *self.policy.action_space.shape), context=context)  # type: ignore[misc]

    def _make_outputs(self, n_envs: int) -> Callable[[Any, Mapping[str, np.ndarray]], np.ndarray]:
        """From observations and their context to logits or means, ``(n_envs, n_outputs)``."""
        if is_plain_mlp(self.policy):
            features, networks = numpy_features(self.policy), numpy_outputs(self.policy, n_envs)
            return lambda obs, context: networks(features(obs))
        return self._torch_outputs

    def _torch_outputs(self, obs: Any, context: Mapping[str, np.ndarray]) -> np.ndarray:
        with th.no_grad():
            return torch_outputs(self._act(obs_as_tensor(obs, self.policy.device), context))

    # What other kinds differ in

    def _begin(self, env: VecEnv) -> None:
        """A rollout begins."""

    def _observe(self, episode_starts: np.ndarray) -> Mapping[str, np.ndarray]:
        """What the policy is shown at a step beside the observation: :attr:`Sample.context`."""
        return {}

    def _arguments(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """The context as the policy's methods take it."""
        return {}

    def _forward(self, obs: Any, context: Mapping[str, Any]) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Actions, values and log-probabilities at a step of a rollout."""
        actions, values, log_probs = self.policy(obs, **self._arguments(context))
        return actions, values, log_probs

    def _act(self, obs: Any, context: Mapping[str, Any]) -> Any:
        """The distribution of the actions at a step of a rollout."""
        return self.policy.get_distribution(obs, **self._arguments(context))

    def _divergence(self, old: Any, new: Any) -> th.Tensor:
        """KL(old ∥ new) of two distributions: one a dimension of the action where these are independent, summed, ``(n,)``."""
        divergence: th.Tensor = kl_divergence(old, new)
        return divergence.reshape(len(divergence), -1).sum(dim=1)

    # Scoring

    def log_prob_and_entropy(self, steps: Steps) -> tuple[th.Tensor, th.Tensor]:
        """Of the policy's own ``evaluate_actions`` where it has one, else the same without the critic."""
        return self._score(steps)

    def _score(self, steps: Steps, *memory: Any) -> tuple[th.Tensor, th.Tensor]:
        """``memory``: the arguments that a policy with memory takes beside the observations."""
        log_prob: th.Tensor
        entropy: th.Tensor | None
        arguments = self._arguments(steps.context)
        with differentiable(self.policy):
            if self.overrides("evaluate_actions", *_NOT_SHARED):
                _, log_prob, entropy = self._evaluate_actions(steps.observations, steps.actions, *memory, **arguments)
            else:
                distribution = self._distribution(steps.observations, *memory, **arguments)
                log_prob, entropy = distribution.log_prob(steps.actions), distribution.entropy()
        return log_prob, pseudo_entropy(log_prob) if entropy is None else entropy

    def _evaluate_actions(self, obs: Any, actions: th.Tensor, *memory: Any, **arguments: Any) -> Any:
        return self.policy.evaluate_actions(obs, actions, *memory, **arguments)

    def _distribution(self, obs: Any, *memory: Any, **arguments: Any) -> Any:
        return self.policy.get_distribution(obs, *memory, **arguments)

    def values(self, steps: Steps) -> th.Tensor:
        """What the policy's own ``evaluate_actions``, and so A2C, says V is."""
        with differentiable(self.policy):
            return self._evaluate_critic(steps.observations)

    def value_head(self) -> th.nn.Linear | None:
        """SB3's ``value_net``, unless the policy has its own way to V."""
        head = getattr(self.policy, "value_net", None)
        own_way = self.overrides("predict_values", "evaluate_actions", *_NOT_SHARED)
        if own_way or type(head) is not th.nn.Linear or head._forward_hooks:
            return None
        trained = {id(p) for p in self.critic_parameters()}
        return head if all(id(p) in trained for p in head.parameters()) else None

    def _evaluates_values(self) -> bool:
        """Whether V is that of the policy's own ``evaluate_actions``: SB3's and contrib's ``predict_values`` skip both."""
        return self.overrides("extract_features", "evaluate_actions") and not self.overrides("predict_values")

    def _evaluate_critic(self, obs: Any) -> th.Tensor:
        if self._evaluates_values():
            values = self.policy.evaluate_actions(obs, self._zero_actions(n_obs(obs)))[0]
        else:
            values = self.policy.predict_values(obs)
        flat: th.Tensor = values.flatten()
        return flat

    def show(self, steps: Steps) -> None:
        """To the actor's networks."""
        self.log_prob_and_entropy(steps)

    def check_divergence(self) -> None:
        """Refuse policies whose log-probabilities come from somewhere else than ``get_distribution``."""
        if self.overrides("evaluate_actions", *_NOT_SHARED):
            raise ValueError(
                f"NaturalPG needs the distribution that log π comes from, and {type(self.policy).__name__} overrides one of "
                f"{', '.join(('evaluate_actions', *_NOT_SHARED))}: use VanillaPG, or override _get_action_dist_from_latent."
            )

    def kl_divergence(self, steps: Steps) -> th.Tensor:
        """Between the distribution, held fixed, and itself."""
        return self._divergence_from_itself(steps)

    def _divergence_from_itself(self, steps: Steps, *memory: Any) -> th.Tensor:
        arguments = self._arguments(steps.context)
        with twice_differentiable(self.policy):
            with th.no_grad():
                old = copy(self._distribution(steps.observations, *memory, **arguments))
            return self._divergence(old, self._distribution(steps.observations, *memory, **arguments))

    def fill_log_probs(self, buffer: "EpisodeRolloutBuffer", rows: slice) -> None:
        """One batched pass over the steps in use."""
        self._fill(buffer.log_probs, buffer, rows, lambda steps: self.log_prob_and_entropy(steps)[0])

    def fill_values(self, buffer: "EpisodeRolloutBuffer", rows: slice, goes_on: bool) -> None:
        """One batched pass over the steps in use."""
        self._fill(buffer.values, buffer, rows, self.values)

    def _fill(
        self, field: np.ndarray, buffer: "EpisodeRolloutBuffer", rows: slice, function: Callable[[Steps], th.Tensor]
    ) -> None:
        """``function`` of the steps in use, environment by environment, into a field of the buffer; 0 elsewhere."""
        field[rows] = 0.0
        flat = field.reshape(-1)  # a view
        with th.no_grad():
            for part, steps in self._take_chunks(buffer, self._by_env(buffer, rows)[buffer.mask[rows].T]):
                flat[part] = function(steps).cpu().numpy()

    def _by_env(self, buffer: "EpisodeRolloutBuffer", rows: slice) -> np.ndarray:
        """Steps of the buffer as :meth:`_take_steps` counts them, ``(n_envs, n_steps)``."""
        return np.arange(buffer.mask.size).reshape(buffer.mask.shape)[rows].T

    def _take_chunks(self, buffer: "EpisodeRolloutBuffer", rows: np.ndarray) -> Iterable[tuple[np.ndarray, Steps]]:
        """Rows of the buffer in chunks, of which one at a time is copied."""
        return ((rows[chunk], self._take_steps(buffer, rows[chunk])) for chunk in _slices(len(rows)))

    def _take_steps(self, buffer: "EpisodeRolloutBuffer", rows: np.ndarray) -> Steps:
        """Rows of the buffer, counted through its environments and then through time."""
        steps, envs = np.divmod(rows, buffer.n_envs)

        def take(x: np.ndarray) -> Any:
            return x[steps, envs]

        return self.to_steps(map_obs(take, buffer.observations), take(buffer.actions), map_obs(take, dict(buffer.context)))

    def bootstrap_values(self, buffer: "RolloutBuffer", steps: np.ndarray, envs: np.ndarray, observations: Any) -> th.Tensor:
        """V of the observations alone."""
        with th.no_grad():
            chunks = [take_obs(observations, chunk) for chunk in _slices(n_obs(observations))]
            return th.cat([self._evaluate_critic(obs_as_tensor(obs, self.policy.device)).cpu() for obs in chunks])

    # Dividing

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

    def _evaluate(self, obs: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        values, log_prob, _ = self.policy.evaluate_actions(obs, actions)
        return values, log_prob


def _slices(n: int) -> Iterable[slice]:
    return (slice(start, start + kind.CHUNK_SIZE) for start in range(0, n, kind.CHUNK_SIZE))
