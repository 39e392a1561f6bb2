"""What an update learns from: the steps of a rollout that are in use, with their final weights."""

from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

import torch as th

from sb3_pg import distributed
from sb3_pg.distributed import Spread
from sb3_pg.estimators import discount_factors
from sb3_pg.policies.steps import Steps
from sb3_pg.rollouts.buffers import EpisodeRolloutBuffer

if TYPE_CHECKING:
    from sb3_pg.algorithms.policy_gradient import PolicyGradient


class Batch(NamedTuple):
    """The steps of a rollout that an update uses, and for each of them, ``(n_used,)``:

    :param steps: what the policy was shown and what it did
    :param values: V before the update
    :param weights: Ψ, standardised, times γᵗ
    :param returns: targets of the critic
    :param targets: moments of ``returns`` over all ranks
    :param errors: those of ``returns - values``
    """

    steps: Steps
    values: th.Tensor
    weights: th.Tensor
    returns: th.Tensor
    targets: Spread
    errors: Spread


def make_batch(model: "PolicyGradient") -> Batch:
    """The steps in use of the model's rollout buffer."""
    buffer = model.rollout_buffer
    if isinstance(buffer, EpisodeRolloutBuffer):
        samples, timesteps, context = buffer.samples()
    else:
        samples, timesteps, context = next(buffer.get()), th.zeros(0), {}
    # In float32 standardising a constant would give ±1
    weights, returns, values = (x.cpu().double() for x in (samples.advantages, samples.returns, samples.old_values))
    of_weights, targets, errors = distributed.spreads(weights, returns, returns - values)
    if model.normalize_advantage:
        weights = standardise(weights, of_weights, model._is_centred(timesteps))
    if model.discounted_state_distribution:
        weights = weights * th.as_tensor(discount_factors(timesteps.cpu(), model.gamma))
    weights = weights.to(samples.advantages)
    steps = model.kind.to_steps(samples.observations, samples.actions, context)
    return Batch(steps, samples.old_values, weights, samples.returns, targets, errors)


def standardise(weights: th.Tensor, of_all: Spread, centred: bool) -> th.Tensor:
    """Weights divided by their standard deviation over the whole rollout, after their mean was subtracted.

    :param weights: ``(n,)``
    :param of_all: those of all ranks; a single one is left as it is
    :param centred: False to divide by the root mean square and subtract nothing
    :return: ``(n,)``
    """
    n, mean, squares = of_all
    if n <= 1:
        return weights
    if centred:
        return (weights - mean) / (sqrt(squares / (n - 1)) + 1e-8)
    return weights / (sqrt(mean**2 + squares / n) + 1e-8)
