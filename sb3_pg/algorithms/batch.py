"""What an update learns from: the steps of a rollout that are in use, with their final weights."""

from typing import TYPE_CHECKING, NamedTuple

import torch as th

from sb3_pg import distributed
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
    """

    steps: Steps
    values: th.Tensor
    weights: th.Tensor
    returns: th.Tensor


def make_batch(model: "PolicyGradient") -> Batch:
    """The steps in use of the model's rollout buffer."""
    buffer = model.rollout_buffer
    if isinstance(buffer, EpisodeRolloutBuffer):
        samples, timesteps, context = buffer.samples()
    else:
        samples, timesteps, context = next(buffer.get()), th.zeros(0), {}
    weights = samples.advantages.cpu().double()  # in float32 standardising a constant would give ±1
    if model.normalize_advantage:
        n_episodes = distributed.total(int((timesteps == 0).sum()))
        weights = standardise(weights, model._is_centred(n_episodes))
    if model.discounted_state_distribution:
        weights = weights * th.as_tensor(discount_factors(timesteps.cpu(), model.gamma))
    weights = weights.to(samples.advantages)
    steps = model.kind.to_steps(samples.observations, samples.actions, context)
    return Batch(steps, samples.old_values, weights, samples.returns)


def standardise(weights: th.Tensor, centred: bool) -> th.Tensor:
    """Weights divided by their standard deviation over the whole rollout, after their mean was subtracted.

    :param weights: ``(n,)``; a single one is left as it is
    :param centred: False to divide by the root mean square and subtract nothing
    :return: ``(n,)``
    """
    of_all = distributed.gather(weights)
    if len(of_all) <= 1:
        return weights
    if centred:
        return (weights - of_all.mean()) / (of_all.std() + 1e-8)
    return weights / (of_all.square().mean().sqrt() + 1e-8)
