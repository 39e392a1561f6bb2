"""What a rollout needs of a policy and nothing more: observations in, actions out.

SB3's rollout calls ``policy(obs)`` at every step, which also evaluates the critic and the log-probability. Neither is needed
before the rollout is over, and then one batched pass gives them. So :func:`make_sampler` offers three paths, from the most
general to the fastest; which one a policy takes is decided once a rollout and never changes the distribution of the actions:

1. through ``policy.forward``, if the policy overrides it: its values and log-probabilities are then the ones used;
2. through ``policy.get_distribution``: every other policy of SB3 (images, dictionaries, gSDE, GPU, own layers);
3. in NumPy on views of the weights: SB3's own MLP policies on flat observations, on the CPU.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

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
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn


class Sample(NamedTuple):
    """Actions of one vector step, as SB3's policies return them, ``(n_envs, *action_space.shape)``.

    ``values`` and ``log_probs``, ``(n_envs,)``, are None unless the policy's own ``forward`` gave them.
    """

    actions: np.ndarray
    values: th.Tensor | None = None
    log_probs: th.Tensor | None = None


Sampler = Callable[[Any], Sample]


def make_sampler(policy: ActorCriticPolicy, n_envs: int, through_forward: bool = False) -> Sampler:
    """Choose the cheapest way to draw actions from a policy. Make a new one for every rollout.

    :param policy: the policy, in the mode it is to act in
    :param n_envs: observations a call
    :param through_forward: call ``policy.forward`` even if the policy does not override it
    :return: a function from observations, ``(n_envs, …)`` or a dictionary of such, to a :class:`Sample`
    """
    if through_forward or _overrides(policy, "forward", "extract_features", "__call__") or _is_altered(policy):
        return _forward_sampler(policy)
    if _is_plain_mlp(policy):
        return _numpy_sampler(policy, n_envs)
    return _distribution_sampler(policy)


def _overrides(policy: nn.Module, *names: str) -> bool:
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
    def sample(obs: Any) -> Sample:
        with th.no_grad():
            actions, values, log_probs = policy(obs_as_tensor(obs, policy.device))
        return Sample(actions.cpu().numpy(), values, log_probs)

    return sample


def _distribution_sampler(policy: ActorCriticPolicy) -> Sampler:
    shape = (-1, *policy.action_space.shape)  # type: ignore[misc]

    def sample(obs: Any) -> Sample:
        with th.no_grad():
            actions = policy.get_distribution(obs_as_tensor(obs, policy.device)).get_actions()
        return Sample(actions.cpu().numpy().reshape(shape))

    return sample


def _is_plain_mlp(policy: ActorCriticPolicy) -> bool:
    """Whether drawing an action is a chain of linear layers and known activations on flat observations, and nothing else.

    Types are compared exactly: a subclass may do anything.
    """
    extractor, mlp = policy.pi_features_extractor, policy.mlp_extractor
    if (
        _overrides(policy, "get_distribution", "_get_action_dist_from_latent")
        or type(policy.action_dist) not in _DRAW
        or vars(policy.action_dist).keys() & {"proba_distribution", "get_actions", "sample"}
        or type(extractor) is not FlattenExtractor
        or type(mlp) is not MlpExtractor
        or type(mlp.policy_net) is not nn.Sequential
        or not isinstance(policy.observation_space, spaces.Box)
        or is_image_space(policy.observation_space, normalized_image=not policy.normalize_images)
    ):
        return False
    layers = [*mlp.policy_net, policy.action_net]
    return (
        all(type(layer) is nn.Linear or type(layer) in _ACTIVATIONS for layer in layers)
        and not any(_is_altered(module) for module in (extractor, extractor.flatten, mlp, mlp.policy_net, *layers))
        and all(p.dtype == th.float32 and p.device.type == "cpu" for layer in layers for p in layer.parameters())
    )


_ACTIVATIONS: dict[type[nn.Module], Callable[[np.ndarray], np.ndarray]] = {
    nn.Tanh: lambda x: np.tanh(x, out=x),
    nn.ReLU: lambda x: np.maximum(x, 0.0, out=x),
}


def _numpy_sampler(policy: ActorCriticPolicy, n_envs: int) -> Sampler:
    layers: list[Callable[[np.ndarray], np.ndarray]] = [
        _linear(layer) if isinstance(layer, nn.Linear) else _ACTIVATIONS[type(layer)]
        for layer in (*policy.mlp_extractor.policy_net, policy.action_net)
    ]
    noise_name, make_draw = _DRAW[type(policy.action_dist)]
    draw = make_draw(policy)
    # A generator for each rollout, seeded from torch's, which the model's seed determines
    draw_noise = getattr(np.random.default_rng(int(th.randint(2**63 - 1, ()))), noise_name)
    n_outputs = policy.action_net.out_features
    # Noise for many steps at once, as long as that is little memory
    noise_shape = (max(1, 2048 // (n_envs * n_outputs)), n_envs, n_outputs)
    noise = iter(np.empty((0, n_envs, n_outputs), dtype=np.float32))
    shape = (n_envs, *policy.action_space.shape)  # type: ignore[misc]

    def sample(obs: np.ndarray) -> Sample:
        nonlocal noise
        step_noise = next(noise, None)
        if step_noise is None:
            noise = iter(draw_noise(size=noise_shape).astype(np.float32))
            step_noise = next(noise)
        x = np.asarray(obs, dtype=np.float32).reshape(n_envs, -1)
        for layer in layers:
            x = layer(x)
        return Sample(draw(x, step_noise).reshape(shape))

    return sample


def _linear(layer: nn.Linear) -> Callable[[np.ndarray], np.ndarray]:
    # Views of the weights, not copies
    weight = layer.weight.detach().numpy().T
    bias = None if layer.bias is None else layer.bias.detach().numpy()

    def apply(x: np.ndarray) -> np.ndarray:
        x = x @ weight
        if bias is not None:
            x += bias
        return x

    return apply


# From the outputs of the actor, (n_envs, n_outputs), and independent noise of that shape, to actions. Gumbel noise makes the
# argmax a categorical sample, logistic noise makes the sign a Bernoulli sample.


def _draw_categorical(policy: ActorCriticPolicy) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda logits, gumbel: (logits + gumbel).argmax(axis=1)


def _draw_multi_categorical(policy: ActorCriticPolicy) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    ends = np.cumsum(policy.action_dist.action_dims)  # type: ignore[union-attr]
    starts = [0, *ends[:-1]]

    def draw(logits: np.ndarray, gumbel: np.ndarray) -> np.ndarray:
        noisy = logits + gumbel
        return np.stack([noisy[:, start:end].argmax(axis=1) for start, end in zip(starts, ends, strict=True)], axis=1)

    return draw


def _draw_bernoulli(policy: ActorCriticPolicy) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda logits, logistic: (logits + logistic > 0.0).astype(np.float32)


def _draw_gaussian(policy: ActorCriticPolicy) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    std = policy.log_std.detach().exp().numpy()
    return lambda means, normal: means + std * normal


_DRAW: dict[type, tuple[str, Callable[[ActorCriticPolicy], Callable[[np.ndarray, np.ndarray], np.ndarray]]]] = {
    CategoricalDistribution: ("gumbel", _draw_categorical),
    MultiCategoricalDistribution: ("gumbel", _draw_multi_categorical),
    BernoulliDistribution: ("logistic", _draw_bernoulli),
    DiagGaussianDistribution: ("standard_normal", _draw_gaussian),
}
