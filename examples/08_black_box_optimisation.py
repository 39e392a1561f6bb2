"""The score function outside RL: minimising a function without derivatives (Wierstra et al. 2014, evolution strategies).

A Gaussian search distribution follows the score-function gradient of E[−f(x)]. f counts in whole steps, so that its derivative
is zero wherever it exists.

python examples/08_black_box_optimisation.py [updates]
"""

import sys

import torch as th

from sb3_pg.losses import score_function_loss

th.manual_seed(0)
target = th.tensor([3.0, -2.0, 1.0, 0.5, -4.0])


def f(x: th.Tensor) -> th.Tensor:
    """Tenths of a unit by which each coordinate misses the target, rounded down, summed; x is (n, 5)."""
    return (10.0 * (x - target).abs()).floor().sum(dim=1)


mean, log_std = th.zeros(5, requires_grad=True), th.zeros(5, requires_grad=True)
optimizer = th.optim.Adam([mean, log_std], lr=0.03)
n_updates, n_samples = int(sys.argv[1]) if len(sys.argv) > 1 else 600, 50
for _ in range(n_updates):
    search = th.distributions.Normal(mean, log_std.exp())
    x = search.sample((n_samples,))
    value = -f(x)
    weights = (value - value.mean()) / (value.std() + 1e-8)
    loss = score_function_loss(search.log_prob(x).sum(dim=1), weights, n_samples)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

print(f"f(0) = {f(th.zeros(1, 5)).item():.0f}, f(mean) = {f(mean[None]).item():.0f} at {[round(v, 2) for v in mean.tolist()]}")
