"""Policies with memory: the replay of segments against contrib's step by step, and what carries the memory on."""

from typing import Any

import numpy as np
import pytest
import torch as th
from helpers import collect
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stepwise import LAYOUTS, Stepwise, layouts, make, scripted
from torch import nn

from sb3_pg import VanillaPG
from sb3_pg.algorithms.batch import make_batch
from sb3_pg.policies import kind as kind_module
from sb3_pg.policies import recurrent
from sb3_pg.policies.recurrent import RecurrentKind


@layouts
@pytest.mark.parametrize("chunk_size", [1024, 1])
def test_the_replay_is_what_stepping_gives(layout: str, chunk_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind_module, "CHUNK_SIZE", chunk_size)
    model = make(layout)
    stepwise = Stepwise(model)
    _, callback = model._setup_learn(10**6)
    n_carried = 0
    for _ in range(6):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        buffer = model.rollout_buffer
        log_probs, values = stepwise.over(buffer)
        np.testing.assert_allclose(buffer.log_probs, log_probs, atol=1e-5)
        np.testing.assert_allclose(buffer.values, values, atol=1e-5)
        n_carried += int((buffer.context["segment"] >= 0).sum())
        # The weight of an unfinished episode's last step holds V of what follows
        goes_on = ~model._last_episode_starts
        delta = buffer.rewards[-1] + model.gamma * stepwise.value_behind(model._last_obs) - values[-1]
        np.testing.assert_allclose(buffer.advantages[-1][goes_on], delta[goes_on], atol=1e-5)
    assert n_carried > 5  # segments with a memory were among them


@layouts
def test_the_gradient_is_that_of_contribs_evaluate_actions(layout: str) -> None:
    model = make(layout)
    _, callback = model._setup_learn(10**6)
    for _ in range(3):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    buffer, initial = model.rollout_buffer, model.kind._initial
    weights, starts = buffer.advantages.copy(), buffer.episode_starts.copy()
    batch = make_batch(model)  # environment by environment, as contrib takes sequences
    model.policy.zero_grad()
    for chunk in model.kind.chunks(batch.steps):
        log_prob, entropy = model.kind.log_prob_and_entropy(batch.steps[chunk])
        (-(log_prob * batch.weights[chunk]).sum() - 0.1 * entropy.sum()).backward()
    actor = model.kind.actor_parameters()
    ours = [p.grad.clone() for p in actor]
    model.policy.zero_grad()
    critic = model.kind.critic_parameters()
    (model.kind.values(batch.steps) * batch.returns).sum().backward(inputs=critic)
    ours_of_critic = [p.grad.clone() for p in critic]

    obs, actions = batch.steps.observations, batch.steps.actions
    values, log_prob, entropy = model.policy.evaluate_actions(obs, actions, initial, th.as_tensor(starts.T.flatten()))
    psi = th.as_tensor(weights.T.flatten())
    expected = th.autograd.grad(-(log_prob * psi).sum() - 0.1 * entropy.sum(), actor, retain_graph=True, allow_unused=True)
    for ours_p, theirs in zip(ours, expected, strict=True):
        th.testing.assert_close(ours_p, th.zeros_like(ours_p) if theirs is None else theirs, rtol=1e-4, atol=1e-5)
    theirs_of_critic = th.autograd.grad((values.flatten() * batch.returns).sum(), critic)
    th.testing.assert_close(ours_of_critic, list(theirs_of_critic), rtol=1e-4, atol=1e-5)


@layouts
@pytest.mark.parametrize("truncate", [False, True])
def test_advantages_are_those_of_recurrent_ppo(layout: str, truncate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the rollouts that RecurrentPPO recorded, bootstraps at time limits included."""
    policy_kwargs = dict(lstm_hidden_size=8, net_arch=[8], **LAYOUTS[layout])
    ppo = RecurrentPPO("MlpLstmPolicy", scripted(truncate), n_steps=16, gamma=0.9, gae_lambda=0.8, seed=0,
                       policy_kwargs=policy_kwargs, learning_rate=0.0, n_epochs=1, batch_size=48, device="cpu")  # fmt: skip
    recorded = []

    def record(locals_: Any, _: Any) -> bool:
        recorded.append(locals_["actions"])
        return True

    ppo.learn(5 * 48, callback=record)
    model = make(layout, scripted(truncate), gamma=0.9, gae_lambda=0.8)
    model.policy.load_state_dict(ppo.policy.state_dict())
    played = iter(recorded)
    draw = RecurrentKind._make_outputs

    def replayed(self: RecurrentKind, n_envs: int) -> Any:
        outputs = draw(self, n_envs)
        return lambda obs, context: 1e6 * np.eye(2, dtype=np.float32)[next(played)] + outputs(obs, context)

    monkeypatch.setattr(RecurrentKind, "_make_outputs", replayed)
    model.learn(5 * 48)
    theirs, ours = ppo.rollout_buffer, model.rollout_buffer

    def unflatten(x: np.ndarray) -> np.ndarray:
        return x.reshape(3, 16, *x.shape[1:]).swapaxes(0, 1)

    np.testing.assert_array_equal(ours.observations.reshape(3, 16, 2).swapaxes(0, 1), unflatten(theirs.observations))
    for name in ("advantages", "returns"):
        np.testing.assert_allclose(
            unflatten(getattr(ours, name).reshape(48)), unflatten(getattr(theirs, name).reshape(48)), atol=2e-5
        )


def test_a_bootstrap_does_not_see_the_next_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would notice: with the next episode's memory in a bootstrap it fails."""
    bootstrap = RecurrentKind.bootstrap_values

    def leaking(self: RecurrentKind, buffer: Any, steps: Any, envs: Any, observations: Any) -> th.Tensor:
        later = np.minimum(steps + 1, buffer.buffer_size - 1)
        return bootstrap(self, buffer, later, envs, observations)

    monkeypatch.setattr(RecurrentKind, "bootstrap_values", leaking)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        test_advantages_are_those_of_recurrent_ppo("separate", True, monkeypatch)


@pytest.mark.parametrize("kwargs", [dict(activation_fn=nn.ReLU), dict(n_lstm_layers=2), dict(lstm_kwargs=dict(bias=False))])
def test_numpy_and_torch_draw_the_same_actions(kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    actions = []
    for is_plain in (True, False):
        env = make_vec_env("Pendulum-v1", 2, seed=0)
        model = VanillaPG("MlpLstmPolicy", env, n_steps=64, seed=0, policy_kwargs=dict(lstm_hidden_size=16, **kwargs))
        if not is_plain:
            monkeypatch.setattr(recurrent, "is_plain_mlp", lambda policy: False)
        model.kind._begin(model.env)
        assert (model.kind._make_outputs(2).__name__ == "_torch_outputs") == (not is_plain)
        collect(model)
        actions.append(model.rollout_buffer.actions.copy())
    np.testing.assert_allclose(*actions, atol=1e-4)


def test_lstms_that_are_not_plain_are_stepped_by_torch() -> None:
    class Own(nn.LSTM):
        pass

    for change in (lambda p: p.double(), lambda p: setattr(p, "lstm_actor", Own(4, 256)),
                   lambda p: p.lstm_actor.register_forward_hook(lambda *_: None),
                   lambda p: nn.utils.parametrizations.weight_norm(p.lstm_actor, "weight_hh_l0")):  # fmt: skip
        model = VanillaPG("MlpLstmPolicy", "CartPole-v1", n_steps=8)
        change(model.policy)
        assert model.kind._make_outputs(2).__name__ == "_torch_outputs"


# Dividing


def test_divisions_are_of_whole_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind_module, "CHUNK_SIZE", 3)
    model = make(n_steps=64)
    collect(model)
    steps = make_batch(model).steps
    starts = np.flatnonzero(steps.context["segment"].numpy() != -2)
    ends = np.append(starts[1:], len(steps))

    def check(rows: np.ndarray) -> None:
        for start, end in zip(starts, ends, strict=True):
            inside = rows[(rows >= start) & (rows < end)]
            assert len(inside) == 0 or inside.tolist() == list(range(start, end))

    for parts in (list(model.kind.chunks(steps)), list(model.kind.minibatches(steps, 40))):
        assert len(parts) > 2 and sorted(np.concatenate(parts).tolist()) == list(range(len(steps)))
        for rows in parts:
            check(rows)
    for shuffled in (False, True):
        rows = model.kind.excerpt(steps, 30, shuffled)
        check(rows)
        assert 10 <= len(rows) <= 90
    assert len(model.kind.excerpt(steps, 10**6)) == len(steps)


def test_padding_is_bounded() -> None:
    rng = np.random.default_rng(0)
    segment = np.where(rng.random(5000) < 0.05, -1, -2)
    segment[0] = -1
    groups = list(recurrent._pad(segment))
    assert sum(index.size for index, _ in groups) < 1.5 * len(segment)
    assert sum(index.shape[1] for index, _ in groups) < 3 * groups[0][0].shape[1]  # what a pass takes one after the other
    np.testing.assert_array_equal(np.sort(np.concatenate([index[is_step] for index, is_step in groups])), np.arange(5000))
