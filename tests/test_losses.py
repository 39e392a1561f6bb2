"""The pseudo-losses against closed forms."""

import pytest
import torch as th
from torch.distributions import Categorical, Normal

from sb3_pg.losses import pseudo_entropy, score_function_loss, value_loss


def test_softmax_score() -> None:
    # ∇_h log π(a) = e_a − π
    logits = th.tensor([0.3, -1.0, 0.5], dtype=th.float64, requires_grad=True)
    loss = score_function_loss(Categorical(logits=logits).log_prob(th.tensor([2])), th.tensor([4.0]), 2.0)
    (gradient,) = th.autograd.grad(loss, logits)
    expected = -2.0 * (th.tensor([0.0, 0.0, 1.0]) - logits.detach().softmax(0))
    th.testing.assert_close(gradient, expected.double())


def test_gaussian_score() -> None:
    # ∇_μ log π(a) = (a − μ) / σ²
    mean, std = th.tensor([1.0], requires_grad=True), 0.5
    actions, weights = th.tensor([1.5, 0.0]), th.tensor([2.0, 3.0])
    loss = score_function_loss(Normal(mean, std).log_prob(actions), weights, 1.0)
    (gradient,) = th.autograd.grad(loss, mean)
    th.testing.assert_close(gradient, -((actions - 1.0) / std**2 * weights).sum()[None])


def test_no_gradient_flows_into_weights_and_targets() -> None:
    x = th.ones(3, requires_grad=True)
    score_function_loss(x, x * 2.0, 1.0).backward()
    th.testing.assert_close(x.grad, -2.0 * th.ones(3))
    values, returns = th.zeros(3, requires_grad=True), th.ones(3, requires_grad=True)
    value_loss(values, returns).backward()
    assert returns.grad is None and values.grad is not None


def test_pseudo_entropy_has_the_gradient_of_the_entropy() -> None:
    # Over all outcomes, weighted with their probabilities, the expectation is exact
    logits = th.tensor([0.3, -1.0, 0.5], dtype=th.float64, requires_grad=True)
    distribution = Categorical(logits=logits)
    estimate = (distribution.probs.detach() * pseudo_entropy(distribution.logits)).sum()
    th.testing.assert_close(estimate, distribution.entropy())
    th.testing.assert_close(*(th.autograd.grad(x, logits, retain_graph=True)[0] for x in (estimate, distribution.entropy())))


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="one shape"):
        score_function_loss(th.zeros(3), th.zeros(3, 1), 3.0)
    with pytest.raises(ValueError, match="one shape"):
        value_loss(th.zeros(3, 1), th.zeros(3))
