"""The fit of the critic to a rollout, after its values have been used."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch as th

from sb3_pg import distributed
from sb3_pg.algorithms.batch import Batch
from sb3_pg.finite import require_finite
from sb3_pg.losses import value_loss

if TYPE_CHECKING:
    from sb3_pg.algorithms.policy_gradient import PolicyGradient


# Weight of the rollouts before in the running scale of the targets
_DECAY = 0.9
# Of targets that are all the same, and met
_LEAST_SCALE = 1e-12


def fit_critic(model: "PolicyGradient", batch: Batch) -> dict[str, float]:
    """``n_critic_updates`` passes over the rollout in minibatches, with the model's critic optimizer; return what to log.

    With ``normalize_targets`` the optimizer works in units of the targets' scale σ (Pop-Art, van Hasselt et al. 2016): the
    last layer is that of v = V/σ, and v is fitted to targets/σ. Pop-Art's mean is left out: moving the last layer's bias and
    the targets by as much changes no gradient.
    """
    policy, kind, optimizer = model.policy, model.kind, model.critic_optimizer
    policy.set_training_mode(len(batch.steps) > 1)  # batch norm refuses a single sample
    if policy.share_features_extractor:
        policy.features_extractor.eval()  # batch statistics are the actor's as well
    parameters = kind.critic_parameters()
    losses = []
    n_steps, n_ranks = batch.targets.n, distributed.size()
    # Where the user names none: no more minibatches, at each of which the ranks wait, than one process makes of its part
    size = model.batch_size or n_ranks * kind.batch_size(n_steps // n_ranks)
    # This rank's part of a minibatch, so that all have about as many of them
    share = -(-size * len(batch.steps) // n_steps)
    scale = _follow_scale(model, batch) if model.normalize_targets else 1.0
    head = kind.value_head() if model.normalize_targets else None
    unit = scale if head is None else 1.0  # of what the networks return
    with _divided(head, scale):
        for _ in range(model.n_critic_updates if parameters else 0):  # none: the user has frozen the critic
            minibatches = list(distributed.aligned(kind.minibatches(batch.steps, share)))
            targets = [batch.returns[slice(0) if minibatch is None else minibatch] / scale for minibatch in minibatches]
            sizes = distributed.total(np.array([len(returns) for returns in targets]))
            for minibatch, returns, n in zip(minibatches, targets, sizes.tolist(), strict=True):
                optimizer.zero_grad()
                losses.append(0.0)
                if minibatch is not None:
                    loss = value_loss(kind.values(batch.steps[minibatch]) / unit, returns) * (len(returns) / n)
                    losses[-1] = loss.item() * scale**2
                    require_finite("the critic's loss", losses[-1])
                    # The actor's part of a shared features extractor is not the critic's to change
                    loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
                distributed.sum_gradients(parameters)
                clip_gradient("the critic's gradient", parameters, model.max_grad_norm)
                optimizer.step()
    policy.set_training_mode(False)
    # SB3's explained_variance, of all ranks
    explained = 1.0 - batch.errors.squares / batch.targets.squares if batch.targets.squares > 0.0 else math.nan
    metrics = {"explained_variance": explained}
    return metrics | {"value_loss": float(np.mean(distributed.total(np.array(losses))))} if losses else metrics


def _follow_scale(model: "PolicyGradient", batch: Batch) -> float:
    """The running scale of the targets: their deviation from their mean or from V, whichever is larger.

    V is far off at first, or where all targets are the same.
    """
    n, bias, squares = batch.errors
    largest = max(batch.targets.squares / n, bias**2 + squares / n)
    square, weight = model.target_moments
    model.target_moments = _DECAY * square + (1.0 - _DECAY) * largest, _DECAY * weight + 1.0 - _DECAY
    square, weight = model.target_moments
    return max(math.sqrt(square / weight), _LEAST_SCALE)


@contextmanager
def _divided(head: th.nn.Linear | None, scale: float) -> Iterator[None]:
    """The last layer in units of ``scale``; V in units of reward before and after."""
    parameters = [] if head is None else list(head.parameters())
    before = [p.detach().clone() for p in parameters]
    divided = [p / scale for p in before]
    with th.no_grad():
        for p, x in zip(parameters, divided, strict=True):
            p.copy_(x)
    try:
        yield
    finally:
        with th.no_grad():
            for p, old, x in zip(parameters, before, divided, strict=True):
                # What no step has changed is not to be rounded
                p.copy_(old if th.equal(p, x) else p * scale)


def clip_gradient(what: str, parameters: list[th.nn.Parameter], max_norm: float | None) -> float:
    """Scale the gradient down to ``max_norm``; return its norm before that, which is finite or an error.

    :param what: whose gradient it is
    :param parameters: with the gradient in their ``.grad``
    :param max_norm: None for no clipping
    :raises ValueError: if the gradient is not finite
    """
    norm = th.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    value = norm.item()
    require_finite(what, value)
    if max_norm is not None and value > max_norm:
        th.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return value
