"""The update: A2C as the oracle, schedules, the mode it scores in, chunks, NaN."""

from typing import Any

import numpy as np
import pytest
import torch as th
from envs import ScriptedEnv
from helpers import changed, collect, params, variants
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from sb3_pg import VanillaPG
from sb3_pg.algorithms import critic, policy_gradient
from sb3_pg.algorithms.batch import make_batch
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.policies import kind
from sb3_pg.policies.kind import Sample


@pytest.mark.parametrize("env_id, gae_lambda", [("CartPole-v1", 1.0), ("CartPole-v1", 0.9), ("Pendulum-v1", 0.95)])
def test_agrees_with_a2c(env_id: str, gae_lambda: float) -> None:
    """On a rollout that A2C recorded: the same advantages, targets and gradient of the actor."""
    n_steps, n_envs, gamma = 230, 3, 0.9  # beyond Pendulum's time limit
    a2c = A2C("MlpPolicy", make_vec_env(env_id, n_envs, seed=0), n_steps=n_steps, gae_lambda=gae_lambda, gamma=gamma, seed=0,
              use_rms_prop=False, vf_coef=0.0, max_grad_norm=1e9, ent_coef=0.01)  # fmt: skip
    a2c.learn(1)  # one rollout and one step; the gradients are still there
    gradients = {name: p.grad for name, p in a2c.policy.named_parameters() if p.grad is not None}

    model = VanillaPG("MlpPolicy", make_vec_env(env_id, n_envs, seed=0), n_steps=n_steps, gae_lambda=gae_lambda, gamma=gamma,
                      seed=0, normalize_advantage=False, max_grad_norm=None, ent_coef=0.01)  # fmt: skip
    initial = A2C("MlpPolicy", make_vec_env(env_id, n_envs, seed=0), seed=0, use_rms_prop=False).policy.state_dict()
    model.policy.load_state_dict(initial)  # the parameters A2C recorded the rollout with
    model.learn(0)  # a logger
    ours, theirs = model.rollout_buffer, a2c.rollout_buffer

    def unflatten(x: np.ndarray) -> np.ndarray:  # SB3 flattens (n_steps, n_envs) environment by environment
        return x.reshape(n_envs, n_steps, *x.shape[1:]).swapaxes(0, 1)

    for t in range(n_steps):
        ours.add(unflatten(theirs.observations)[t], unflatten(theirs.actions)[t], theirs.rewards[t], theirs.episode_starts[t])
    ours.trim()
    ours.values[...] = unflatten(theirs.values)[..., 0]
    with th.no_grad():
        model.policy.load_state_dict(initial)
        last_values = model.policy.predict_values(th.as_tensor(a2c._last_obs))
    # A2C has added γV(terminal) to its rewards
    ours.compute_returns_and_advantage(last_values, a2c._last_episode_starts)
    np.testing.assert_allclose(ours.advantages, unflatten(theirs.advantages)[..., 0], rtol=1e-6, atol=2e-5)
    np.testing.assert_allclose(ours.returns, unflatten(theirs.returns)[..., 0], rtol=1e-6, atol=2e-5)
    model._update_policy(make_batch(model))
    actor = {name for name in gradients if "value" not in name}
    assert actor == {name for name, p in model.policy.named_parameters() if p.grad is not None}
    for name, p in model.policy.named_parameters():
        if name in actor:
            th.testing.assert_close(p.grad, gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_sb3s_buffer_and_ours_make_the_same_update(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through SB3's own buffer and step-by-step forward passes, or through ours in one batched pass."""
    models = []
    for buffer_class in (RolloutBuffer, None):
        env = make_vec_env(env_id, 2, seed=0)
        model = VanillaPG("MlpPolicy", env, seed=0, n_steps=230, rollout_buffer_class=buffer_class, normalize_advantage=False)
        if models:  # replay the same actions, which the two paths would draw from other generators
            recorded = iter(models[0].rollout_buffer.actions.copy())
            shape = (2, *env.action_space.shape)
            replay = lambda obs, episode_starts: Sample(next(recorded).reshape(shape))  # noqa: E731
            monkeypatch.setattr(model.kind, "make_sampler", lambda *args, **kwargs: replay)
        collect(model)
        models.append(model)
    theirs, ours = (model.rollout_buffer for model in models)
    for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-4)


@variants
def test_schedules_end_at_zero(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    """A rollout of whole episodes overshoots total_timesteps; the learning rate must not turn negative."""
    schedule = LinearSchedule(1e-2, 0.0, 1.0)
    model = cls("MlpPolicy", make_vec_env(lambda: ScriptedEnv([50]), 2), learning_rate=schedule, seed=0, **kwargs)
    model.learn(60)
    assert model.num_timesteps > 60 and model._current_progress_remaining == 0.0
    for optimizer in (model.policy.optimizer, model.critic_optimizer):
        assert optimizer.param_groups[0]["lr"] == 0.0 or (optimizer is model.critic_optimizer and not model.uses_critic)


class DropoutExtractor(ActorCriticPolicy):
    """A policy with dropout and batch norm in the actor's and the critic's networks."""

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        for name in ("policy_net", "value_net"):
            net = getattr(self.mlp_extractor, name)
            setattr(self.mlp_extractor, name, nn.Sequential(nn.BatchNorm1d(4), *net, nn.Dropout(0.5)))


def test_the_policy_is_scored_in_the_mode_it_acted_in() -> None:
    model = VanillaPG(DropoutExtractor, "CartPole-v1", n_steps=33, batch_size=16, seed=0)
    model.learn(66)
    scored: list[bool] = []
    model.policy.mlp_extractor.policy_net.register_forward_hook(
        lambda module, *_: scored.append(module.training) if th.is_grad_enabled() else None
    )
    collect(model)
    log_probs = model.rollout_buffer.log_probs.copy().flatten()
    batch = make_batch(model)
    model.policy.set_training_mode(False)
    with th.no_grad():
        th.testing.assert_close(model.kind.log_prob_and_entropy(batch.steps)[0], th.as_tensor(log_probs))
    nets = (model.policy.mlp_extractor.policy_net, model.policy.mlp_extractor.value_net)
    before = [net[0].running_mean.clone() for net in nets]
    model.train()
    assert scored and not any(scored)
    assert not any(th.equal(old, net[0].running_mean) for old, net in zip(before, nets, strict=True))


@pytest.mark.parametrize("n_episodes, expected", [(1, -1.0), (2, 0.0)])
def test_equal_returns_standardise_to_zero_but_a_single_one_to_its_sign(n_episodes: int, expected: float) -> None:
    env = ScriptedEnv([200], reward=-1.0)
    model = VanillaPG("MlpPolicy", env, weights="return", n_episodes=n_episodes, seed=0).learn(200)
    np.testing.assert_allclose(make_batch(model).weights, expected, atol=1e-3)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_not_finite_in_the_update(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, target, message in ((policy_gradient, "score_function_loss", "policy"), (critic, "value_loss", "critic")):
        model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, seed=0).learn(32)
        original = getattr(module, target)

        def broken(x: th.Tensor, *args: Any, original: Any = original) -> th.Tensor:
            loss = original(x, *args)
            # √0 has an infinite gradient and a finite value
            return loss * float("nan") if what == "loss" else loss + (x * 0.0).sum().abs().sqrt()

        with monkeypatch.context() as patch:
            patch.setattr(module, target, broken)
            before = params(model)
            with pytest.raises(ValueError, match=f"NaN or infinity in the {message}'s {what}"):
                model.learn(16, reset_num_timesteps=False)
        part = "value" if message == "critic" else "policy_net"
        assert not any(part in name for name in changed(before, model))


@pytest.mark.parametrize("ent_coef", [0.0, 0.1])
def test_chunks_add_up(monkeypatch: pytest.MonkeyPatch, ent_coef: float) -> None:
    gradients, values = [], []
    for chunk_size in (10**9, 17):
        monkeypatch.setattr(kind, "CHUNK_SIZE", chunk_size)
        env = make_vec_env("CartPole-v1", 4, seed=0)
        model = VanillaPG("MlpPolicy", env, n_steps=100, ent_coef=ent_coef, max_grad_norm=None, n_critic_updates=0, seed=0)
        model.learn(400)
        gradients.append(th.cat([p.grad.flatten() for p in model.kind.actor_parameters()]))
        values.append(model.rollout_buffer.values.copy())
    th.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5)


def test_memory_of_an_update_is_flat() -> None:
    """The graph of the policy pass exists for one chunk at a time: its size does not grow with the rollout."""
    largest = []
    for n_steps in (2 * kind.CHUNK_SIZE, 8 * kind.CHUNK_SIZE):
        model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=n_steps, n_critic_updates=0, seed=0)
        seen: list[int] = []
        model.policy.action_net.register_forward_hook(lambda module, args, out, seen=seen: seen.append(len(out)))
        model.learn(1)
        largest.append(max(seen))
    assert largest == [kind.CHUNK_SIZE] * 2
