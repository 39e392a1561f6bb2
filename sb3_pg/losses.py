"""The score-function pseudo-loss and the critic's loss as pure functions of tensors. Nothing here knows of environments."""

import torch as th


def score_function_loss(log_prob: th.Tensor, weights: th.Tensor, normalizer: float) -> th.Tensor:
    """Pseudo-loss L = −Σ log p(x) · Ψ / C, whose gradient is the score-function estimate of −∇E[Ψ].

    Williams 1992; Sutton et al. 2000. L is no loss in the usual sense: its value says nothing about performance, and its
    gradient is right for one step on freshly drawn samples only. p may be any distribution with parameters: a policy, a
    search distribution, a variational posterior.

    :param log_prob: log-probabilities of the samples, with their graph, ``(n,)``
    :param weights: Ψ, one weight a sample, ``(n,)``; no gradient flows into them
    :param normalizer: C, a number fixed *before* the samples were drawn. Dividing by a count that depends on the samples,
        such as the steps that the episodes happened to take, makes a ratio of two random numbers and biases the gradient
    :return: L, a scalar
    :raises ValueError: if the shapes differ (broadcasting would silently weight every sample by every weight)
    """
    if log_prob.shape != weights.shape:
        raise ValueError(f"log_prob and weights must have one shape, got {tuple(log_prob.shape)} and {tuple(weights.shape)}")
    return -(log_prob * weights.detach()).sum() / normalizer


def pseudo_entropy(log_prob: th.Tensor) -> th.Tensor:
    """Sample estimate of the entropy, −log p(x), whose gradient is the score-function estimate of ∇H.

    For distributions without an entropy in closed form (squashed Gaussians). Differentiating −log p(x) itself would give
    −∇log p(x), which is zero in expectation whatever the entropy; ∇H = −E[log p(x) ∇log p(x)].

    :param log_prob: log-probabilities of samples, with their graph, ``(n,)``
    :return: one estimate a sample, ``(n,)``
    """
    constant = log_prob.detach()
    return -constant * (1.0 + log_prob - constant)


def value_loss(values: th.Tensor, returns: th.Tensor) -> th.Tensor:
    """Mean squared error of the critic against its targets.

    :param values: V(s), with their graph, ``(n,)``
    :param returns: targets, ``(n,)``; no gradient flows into them
    :return: a scalar
    :raises ValueError: if the shapes differ
    """
    if values.shape != returns.shape:
        raise ValueError(f"values and returns must have one shape, got {tuple(values.shape)} and {tuple(returns.shape)}")
    return th.nn.functional.mse_loss(values, returns.detach())
