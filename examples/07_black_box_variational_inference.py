"""The score function outside RL: variational inference for a Bayesian logistic regression (Ranganath et al. 2014).

A Gaussian q over two coefficients follows the score-function gradient of the ELBO E_q[log p(data, w) − log q(w)]: samples are
episodes, log p − log q is their return. Sums over a fine grid check the answer.
"""

import torch as th

from sb3_pg.losses import score_function_loss

th.manual_seed(0)
features = th.randn(100, 2)
labels = th.bernoulli(th.sigmoid(features @ th.tensor([1.0, -2.0])))


def log_joint(w: th.Tensor) -> th.Tensor:
    """log p(labels, w) under a standard normal prior; w is (n, 2)."""
    logits = w @ features.T
    likelihood = -th.nn.functional.binary_cross_entropy_with_logits(logits, labels.expand_as(logits), reduction="none")
    return likelihood.sum(dim=1) - 0.5 * (w**2).sum(dim=1)


mean = th.zeros(2, requires_grad=True)
log_std = th.full((2,), -1.0, requires_grad=True)
optimizer = th.optim.Adam([mean, log_std], lr=0.02)
n_updates, n_samples = 1500, 100
schedule = th.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, n_updates)
for _ in range(n_updates):
    q = th.distributions.Normal(mean, log_std.exp())
    w = q.sample((n_samples,))
    log_q = q.log_prob(w).sum(dim=1)
    elbo = log_joint(w) - log_q.detach()
    baseline = (elbo.sum() - elbo) / (n_samples - 1)  # leave one out
    loss = score_function_loss(log_q, elbo - baseline, n_samples)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()

axis = th.linspace(-5.0, 5.0, 401)
grid = th.cartesian_prod(axis, axis)
posterior = log_joint(grid).softmax(dim=0)
exact_mean = posterior @ grid
exact_std = (posterior @ (grid - exact_mean) ** 2).sqrt()
print(f"q      mean {mean.tolist()} std {log_std.exp().tolist()}")
print(f"exact  mean {exact_mean.tolist()} std {exact_std.tolist()}")
# A factorised q is narrower than the marginals of a correlated posterior; its means are right
print(f"largest error of the mean {(mean - exact_mean).abs().max():.3f}")
