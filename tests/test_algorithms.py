"""The classes as a user of SB3 meets them: spaces, saving, callbacks, schedules, errors, and A2C as the yardstick."""

import copy
import gc
import tracemalloc
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from envs import BrokenEnv, ScriptedEnv
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import (
    FakeImageEnv,
    IdentityEnv,
    IdentityEnvBox,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
    SimpleMultiObsEnv,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule, explained_variance
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize
from torch import nn

import sb3_pg.policy_gradient
from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg.buffers import EpisodeRolloutBuffer
from sb3_pg.policy_gradient import PolicyGradient

VARIANTS: list[tuple[type[PolicyGradient], dict[str, Any]]] = [
    (VanillaPG, dict(n_steps=16)),
    (VanillaPG, dict(n_episodes=1)),
    (VanillaPG, dict(weights="reward_to_go", n_steps=16)),
    (VanillaPG, dict(weights="return", n_episodes=2)),
    (ReinforceBaseline, dict(n_steps=16)),
    (ReinforceBaseline, dict(baseline="leave_one_out", n_episodes=2, weights="return")),
    (ReinforceBaseline, dict(baseline="running_mean", n_steps=16)),
    (ReinforceBaseline, dict(baseline="optimal", n_steps=16, discounted_state_distribution=True)),
    (NaturalPG, dict(n_steps=16)),
    (NaturalPG, dict(weights="reward_to_go", n_steps=16, sub_sampling_factor=2)),
]
variants = pytest.mark.parametrize("cls, kwargs", VARIANTS)


def params(model: PolicyGradient) -> dict[str, th.Tensor]:
    return {key: value.clone() for key, value in model.policy.state_dict().items()}


def changed(before: dict[str, th.Tensor], model: PolicyGradient) -> set[str]:
    return {key for key, value in model.policy.state_dict().items() if not th.equal(before[key], value)}


ENVS: dict[str, tuple[Any, str]] = {
    "Box": (lambda: IdentityEnvBox(ep_length=8), "MlpPolicy"),
    "Discrete": (lambda: IdentityEnv(4, ep_length=8), "MlpPolicy"),
    "MultiDiscrete": (lambda: IdentityEnvMultiDiscrete(3, ep_length=8), "MlpPolicy"),
    "MultiBinary": (lambda: IdentityEnvMultiBinary(3, ep_length=8), "MlpPolicy"),
    "image": (lambda: gym.wrappers.TimeLimit(FakeImageEnv(36, 36, discrete=True), 8), "CnnPolicy"),
    "Dict": (lambda: gym.wrappers.TimeLimit(SimpleMultiObsEnv(), 8), "MultiInputPolicy"),
}


@variants
@pytest.mark.parametrize("name", ENVS)
def test_spaces(cls: type[PolicyGradient], kwargs: dict[str, Any], name: str, tmp_path: Path) -> None:
    make, policy = ENVS[name]
    env = make_vec_env(make, 2, seed=0)
    model = cls(policy, env, seed=0, ent_coef=0.01, **kwargs)
    before = params(model)
    model.learn(100)
    updated = changed(before, model)
    assert "action_net.weight" in updated
    assert ("value_net.weight" in updated) == model.uses_critic
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=env)
    assert not changed(params(model), loaded)
    obs = env.reset()
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    loaded.learn(50, reset_num_timesteps=False)
    assert loaded.num_timesteps >= model.num_timesteps + 50


@pytest.mark.parametrize("kwargs", [dict(), dict(policy_kwargs=dict(squash_output=True))])
@pytest.mark.parametrize("sde_sample_freq", [-1, 1])
def test_gsde(kwargs: dict[str, Any], sde_sample_freq: int) -> None:
    for cls, extra in VARIANTS:
        # A wide target: where no reward comes, there is no gradient but the entropy's
        env = IdentityEnvBox(eps=0.5, ep_length=8)
        model = cls("MlpPolicy", env, use_sde=True, sde_sample_freq=sde_sample_freq, ent_coef=0.01,
                    seed=0, **{**extra, "n_episodes": 2}, **kwargs)  # fmt: skip
        before = params(model)
        model.learn(64)
        assert "action_net.weight" in changed(before, model)


@variants
def test_same_seed_same_weights(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    def train(seed: int) -> dict[str, th.Tensor]:
        return params(
            cls("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=seed), seed=seed, device="cpu", **kwargs).learn(600)
        )

    first, second, other = train(1), train(1), train(2)
    assert all(th.equal(first[key], second[key]) for key in first)
    assert not all(th.equal(first[key], other[key]) for key in first)


def test_vec_env_wrappers() -> None:
    for cls, kwargs in VARIANTS:
        env = VecFrameStack(VecNormalize(make_vec_env("CartPole-v1", 2, seed=0)), 3)
        assert cls("MlpPolicy", env, seed=0, **kwargs).learn(200).get_vec_normalize_env() is env.venv


def test_subproc() -> None:
    results = []
    for vec_env_cls in (DummyVecEnv, SubprocVecEnv):
        env = make_vec_env("CartPole-v1", 2, seed=0, vec_env_cls=vec_env_cls)
        results.append(params(ReinforceBaseline("MlpPolicy", env, seed=0, n_steps=16).learn(200)))
        env.close()
    assert all(th.equal(*(result[key] for result in results)) for key in results[0])


def test_state_of_baselines_is_saved(tmp_path: Path) -> None:
    for baseline, name in (("running_mean", "_running_mean"), ("optimal", "_optimal_moments")):
        model = ReinforceBaseline("MlpPolicy", "CartPole-v1", baseline=baseline, n_steps=16, seed=0).learn(100)
        model.save(tmp_path / "m")
        loaded = ReinforceBaseline.load(tmp_path / "m", env=model.get_env())
        np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name))
        assert getattr(model, name) is not None


def test_parameters_round_trip() -> None:
    model, other = (VanillaPG("MlpPolicy", "CartPole-v1", seed=seed, n_steps=16).learn(100) for seed in (0, 1))
    assert set(model.get_parameters()) == {"policy", "policy.optimizer", "critic_optimizer"}
    other.set_parameters(model.get_parameters())
    assert not changed(params(model), other)
    state = other.critic_optimizer.state_dict()["state"]
    th.testing.assert_close(state, model.critic_optimizer.state_dict()["state"])


@pytest.mark.parametrize("peer", [A2C, PPO])
@pytest.mark.parametrize("cls", [VanillaPG, ReinforceBaseline])
def test_warm_start(cls: type[PolicyGradient], peer: type) -> None:
    trained = peer("MlpPolicy", "CartPole-v1", seed=0, n_steps=64).learn(200)
    model = cls("MlpPolicy", "CartPole-v1", seed=1, n_steps=64)
    model.set_parameters({"policy": trained.policy.state_dict()}, exact_match=False)
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], trained.predict(obs, deterministic=True)[0])
    before = params(model)
    model.learn(100)
    assert {"action_net.weight", "value_net.weight"} <= changed(before, model)


# A2C itself as the oracle


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
    model._update_policy(model._make_batch())
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
        _, callback = model._setup_learn(1000)
        if models:  # replay the same actions, which the two paths would draw from other generators
            recorded = iter(models[0].rollout_buffer.actions.copy())
            shape = (2, *env.action_space.shape)
            replay = lambda obs: sb3_pg.sampling.Sample(next(recorded).reshape(shape))  # noqa: E731
            monkeypatch.setattr(sb3_pg.policy_gradient, "make_sampler", lambda *args, **kwargs: replay)
        model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps)
        models.append(model)
    theirs, ours = (model.rollout_buffer for model in models)
    for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-4)


# Callbacks and metrics


class Recorder(BaseCallback):
    NAMES = ("infos", "dones", "rewards", "actions", "clipped_actions", "new_obs", "n_steps", "n_rollout_steps", "callback",
             "env", "rollout_buffer", "self")  # fmt: skip

    def __init__(self, stop_after: int | None = None):
        super().__init__()
        self.stop_after, self.events, self.filled = stop_after, [], []

    def _on_rollout_start(self) -> None:
        self.events.append("start")

    def _on_step(self) -> bool:
        assert all(name in self.locals for name in self.NAMES)
        assert self.num_timesteps == self.model.num_timesteps
        n_envs = self.training_env.num_envs
        for name in ("infos", "dones", "rewards", "actions", "clipped_actions", "new_obs"):
            assert len(self.locals[name]) == n_envs
        self.events.append("step")
        return self.n_calls != self.stop_after

    def _on_rollout_end(self) -> None:
        self.events.append("end")
        buffer = self.locals["rollout_buffer"]
        assert buffer is self.model.rollout_buffer and buffer.full
        self.filled.append({name: getattr(buffer, name).copy() for name in ("advantages", "returns", "values", "log_probs")})
        list(buffer.get(7))  # a callback may sample the buffer


@variants
def test_callbacks(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    recorder = Recorder()
    model = cls("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), seed=0, **kwargs).learn(200, callback=recorder)
    assert recorder.events[0] == "start" and recorder.events[-1] == "end"
    assert recorder.events.count("start") == recorder.events.count("end") > 1
    assert recorder.events.count("step") * 2 == model.num_timesteps
    for fields in recorder.filled:
        assert (fields["log_probs"] != 0).any() and (fields["returns"] != 0).any() and (fields["advantages"] != 0).any()
        assert (fields["values"] != 0).any() == model.uses_critic
    # Listening changes nothing
    silent = cls("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), seed=0, **kwargs).learn(200)
    assert not changed(params(model), silent)


@variants
def test_a_callback_stops_at_once(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    model = cls("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), seed=0, **kwargs)
    before = params(model)
    recorder = Recorder(stop_after=3)
    model.learn(200, callback=CallbackList([recorder]))
    assert model.num_timesteps == 6 and "end" not in recorder.events and not changed(before, model)
    # The next learn() goes on where this one stopped: from an episode start where whole episodes are collected
    follow_up = Recorder()
    model.learn(100, callback=follow_up, reset_num_timesteps=False)
    assert model.num_timesteps > 100
    assert (model.rollout_buffer.timesteps[0] == 0).all() or not model.whole_episodes


def test_the_clock_of_cut_rollouts_carries_over() -> None:
    env = DummyVecEnv([lambda: ScriptedEnv([3]), lambda: ScriptedEnv([7])])
    model = VanillaPG("MlpPolicy", env, n_steps=4, discounted_state_distribution=True, seed=0)
    clocks: list[np.ndarray] = []

    class Clock(Recorder):
        def _on_rollout_end(self) -> None:
            clocks.append(self.model.rollout_buffer.timesteps.copy())

    model.learn(32, callback=Clock())
    model.learn(16, callback=Clock(stop_after=5), reset_num_timesteps=False)  # stops within a rollout
    model.learn(16, callback=Clock(), reset_num_timesteps=False)
    t = np.arange(24)
    expected = np.stack([t % 3, t % 7], axis=1)
    np.testing.assert_array_equal(np.concatenate(clocks)[:20], expected[:20])
    np.testing.assert_array_equal(
        clocks[-1][0], np.stack([np.arange(40) % 3, np.arange(40) % 7], axis=1)[21 + 4 * (len(clocks) - 6)]
    )


def test_eval_callback_and_metrics(tmp_path: Path) -> None:
    env = make_vec_env("Pendulum-v1", 1)
    callback = EvalCallback(env, eval_freq=100, n_eval_episodes=1, log_path=str(tmp_path), verbose=0)
    model = VanillaPG("MlpPolicy", "Pendulum-v1", n_steps=64, tensorboard_log=str(tmp_path), seed=0)
    model.learn(300, callback=callback, log_interval=100)
    assert (tmp_path / "VanillaPG_1").is_dir() and (tmp_path / "evaluations.npz").is_file()
    train = {
        *("policy_loss", "value_loss", "entropy_loss", "explained_variance", "grad_norm"),
        *("approx_kl", "std", "n_updates", "learning_rate"),
    }
    assert {f"train/{name}" for name in train} <= set(model.logger.name_to_value)
    whole = VanillaPG("MlpPolicy", "CartPole-v1", weights="return", seed=0).learn(300, log_interval=100)
    assert {"rollout/episodes_used", "rollout/steps_used_fraction"} <= set(whole.logger.name_to_value)
    assert not {"train/value_loss", "train/explained_variance"} & set(whole.logger.name_to_value)
    assert all(np.isfinite(v) for v in whole.logger.name_to_value.values())


def test_progress_bar() -> None:
    ReinforceBaseline("MlpPolicy", "CartPole-v1", n_steps=16).learn(100, progress_bar=True)


# Schedules and optimizers


@variants
def test_schedules_end_at_zero(cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    """A rollout of whole episodes overshoots total_timesteps; the learning rate must not turn negative."""
    schedule = LinearSchedule(1e-2, 0.0, 1.0)
    model = cls("MlpPolicy", make_vec_env(lambda: ScriptedEnv([50]), 2), learning_rate=schedule, seed=0, **kwargs)
    model.learn(60)
    assert model.num_timesteps > 60 and model._current_progress_remaining == 0.0
    for optimizer in (model.policy.optimizer, model.critic_optimizer):
        assert optimizer.param_groups[0]["lr"] == 0.0 or (optimizer is model.critic_optimizer and not model.uses_critic)


def test_critic_has_its_own_rate() -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, critic_learning_rate=LinearSchedule(1e-2, 5e-3, 1.0)).learn(32)
    assert model.policy.optimizer.param_groups[0]["lr"] == model.learning_rate
    assert model.critic_optimizer.param_groups[0]["lr"] == pytest.approx(5e-3)
    frozen = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, critic_learning_rate=0.0)
    before = params(frozen)
    updated = changed(before, frozen.learn(32))
    assert "action_net.weight" in updated and not any("value" in name for name in updated)
    none = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, n_critic_updates=0)
    before = params(none)
    assert not any("value" in name for name in changed(before, none.learn(32)))


def test_shared_features_are_the_actors() -> None:
    """The critic's loss must not reach a shared extractor, whose parameters the policy gradient trains."""
    env = gym.wrappers.TimeLimit(FakeImageEnv(36, 36, discrete=True), 8)
    shared = VanillaPG("CnnPolicy", env, n_steps=16, seed=0)
    critic = {id(p) for p in shared._critic_parameters()}
    assert critic == {id(p) for name, p in shared.policy.named_parameters() if "value_net" in name}
    separate = VanillaPG("CnnPolicy", env, n_steps=16, seed=0, policy_kwargs=dict(share_features_extractor=False))
    critic = {id(p) for p in separate._critic_parameters()}
    assert critic == {id(p) for name, p in separate.policy.named_parameters() if "value_net" in name or "vf_features" in name}
    shared.learn(8)
    before = params(shared)
    shared._update_critic(shared._make_batch())
    assert changed(before, shared) == {"value_net.weight", "value_net.bias"}


class DropoutExtractor(sb3_pg.policy_gradient.ActorCriticPolicy):
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
    _, callback = model._setup_learn(66)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 33)
    log_probs = model.rollout_buffer.log_probs.copy().flatten()
    batch = model._make_batch()
    model.policy.set_training_mode(False)
    with th.no_grad():
        th.testing.assert_close(model._evaluate_actions(batch.observations, batch.actions)[0], th.as_tensor(log_probs))
    nets = (model.policy.mlp_extractor.policy_net, model.policy.mlp_extractor.value_net)
    before = [net[0].running_mean.clone() for net in nets]
    model.train()
    assert scored and not any(scored)
    assert not any(th.equal(old, net[0].running_mean) for old, net in zip(before, nets, strict=True))


class Standardized(FlattenExtractor):
    """Features through a batch norm."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space)
        self.norm = nn.BatchNorm1d(self.features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.norm(super().forward(observations))


@pytest.mark.parametrize("n_critic_updates", [1, 7])
def test_the_critic_leaves_the_batch_statistics_of_a_shared_extractor_alone(n_critic_updates: int) -> None:
    kwargs = dict(n_steps=32, batch_size=16, n_critic_updates=n_critic_updates)
    policy_kwargs = dict(features_extractor_class=Standardized)
    model = VanillaPG("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs, seed=0, **kwargs).learn(64)
    assert model.policy.features_extractor.norm.num_batches_tracked == 2


# Gradients of any layout


class Transposed(FlattenExtractor):
    """A linear layer whose weight has a gradient in column-major order."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space)
        self.weight = nn.Parameter(th.linspace(-1.0, 1.0, self.features_dim**2).reshape(self.features_dim, -1))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations) @ self.weight.t().contiguous()


class Slice(FlattenExtractor):
    """Its parameter is a part of a larger tensor."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space)
        self.weight = nn.Parameter(th.ones(3, 2 * self.features_dim)[:, : self.features_dim])

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations) * self.weight.sum(dim=0)


@pytest.mark.parametrize("extractor", [Transposed, Slice])
def test_fused_steps_are_those_of_plain_adam(extractor: type[FlattenExtractor]) -> None:
    parameters = []
    for optimizer_kwargs in ({}, dict(fused=False)):
        policy_kwargs = dict(
            features_extractor_class=extractor, share_features_extractor=False, optimizer_kwargs=optimizer_kwargs
        )
        model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=32, policy_kwargs=policy_kwargs, seed=0).learn(64)
        parameters.append(model.policy.state_dict())
    th.testing.assert_close(*parameters)


# Memory


@pytest.mark.parametrize("ent_coef", [0.0, 0.1])
def test_chunks_add_up(monkeypatch: pytest.MonkeyPatch, ent_coef: float) -> None:
    gradients, values = [], []
    for chunk_size in (10**9, 17):
        monkeypatch.setattr(sb3_pg.policy_gradient, "CHUNK_SIZE", chunk_size)
        env = make_vec_env("CartPole-v1", 4, seed=0)
        model = VanillaPG("MlpPolicy", env, n_steps=100, ent_coef=ent_coef, max_grad_norm=None, n_critic_updates=0, seed=0)
        model.learn(400)
        gradients.append(th.cat([p.grad.flatten() for p in model._actor_parameters()]))
        values.append(model.rollout_buffer.values.copy())
    th.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5)


def test_chunks_of_an_episode_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = []
    for chunk_size in (10**9, 3):
        monkeypatch.setattr(sb3_pg.policy_gradient, "CHUNK_SIZE", chunk_size)
        model = ReinforceBaseline("MlpPolicy", "CartPole-v1", baseline="optimal", n_episodes=3, seed=0)
        moments.append(model.learn(1)._optimal_moments)
    np.testing.assert_allclose(*moments, rtol=1e-4)


def test_memory_of_an_update_is_flat() -> None:
    """The graph of the policy pass exists for one chunk at a time: its size does not grow with the rollout."""
    largest = []
    for n_steps in (2 * sb3_pg.policy_gradient.CHUNK_SIZE, 8 * sb3_pg.policy_gradient.CHUNK_SIZE):
        model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=n_steps, n_critic_updates=0, seed=0)
        seen: list[int] = []
        model.policy.action_net.register_forward_hook(lambda module, args, out, seen=seen: seen.append(len(out)))
        model.learn(1)
        largest.append(max(seen))
    assert largest == [sb3_pg.policy_gradient.CHUNK_SIZE] * 2


@pytest.mark.parametrize("kwargs", [dict(n_steps=8), dict(n_steps=8, weights="reward_to_go")])
def test_memory_does_not_grow(kwargs: dict[str, Any]) -> None:
    model = VanillaPG("MlpPolicy", make_vec_env(lambda: ScriptedEnv([5, 7]), 2), seed=0, **kwargs)
    model.learn(50 * 16)
    tracemalloc.start()
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    model.learn(200 * 16)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 100_000


# Policies of the user's own


class ConstantValue(ActorCriticPolicy):
    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, th.full_like(values, 3.0), log_prob - 0.5


def test_an_overridden_forward_is_believed() -> None:
    recorder = Recorder()
    VanillaPG(ConstantValue, "CartPole-v1", n_steps=16, seed=0).learn(32, callback=recorder)
    assert all((fields["values"] == 3.0).all() and (fields["log_probs"] < -0.5).all() for fields in recorder.filled)


class Scaled(ActorCriticPolicy):
    calls = 0

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        type(self).calls += 1
        return super().evaluate_actions(obs, actions)


def test_an_overridden_evaluate_actions_is_used() -> None:
    model = VanillaPG(Scaled, "CartPole-v1", n_steps=16, seed=0)
    calls = Scaled.calls
    model.learn(16)
    assert Scaled.calls > calls


class OwnPosition(ActorCriticPolicy):
    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        return super().extract_features(obs * th.tensor([0.0, 0.0, -20.0, 0.0]), features_extractor)


def test_the_critic_that_is_trained_is_the_one_that_is_used() -> None:
    # SB3's predict_values skips extract_features
    model = VanillaPG(
        OwnPosition, "CartPole-v1", gamma=0.9, gae_lambda=1.0, learning_rate=1e-9, critic_learning_rate=1e-2,
        n_critic_updates=20, batch_size=64, seed=0,
    )  # fmt: skip
    samples, _ = model.learn(6000).rollout_buffer.samples()
    with th.no_grad():
        values = model.policy.evaluate_actions(samples.observations, samples.actions.flatten())[0].flatten()
    assert explained_variance(values.numpy(), samples.returns.numpy()) > 0.4


class OwnFeatures(ActorCriticPolicy):
    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        return super().extract_features(obs * th.tensor([0.0, 0.0, 0.0, 30.0]), features_extractor)


def test_an_overridden_extract_features_is_used_throughout() -> None:
    # SB3's get_distribution skips it, its forward and evaluate_actions do not
    model = VanillaPG(OwnFeatures, "CartPole-v1", n_steps=64, seed=0, max_grad_norm=None, n_critic_updates=0)
    model.learn(64)
    gradient = [p.grad.clone() for p in model._actor_parameters()]
    batch = model._make_batch()
    model.policy.load_state_dict(VanillaPG(OwnFeatures, "CartPole-v1", n_steps=64, seed=0).policy.state_dict())
    _, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
    th.testing.assert_close(log_prob.detach(), batch.log_probs)
    expected = th.autograd.grad(-(log_prob * batch.weights).mean(), model._actor_parameters())
    th.testing.assert_close(gradient, list(expected))


class SquashedMeans(ActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Sequential(self.action_net, nn.Tanh())


class NoCritic(ActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.mlp_extractor.value_net, self.value_net = nn.Sequential(), None
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        distribution = self.get_distribution(obs)
        return th.zeros(len(obs), 1), distribution.log_prob(actions), distribution.entropy()


def test_an_actor_of_ones_own() -> None:
    model = VanillaPG(SquashedMeans, "Pendulum-v1", n_steps=16, seed=0)
    before = params(model)
    assert "action_net.0.weight" in changed(before, model.learn(32))


def test_a_policy_without_critic() -> None:
    model = VanillaPG(NoCritic, "CartPole-v1", weights="return", n_steps=16, seed=0)
    before = params(model)
    assert "action_net.weight" in changed(before, model.learn(32))
    with pytest.raises(ValueError, match="no parameters of its own"):
        VanillaPG(NoCritic, "CartPole-v1")


def test_a_compiled_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, seed=0)
    before = params(model)
    model.policy = th.compile(model.policy, backend="eager")
    model.learn(32)
    after = model.get_parameters()["policy"]
    assert not th.equal(before["action_net.weight"], after["action_net.weight"])
    assert not th.equal(before["value_net.weight"], after["value_net.weight"])


def test_a_replaced_policy_is_trained() -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, seed=0).learn(16)
    model.policy = ActorCriticPolicy(model.observation_space, model.action_space, model.lr_schedule)
    before = params(model)
    assert {"action_net.weight", "value_net.weight"} <= changed(before, model.learn(16))


@pytest.mark.parametrize(
    "name", ["log_std", "mlp_extractor.policy_net.0.weight", "value_net.weight", "mlp_extractor.value_net.0.bias"]
)
@pytest.mark.parametrize(
    "cls, kwargs", [(VanillaPG, {}), (ReinforceBaseline, {}), (ReinforceBaseline, dict(baseline="optimal"))]
)
def test_frozen_parameters_stay(cls: type[PolicyGradient], kwargs: dict[str, Any], name: str) -> None:
    model = cls("MlpPolicy", gym.make("Pendulum-v1", max_episode_steps=8), n_steps=16, seed=0, **kwargs)
    dict(model.policy.named_parameters())[name].requires_grad_(False)
    before = params(model)
    updated = changed(before, model.learn(64))
    assert "action_net.weight" in updated and name not in updated


def test_a_frozen_critic() -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, seed=0)
    for p in model._critic_parameters():
        p.requires_grad_(False)
    before = params(model)
    updated = changed(before, model.learn(32))
    assert "action_net.weight" in updated and not any("value" in key for key in updated)


def test_a_callback_may_change_the_policy_before_the_rollout() -> None:
    class Quiet(BaseCallback):
        def _on_rollout_start(self) -> None:
            self.model.policy.log_std.data.fill_(-6.0)

        def _on_step(self) -> bool:
            return True

    model = VanillaPG("MlpPolicy", IdentityEnvBox(ep_length=8), n_steps=64, seed=0).learn(64, callback=Quiet())
    assert model.rollout_buffer.actions.std() < 0.1
    assert model.rollout_buffer.log_probs.mean() == pytest.approx(-0.5 * (1 + np.log(2 * np.pi)) + 6.0, abs=0.3)


@pytest.mark.parametrize("baseline", ["running_mean", "optimal"])
def test_standardising_leaves_constant_baselines_alone(baseline: str) -> None:
    def train(cls: type[PolicyGradient], **kwargs: Any) -> dict[str, th.Tensor]:
        env = make_vec_env("CartPole-v1", 2, seed=0)
        return params(cls("MlpPolicy", env, weights="reward_to_go", seed=0, n_steps=32, device="cpu", **kwargs).learn(1000))

    with_baseline, without = train(ReinforceBaseline, baseline=baseline), train(VanillaPG)
    assert (with_baseline["action_net.weight"] - without["action_net.weight"]).abs().max() > 1e-4


@pytest.mark.parametrize("n_episodes, expected", [(1, -1.0), (2, 0.0)])
def test_equal_returns_standardise_to_zero_but_a_single_one_to_its_sign(n_episodes: int, expected: float) -> None:
    env = ScriptedEnv([200], reward=-1.0)
    model = VanillaPG("MlpPolicy", env, weights="return", n_episodes=n_episodes, seed=0).learn(200)
    np.testing.assert_allclose(model._make_batch().weights, expected, atol=1e-3)


class IntegerActions(ScriptedEnv):
    def __init__(self) -> None:
        super().__init__([8])
        self.action_space = spaces.Box(-5, 5, (1,), np.int32)


def test_integer_box_actions_are_scored_as_sampled() -> None:
    model = VanillaPG("MlpPolicy", DummyVecEnv([IntegerActions]), n_steps=16, seed=0).learn(16)
    actions = model.rollout_buffer.actions
    assert (actions != np.round(actions)).any()


def test_linear_policy() -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", weights="return", policy_kwargs=dict(net_arch=[]), n_steps=16).learn(100)
    assert sum(p.numel() for p in model._actor_parameters()) == 2 * 4 + 2


def test_policy_kwargs_are_left_alone() -> None:
    policy_kwargs = dict(net_arch=[8])
    VanillaPG("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs)
    assert policy_kwargs == dict(net_arch=[8])


def test_a_model_can_be_copied() -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, seed=0).learn(32)
    assert not changed(params(model), copy.deepcopy(model))


# Bad input

BAD: list[tuple[type[PolicyGradient], dict[str, Any], type[Exception], str]] = [
    (VanillaPG, dict(weights="advantage"), ValueError, 'weights must be "return"'),
    (VanillaPG, dict(gamma=1.1), ValueError, "gamma must be"),
    (VanillaPG, dict(gamma=float("nan")), ValueError, "gamma must be"),
    (VanillaPG, dict(gamma="0.9"), TypeError, "gamma must be a number"),
    (VanillaPG, dict(gae_lambda=-0.1), ValueError, "gae_lambda must be"),
    (VanillaPG, dict(n_steps=0), ValueError, "n_steps must be at least 1"),
    (VanillaPG, dict(n_steps=2.5), TypeError, "n_steps must be an integer"),
    (VanillaPG, dict(n_episodes=0), ValueError, "n_episodes must be at least 1"),
    (VanillaPG, dict(n_episodes=-1), ValueError, "n_episodes must be at least 1"),
    (VanillaPG, dict(batch_size=0), ValueError, "batch_size must be at least 1"),
    (VanillaPG, dict(n_critic_updates=-1), ValueError, "n_critic_updates must be at least 0"),
    (VanillaPG, dict(ent_coef=float("inf")), ValueError, "ent_coef must be"),
    (VanillaPG, dict(max_grad_norm=0.0), ValueError, "max_grad_norm must be positive"),
    (VanillaPG, dict(learning_rate=-1e-3), ValueError, "learning_rate must be"),
    (VanillaPG, dict(learning_rate="lin_1e-3"), TypeError, "learning_rate must be a float or a schedule"),
    (VanillaPG, dict(learning_rate=np.float32(1e-3)), TypeError, "learning_rate must be a float"),
    (VanillaPG, dict(rollout_buffer_class=5), TypeError, "rollout_buffer_class must be a subclass"),
    (VanillaPG, dict(critic_learning_rate="lin_1e-3"), TypeError, "critic_learning_rate must be a float or a schedule"),
    (VanillaPG, dict(normalize_advantage="no"), TypeError, "normalize_advantage must be True or False"),
    (VanillaPG, dict(n_episodes=True), TypeError, "n_episodes must be an integer"),
    (VanillaPG, dict(sde_sample_freq="a"), TypeError, "sde_sample_freq must be an integer"),
    (VanillaPG, dict(weights="return", discounted_state_distribution=True), ValueError, "takes no γ"),
    (VanillaPG, dict(weights="return", rollout_buffer_class=RolloutBuffer), ValueError, "EpisodeRolloutBuffer"),
    (VanillaPG, dict(n_episodes=1, rollout_buffer_class=RolloutBuffer), ValueError, "EpisodeRolloutBuffer"),
    (ReinforceBaseline, dict(baseline="critic"), ValueError, 'baseline must be "value"'),
    (ReinforceBaseline, dict(weights="gae", baseline="optimal"), ValueError, 'baseline="value"'),
    (ReinforceBaseline, dict(baseline="leave_one_out"), ValueError, "n_episodes of at least 2"),
    (ReinforceBaseline, dict(baseline="leave_one_out", n_episodes=1), ValueError, "n_episodes of at least 2"),
]


@pytest.mark.parametrize("cls, kwargs, error, message", BAD)
def test_bad_arguments(cls: type[PolicyGradient], kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cls("MlpPolicy", "CartPole-v1", **kwargs)


def test_arguments_given_to_load_are_checked(tmp_path: Path) -> None:
    VanillaPG("MlpPolicy", "CartPole-v1").save(tmp_path / "m")
    with pytest.raises(ValueError, match="gamma must be"):
        VanillaPG.load(tmp_path / "m", gamma=2.0)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy, on the way to the error
@variants
@pytest.mark.parametrize("what", ["reward", "observation"])
def test_not_finite_from_the_environment(cls: type[PolicyGradient], kwargs: dict[str, Any], what: str) -> None:
    env = DummyVecEnv([lambda: BrokenEnv("nothing", 0), lambda: BrokenEnv(what, 45)])
    model = cls("MlpPolicy", env, seed=0, **kwargs)
    before = None

    class Snapshot(BaseCallback):
        def _on_rollout_start(self) -> None:
            nonlocal before
            before = params(self.model)

        def _on_step(self) -> bool:
            return True

    with pytest.raises(ValueError, match=f"NaN or infinity in the {what} of environment 1"):
        model.learn(1000, callback=Snapshot())
    assert not changed(before, model) and model._n_updates > 0


class Padded(FlattenExtractor):
    def forward(self, obs: th.Tensor) -> th.Tensor:
        return super().forward(obs.nan_to_num(0.0, 0.0, 0.0))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_is_the_users_own_affair_in_an_extractor_of_their_own() -> None:
    env = DummyVecEnv([lambda: BrokenEnv("observation", 5)])
    model = VanillaPG("MlpPolicy", env, n_steps=16, policy_kwargs=dict(features_extractor_class=Padded))
    assert model.learn(32)._n_updates == 2


def test_not_finite_terminal_observation() -> None:
    class Ends(ScriptedEnv):
        def step(self, action: Any) -> Any:
            obs, reward, terminated, truncated, info = super().step(action)
            return (obs * np.nan if truncated else obs), reward, terminated, truncated, info

    env = DummyVecEnv([lambda: ScriptedEnv([30]), lambda: Ends([30], truncate=True)])
    with pytest.raises(ValueError, match="terminal observation of environment 1, step 29"):
        VanillaPG("MlpPolicy", env, n_steps=64, seed=0).learn(128)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_not_finite_on_the_general_path() -> None:
    env = DummyVecEnv([lambda: BrokenEnv("observation", 5)])
    with pytest.raises(ValueError, match="in the observation of environment 0, step 5"):
        VanillaPG("MlpPolicy", env, n_steps=16, policy_kwargs=dict(activation_fn=nn.ELU)).learn(100)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_not_finite_in_the_update(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for target, message in (("score_function_loss", "policy"), ("value_loss", "critic")):
        model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, seed=0).learn(32)
        original = getattr(sb3_pg.policy_gradient, target)

        def broken(x: th.Tensor, *args: Any, original: Any = original) -> th.Tensor:
            loss = original(x, *args)
            # √0 has an infinite gradient and a finite value
            return loss * float("nan") if what == "loss" else loss + (x * 0.0).sum().abs().sqrt()

        with monkeypatch.context() as patch:
            patch.setattr(sb3_pg.policy_gradient, target, broken)
            before = params(model)
            with pytest.raises(ValueError, match=f"NaN or infinity in the {message}'s {what}"):
                model.learn(16, reset_num_timesteps=False)
        part = "value" if message == "critic" else "policy_net"
        assert not any(part in name for name in changed(before, model))


def test_whole_episodes_need_a_reset_that_resets() -> None:
    make = lambda: EpisodicLifeEnv(ScriptedEnv([5]))  # noqa: E731
    with pytest.raises(ValueError, match="terminal_on_life_loss=False"):
        ReinforceBaseline("MlpPolicy", DummyVecEnv([make])).learn(10)


def test_vector_environments_that_do_not_know_their_wrappers() -> None:
    class Unknowing(DummyVecEnv):
        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            raise NotImplementedError

    ReinforceBaseline("MlpPolicy", Unknowing([lambda: ScriptedEnv([5])]), n_steps=8).learn(10)


def test_leave_one_out_is_evaluated_on_one_environment(tmp_path: Path) -> None:
    env = make_vec_env("CartPole-v1", 2)
    ReinforceBaseline("MlpPolicy", env, baseline="leave_one_out", n_steps=8, seed=0).learn(10).save(tmp_path / "m")
    model = ReinforceBaseline.load(tmp_path / "m", env=make_vec_env("CartPole-v1", 1))
    model.predict(model.env.reset())
    with pytest.raises(ValueError, match="n_episodes of at least 2"):
        model.learn(10)


class Direction(FlattenExtractor):
    """NaN where the observation is zero."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations) / observations.norm(dim=1, keepdim=True)


def test_policies_without_a_value_at_zero() -> None:
    validates = th.distributions.Distribution._validate_args
    policy_kwargs = dict(features_extractor_class=Direction)
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=32, policy_kwargs=policy_kwargs, seed=0)
    assert th.distributions.Distribution._validate_args is validates
    before = params(model)
    model.learn(32)
    assert changed(before, model) == set(before)


def test_recurrent_policies_are_refused() -> None:
    with pytest.raises(TypeError, match="RecurrentActorCriticPolicy has a memory"):
        VanillaPG(RecurrentActorCriticPolicy, "CartPole-v1")


def test_dictionaries_need_a_buffer_for_them() -> None:
    class DictEnv(ScriptedEnv):
        def __init__(self) -> None:
            super().__init__([2])
            self.observation_space = spaces.Dict({"a": self.observation_space})

    with pytest.raises(ValueError, match="EpisodeDictRolloutBuffer"):
        VanillaPG("MultiInputPolicy", DummyVecEnv([DictEnv]), rollout_buffer_class=EpisodeRolloutBuffer)


def test_unsupported_spaces_are_refused() -> None:
    class TupleActions(ScriptedEnv):
        def __init__(self) -> None:
            super().__init__([2])
            self.action_space = spaces.Tuple([spaces.Discrete(2)])

    with pytest.raises(AssertionError, match="only supports"):
        VanillaPG("MlpPolicy", DummyVecEnv([TupleActions]))
