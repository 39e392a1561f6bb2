"""The fit of the critic to a rollout, after its values have been used."""

from typing import TYPE_CHECKING

import numpy as np
import torch as th
from stable_baselines3.common.utils import explained_variance

from sb3_pg import distributed
from sb3_pg.algorithms.batch import Batch
from sb3_pg.finite import require_finite
from sb3_pg.losses import value_loss

if TYPE_CHECKING:
    from sb3_pg.algorithms.policy_gradient import PolicyGradient


def fit_critic(model: "PolicyGradient", batch: Batch) -> dict[str, float]:
    """``n_critic_updates`` passes over the rollout in minibatches, with the model's critic optimizer; return what to log."""
    policy, kind, optimizer = model.policy, model.kind, model.critic_optimizer
    policy.set_training_mode(len(batch.steps) > 1)  # batch norm refuses a single sample
    if policy.share_features_extractor:
        policy.features_extractor.eval()  # batch statistics are the actor's as well
    parameters = kind.critic_parameters()
    losses = []
    for _ in range(model.n_critic_updates if parameters else 0):  # none: the user has frozen the critic
        for minibatch in kind.minibatches(batch.steps, model.batch_size):
            values, returns = kind.values(batch.steps[minibatch]), batch.returns[minibatch]
            loss = value_loss(values, returns)
            losses.append(loss.item())
            require_finite("the critic's loss", losses[-1])
            optimizer.zero_grad()
            # The actor's part of a shared features extractor is not the critic's to change
            (loss * (len(returns) / distributed.total(len(returns)))).backward(inputs=parameters)  # type: ignore[no-untyped-call]
            distributed.sum_gradients(parameters)
            clip_gradient("the critic's gradient", parameters, model.max_grad_norm)
            optimizer.step()
    policy.set_training_mode(False)
    before, targets = (distributed.gather(x).cpu().numpy() for x in (batch.values, batch.returns))
    metrics = {"explained_variance": explained_variance(before, targets)}
    return metrics | {"value_loss": float(np.mean(losses))} if losses else metrics


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
    if max_norm is not None:
        th.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return value
