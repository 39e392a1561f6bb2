"""Actions without the policy's ``forward``: noise on the actor's outputs, and the actor's networks in NumPy.

SB3's rollout calls ``policy(obs)`` at every step, which also evaluates the critic and the log-probability. Neither is needed
before the rollout is over, and then one batched pass gives them. The kinds of policy pick, once a rollout, the cheapest of
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
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution, MaskableMultiCategoricalDistribution
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor
from torch import nn

# From observations to logits or means, ``(n_envs, n_outputs)``
Outputs = Callable[[Any], np.ndarray]


def is_altered(module: nn.Module) -> bool:
    """Whether calling the module runs anything beside the code of its class: hooks, compiled code, replaced methods."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._compiled_call_impl is not None
        or vars(module).keys() & {"forward", "forward_actor"}
    )


# Actions from the outputs of the actor and noise of the same shape. Gumbel noise makes the argmax of logits a categorical
# sample, logistic noise makes their sign a Bernoulli sample.

_NOISE: dict[type, str] = {
    CategoricalDistribution: "gumbel",
    MultiCategoricalDistribution: "gumbel",
    BernoulliDistribution: "logistic",
    DiagGaussianDistribution: "standard_normal",
}
# contrib's and our own over legal actions; a bit is a categorical of two
_MASKED = (MaskableCategoricalDistribution, MaskableMultiCategoricalDistribution)


def takes_noise(distribution: Any) -> bool:
    """Whether actions of this distribution of SB3's or contrib's are a function of its outputs and noise."""
    replaced = vars(distribution).keys() & {"proba_distribution", "get_actions", "sample"}
    return (type(distribution) in _NOISE or isinstance(distribution, _MASKED)) and not replaced


def draw_with_noise(policy: Any, n_envs: int) -> Callable[[np.ndarray], np.ndarray]:
    """What draws actions given the actor's outputs.

    :param policy: whose distribution takes noise
    :param n_envs: outputs a call
    :return: from logits or means, ``(n_envs, n_outputs)``, to actions, ``(n_envs, *action_space.shape)``
    """
    to_actions = _make_to_actions(policy)
    # A generator for each rollout, seeded from torch's, which the model's seed determines
    rng = np.random.default_rng(int(th.randint(2**63 - 1, ())))
    draw_noise = getattr(rng, _NOISE.get(type(policy.action_dist), "gumbel"))
    noise: Iterator[np.ndarray] = iter(())
    shape = (n_envs, *policy.action_space.shape)

    def draw(out: np.ndarray) -> np.ndarray:
        nonlocal noise
        step_noise = next(noise, None)
        if step_noise is None:
            # For many steps at once, as long as that is little memory
            noise = iter(draw_noise(size=(max(1, 2048 // out.size), *out.shape)).astype(np.float32))
            step_noise = next(noise)
        return to_actions(out, step_noise).reshape(shape)

    return draw


def _make_to_actions(policy: Any) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    distribution = policy.action_dist
    if isinstance(distribution, CategoricalDistribution | MaskableCategoricalDistribution):
        return lambda logits, gumbel: (logits + gumbel).argmax(axis=1)
    if isinstance(distribution, MultiCategoricalDistribution | MaskableMultiCategoricalDistribution):
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


def torch_outputs(distribution: Any) -> np.ndarray:
    """Logits or means of a distribution of SB3's or contrib's, ``(n_envs, n_outputs)``."""
    parts = getattr(distribution, "distributions", None) or distribution.distribution
    if isinstance(parts, list):
        out = th.cat([part.logits for part in parts], dim=1)
    else:
        out = parts.mean if isinstance(parts, th.distributions.Normal) else parts.logits
    return out.cpu().numpy()


# In place: activation(x, x)
_ACTIVATIONS: dict[type[nn.Module], Callable[[np.ndarray, np.ndarray], Any]] = {
    nn.Tanh: np.tanh,
    nn.ReLU: lambda x, out: np.maximum(x, 0.0, out=out),
}


def is_plain_mlp(policy: Any) -> bool:
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
        and not any(is_altered(module) for module in (extractor, *(m for _, m in parts), mlp, mlp.policy_net, *layers))
        and all(p.dtype == th.float32 and p.device.type == "cpu" for layer in layers for p in layer.parameters())
    )


def numpy_features(policy: Any) -> Outputs:
    """The actor's features of observations, flattened: of a policy that :func:`is_plain_mlp`."""
    extractor = policy.pi_features_extractor
    keys = list(extractor.extractors) if isinstance(extractor, CombinedExtractor) else None

    def flatten(obs: np.ndarray) -> np.ndarray:
        return np.asarray(obs, dtype=np.float32).reshape(len(obs), -1)

    return lambda obs: flatten(obs) if keys is None else np.concatenate([flatten(obs[key]) for key in keys], axis=1)


# Multiplications in a matrix product up to which NumPy's OpenBLAS stays on one thread. Its threads wait for each other in
# every product, which takes a hundred times as long on a machine where others work as well
_ONE_THREAD = 2**18


def split_weight(weight: np.ndarray, n: int) -> list[np.ndarray]:
    """Blocks of weightᵀ, views of it, that x of n rows is multiplied with on one thread each: see :func:`product`."""
    n_blocks = max(1, -(-n * weight.size // _ONE_THREAD))
    return [block.T for block in np.array_split(weight, n_blocks)]


def product(x: np.ndarray, blocks: list[np.ndarray]) -> np.ndarray:
    """x · weightᵀ."""
    return x.dot(blocks[0]) if len(blocks) == 1 else np.concatenate([x.dot(block) for block in blocks], axis=1)


def numpy_outputs(policy: Any, n_envs: int) -> Callable[[np.ndarray], np.ndarray]:
    """The actor's networks behind the features, in NumPy: of a policy that :func:`is_plain_mlp`."""
    modules = [*policy.mlp_extractor.policy_net, policy.action_net]
    # Views of the weights: what changes them in place is seen at once
    weights = [split_weight(linear.weight.detach().numpy(), n_envs) for linear in modules[::2]]
    biases = [0.0 if linear.bias is None else linear.bias.detach().numpy() for linear in modules[::2]]
    activations = [*(_ACTIVATIONS[type(module)] for module in modules[1::2]), None]
    layers = list(zip(weights, biases, activations, strict=True))

    def outputs(x: np.ndarray) -> np.ndarray:
        for blocks, bias, activation in layers:
            x = x.dot(blocks[0]) if len(blocks) == 1 else product(x, blocks)
            x += bias
            if activation is not None:
                activation(x, x)
        return x

    return outputs


def is_plain_lstm(lstm: nn.LSTM) -> bool:
    """Whether :func:`numpy_lstm` knows how to step this LSTM."""
    return (
        type(lstm) is nn.LSTM
        and not (lstm.bidirectional or lstm.batch_first or lstm.proj_size or is_altered(lstm))
        and all(p.dtype == th.float32 and p.device.type == "cpu" for p in lstm.parameters())
        and len(list(lstm.parameters())) == len(lstm._flat_weights)  # nothing parametrised
    )


def numpy_lstm(lstm: nn.LSTM, memory: tuple[np.ndarray, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """One step of an LSTM, from features to the last layer's hidden state, ``(n, …)``; ``memory`` is changed in place."""
    layers = []
    for layer in range(lstm.num_layers):
        names = [f"{name}_l{layer}" for name in ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if lstm.bias else ()))]
        # Views of the weights: what changes them in place is seen at once
        from_input, from_hidden, *biases = (getattr(lstm, name).detach().numpy() for name in names)
        hidden, cell = memory[0][layer], memory[1][layer]
        layers.append((split_weight(from_input, len(hidden)), split_weight(from_hidden, len(hidden)), biases, hidden, cell))
    n = lstm.hidden_size

    def advance(x: np.ndarray) -> np.ndarray:
        for from_input, from_hidden, biases, hidden, cell in layers:
            gates = product(x, from_input)
            gates += product(hidden, from_hidden)
            for bias in biases:
                gates += bias
            candidate = np.tanh(gates[:, 2 * n : 3 * n])
            gates *= 0.5  # the logistic function is (1 + tanh(x / 2)) / 2
            np.tanh(gates, gates)
            gates *= 0.5
            gates += 0.5
            cell *= gates[:, n : 2 * n]
            cell += gates[:, :n] * candidate
            np.multiply(gates[:, 3 * n :], np.tanh(cell), out=hidden)
            x = hidden
        return x

    return advance
