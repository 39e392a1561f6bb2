"""What a rollout needs of a policy and nothing more: observations in, actions out.

SB3's rollout calls ``policy(obs)`` at every step, which also evaluates the critic and the log-probability. Neither is needed
before the rollout is over, and then one batched pass gives them. :func:`make_sampler` picks, once a rollout, the cheapest of
these ways to the same distribution:

1. ``policy.forward``, if the policy overrides it or what it may differ in from ``get_distribution``: its values and
   log-probabilities are then the ones used;
2. ``policy.get_distribution(obs).get_actions()``: gSDE and distributions of the user's own;
3. the logits or means from ``policy.get_distribution(obs)`` plus noise drawn in advance: images, GPUs, any layers;
4. the same with the logits or means computed in NumPy: SB3's MLP policies on vectors and dictionaries of vectors, on the CPU.

The last two draw the same actions from the same seed, up to rounding.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_pg.policies.kind import Sample, Sampler


def make_sampler(policy: ActorCriticPolicy, n_envs: int, through_forward: bool = False) -> Sampler:
    """Choose the cheapest way to draw actions from a policy. Make a new one for every rollout.

    :param policy: the policy, in the mode it is to act in
    :param n_envs: observations a call
    :param through_forward: call ``policy.forward`` even if the policy does not override it
    :return: the sampler, to which the beginnings of episodes do not matter
    """
    if through_forward or overrides(policy, "forward", "__call__", *NOT_SHARED) or _is_altered(policy):
        return _forward_sampler(policy)
    if (
        overrides(policy, "_get_action_dist_from_latent")
        or type(policy.action_dist) not in _NOISE
        or vars(policy.action_dist).keys() & {"proba_distribution", "get_actions", "sample"}
    ):
        return _distribution_sampler(policy)
    return _noise_sampler(policy, n_envs, _numpy_outputs(policy) if _is_plain_mlp(policy) else _torch_outputs(policy))


# SB3's get_distribution skips an overridden extract_features, its forward and evaluate_actions skip get_distribution: who
# overrides one of them has a policy whose own forward and evaluate_actions have to be asked, as SB3's algorithms do
NOT_SHARED = ("extract_features", "get_distribution")


def overrides(policy: nn.Module, *names: str) -> bool:
    """Whether the policy replaces any of these methods of SB3's: in a subclass or on the instance."""
    return any(
        name in vars(policy) or getattr(type(policy), name, None) is not getattr(ActorCriticPolicy, name) for name in names
    )


def _is_altered(module: nn.Module) -> bool:
    """Whether calling the module runs anything beside the code of its class: hooks, compiled code, replaced methods."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._compiled_call_impl is not None
        or vars(module).keys() & {"forward", "forward_actor"}
    )


def _forward_sampler(policy: ActorCriticPolicy) -> Sampler:
    def sample(obs: Any, episode_starts: np.ndarray | None = None) -> Sample:
        with th.no_grad():
            actions, values, log_probs = policy(obs_as_tensor(obs, policy.device))
        return Sample(actions.cpu().numpy(), values, log_probs)

    return sample


def _distribution_sampler(policy: ActorCriticPolicy) -> Sampler:
    shape = (-1, *policy.action_space.shape)  # type: ignore[misc]

    def sample(obs: Any, episode_starts: np.ndarray | None = None) -> Sample:
        with th.no_grad():
            actions = policy.get_distribution(obs_as_tensor(obs, policy.device)).get_actions()
        return Sample(actions.cpu().numpy().reshape(shape))

    return sample


# Actions from the outputs of the actor and noise of the same shape. Gumbel noise makes the argmax of logits a categorical
# sample, logistic noise makes their sign a Bernoulli sample.

_NOISE: dict[type, str] = {
    CategoricalDistribution: "gumbel",
    MultiCategoricalDistribution: "gumbel",
    BernoulliDistribution: "logistic",
    DiagGaussianDistribution: "standard_normal",
}

Outputs = Callable[[Any], np.ndarray]


def _noise_sampler(policy: ActorCriticPolicy, n_envs: int, outputs: Outputs) -> Sampler:
    """``outputs`` gives the logits or means, ``(n_envs, n_outputs)``."""
    to_actions = _make_to_actions(policy)
    # A generator for each rollout, seeded from torch's, which the model's seed determines
    rng = np.random.default_rng(int(th.randint(2**63 - 1, ())))
    draw_noise = getattr(rng, _NOISE[type(policy.action_dist)])
    noise: Iterator[np.ndarray] = iter(())
    shape = (n_envs, *policy.action_space.shape)  # type: ignore[misc]

    def sample(obs: Any, episode_starts: np.ndarray | None = None) -> Sample:
        nonlocal noise
        out = outputs(obs)
        step_noise = next(noise, None)
        if step_noise is None:
            # For many steps at once, as long as that is little memory
            noise = iter(draw_noise(size=(max(1, 2048 // out.size), *out.shape)).astype(np.float32))
            step_noise = next(noise)
        return Sample(to_actions(out, step_noise).reshape(shape))

    return sample


def _make_to_actions(policy: ActorCriticPolicy) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    distribution = policy.action_dist
    if isinstance(distribution, CategoricalDistribution):
        return lambda logits, gumbel: (logits + gumbel).argmax(axis=1)
    if isinstance(distribution, MultiCategoricalDistribution):
        splits = np.cumsum(distribution.action_dims)[:-1]
        return lambda logits, gumbel: np.stack(
            [part.argmax(axis=1) for part in np.split(logits + gumbel, splits, axis=1)], axis=1
        )
    if isinstance(distribution, BernoulliDistribution):
        return lambda logits, logistic: (logits + logistic > 0.0).astype(np.float32)
    if policy.log_std.device.type == "cpu":
        log_std = policy.log_std.detach().numpy()  # a view: what changes it in place is seen at once
        return lambda means, normal: means + np.exp(log_std) * normal
    return lambda means, normal: means + policy.log_std.detach().exp().cpu().numpy() * normal


def _torch_outputs(policy: ActorCriticPolicy) -> Outputs:
    def outputs(obs: Any) -> np.ndarray:
        with th.no_grad():
            distribution: Any = policy.get_distribution(obs_as_tensor(obs, policy.device)).distribution
            if isinstance(distribution, list):
                out = th.cat([part.logits for part in distribution], dim=1)
            else:
                out = distribution.mean if isinstance(distribution, th.distributions.Normal) else distribution.logits
        return out.cpu().numpy()

    return outputs


# In place: activation(x, x)
_ACTIVATIONS: dict[type[nn.Module], Callable[[np.ndarray, np.ndarray], Any]] = {
    nn.Tanh: np.tanh,
    nn.ReLU: lambda x, out: np.maximum(x, 0.0, out=out),
}


def _is_plain_mlp(policy: ActorCriticPolicy) -> bool:
    """Whether the actor is a chain of linear layers and known activations on flattened observations, and nothing else.

    Types are compared exactly: a subclass may do anything.
    """
    extractor, space, mlp = policy.pi_features_extractor, policy.observation_space, policy.mlp_extractor
    if type(extractor) is FlattenExtractor:
        parts: list[tuple[spaces.Space[Any], nn.Module]] = [(space, extractor.flatten)]
    elif type(extractor) is CombinedExtractor and isinstance(space, spaces.Dict):
        parts = [(space[key], module) for key, module in extractor.extractors.items()]
    else:
        return False
    if (
        type(mlp) is not MlpExtractor
        or type(mlp.policy_net) is not nn.Sequential
        or not all(isinstance(part, spaces.Box) and type(module) is nn.Flatten for part, module in parts)
        or any(is_image_space(part, normalized_image=not policy.normalize_images) for part, _ in parts)
    ):
        return False
    layers = [*mlp.policy_net, policy.action_net]
    return (
        all(type(layer) is nn.Linear for layer in layers[::2])
        and all(type(layer) in _ACTIVATIONS for layer in layers[1::2])
        and not any(_is_altered(module) for module in (extractor, *(m for _, m in parts), mlp, mlp.policy_net, *layers))
        and all(p.dtype == th.float32 and p.device.type == "cpu" for layer in layers for p in layer.parameters())
    )


def _numpy_outputs(policy: ActorCriticPolicy) -> Outputs:
    modules = [*policy.mlp_extractor.policy_net, policy.action_net]
    # Views of the weights: what changes them in place is seen at once
    weights = [linear.weight.detach().numpy().T for linear in modules[::2]]
    biases = [0.0 if linear.bias is None else linear.bias.detach().numpy() for linear in modules[::2]]
    activations = [*(_ACTIVATIONS[type(module)] for module in modules[1::2]), None]
    layers = list(zip(weights, biases, activations, strict=True))
    extractor = policy.pi_features_extractor
    keys = list(extractor.extractors) if isinstance(extractor, CombinedExtractor) else None

    def flatten(obs: np.ndarray) -> np.ndarray:
        return np.asarray(obs, dtype=np.float32).reshape(len(obs), -1)

    def outputs(obs: Any) -> np.ndarray:
        x = flatten(obs) if keys is None else np.concatenate([flatten(obs[key]) for key in keys], axis=1)
        for weight, bias, activation in layers:
            x = x.dot(weight)
            x += bias
            if activation is not None:
                activation(x, x)
        return x

    return outputs
