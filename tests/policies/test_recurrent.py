"""Policies with memory: the replay of segments against contrib's step by step, and what carries the memory on."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from envs import ScriptedEnv
from helpers import collect
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from torch import nn

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg.algorithms.batch import make_batch
from sb3_pg.buffers import EpisodeRolloutBuffer
from sb3_pg.policies import kind as kind_module
from sb3_pg.policies import recurrent
from sb3_pg.policies.recurrent import RecurrentKind

LAYOUTS: dict[str, dict[str, Any]] = {
    "separate": dict(),
    "critic without memory": dict(enable_critic_lstm=False),
    "shared": dict(enable_critic_lstm=False, shared_lstm=True),
    "two layers": dict(n_lstm_layers=2),
    "no bias": dict(lstm_kwargs=dict(bias=False)),
    "separate features": dict(share_features_extractor=False),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def scripted(truncate: bool = False) -> DummyVecEnv:
    """Episodes of all lengths, one step included, some of which span several rollouts."""
    lengths = ([1, 7, 3, 30], [40], [2, 1, 1, 19])
    return DummyVecEnv([lambda lengths=each: ScriptedEnv(list(lengths), truncate=truncate) for each in lengths])


def make(layout: str = "separate", env: Any = None, policy: Any = "MlpLstmPolicy", **kwargs: Any) -> VanillaPG:
    policy_kwargs = dict(lstm_hidden_size=8, net_arch=[8], **LAYOUTS[layout])
    # Nothing is learnt: the memory of all rollouts is that of one policy
    still = dict(learning_rate=0.0, normalize_advantage=False, max_grad_norm=None, device="cpu", seed=0)
    model = VanillaPG(
        policy, scripted() if env is None else env, policy_kwargs=policy_kwargs, **{"n_steps": 16, **still, **kwargs}
    )
    with th.no_grad():
        for name, p in model.policy.named_parameters():
            if "lstm" in name or "net" in name:
                p.mul_(2.0)
    return model


class Stepwise:
    """contrib's own forward passes, one step at a time, over what a model plays."""

    def __init__(self, model: VanillaPG):
        self.policy = model.policy
        shape = (self.policy.lstm_hidden_state_shape[0], model.n_envs, self.policy.lstm_hidden_state_shape[2])
        self.states = RNNStates(*((th.zeros(shape), th.zeros(shape)) for _ in range(2)))

    @th.no_grad()
    def over(self, buffer: EpisodeRolloutBuffer) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities and values, ``(n_steps, n_envs)`` each."""
        log_probs, values = [], []
        for t in range(buffer.buffer_size):
            obs = th.as_tensor(buffer.observations[t])
            starts = th.as_tensor(buffer.episode_starts[t])
            actions = th.as_tensor(buffer.actions[t]).flatten()
            v, log_prob, _ = self.policy.evaluate_actions(obs, actions, self.states, starts)
            _, _, _, self.states = self.policy(obs, self.states, starts)
            log_probs.append(log_prob.numpy())
            values.append(v.flatten().numpy())
        return np.array(log_probs), np.array(values)

    @th.no_grad()
    def value_behind(self, obs: np.ndarray) -> np.ndarray:
        """V of the observations behind the last step, episodes going on."""
        states = self.states.pi if self.policy.shared_lstm else self.states.vf
        return self.policy.predict_values(th.as_tensor(obs), states, th.zeros(len(obs))).flatten().numpy()


@layouts
@pytest.mark.parametrize("chunk_size", [1024, 10])
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
    monkeypatch.setattr(kind_module, "CHUNK_SIZE", 20)
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


# As a user of SB3 and contrib meets them

ENVS: dict[str, tuple[Any, str]] = {
    "CartPole": (lambda: gym.make("CartPole-v1", max_episode_steps=30), "MlpLstmPolicy"),
    "Pendulum": (lambda: gym.make("Pendulum-v1", max_episode_steps=10), "MlpLstmPolicy"),
    "image": (lambda: gym.wrappers.TimeLimit(FakeImageEnv(36, 36, discrete=True), 8), "CnnLstmPolicy"),
    "Dict": (lambda: gym.wrappers.TimeLimit(SimpleMultiObsEnv(), 8), "MultiInputLstmPolicy"),
}
CLASSES: list[tuple[type[VanillaPG], dict[str, Any]]] = [
    (VanillaPG, dict(n_steps=24)),
    (VanillaPG, dict(weights="return", n_episodes=2)),
    (ReinforceBaseline, dict(n_steps=24)),
    (ReinforceBaseline, dict(baseline="optimal", n_steps=24)),
    (ReinforceBaseline, dict(baseline="leave_one_out", n_episodes=2)),
    (NaturalPG, dict(n_steps=24, sub_sampling_factor=2)),
]


@pytest.mark.parametrize("name", ENVS)
@pytest.mark.parametrize("cls, kwargs", CLASSES)
def test_spaces(cls: type[VanillaPG], kwargs: dict[str, Any], name: str, tmp_path: Path) -> None:
    factory, policy = ENVS[name]
    env = make_vec_env(factory, 2, seed=0)
    model = cls(policy, env, seed=0, ent_coef=0.01, batch_size=16, policy_kwargs=dict(lstm_hidden_size=8), **kwargs)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.learn(150)
    updated = {key for key, value in model.policy.state_dict().items() if not th.equal(before[key], value)}
    assert {"lstm_actor.weight_hh_l0", "action_net.weight"} <= updated
    assert ("lstm_critic.weight_hh_l0" in updated) == ("value_net.weight" in updated) == model.uses_critic
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=env)
    obs = env.reset()
    state, starts = None, np.ones(2, dtype=bool)
    other_state = None
    for _ in range(3):
        action, state = model.predict(obs, state, starts, deterministic=True)
        other, other_state = loaded.predict(obs, other_state, starts, deterministic=True)
        np.testing.assert_array_equal(action, other)
        obs, _, starts, _ = env.step(action)
    loaded.learn(60, reset_num_timesteps=False)
    evaluate_policy(loaded, make_vec_env(factory, 1), n_eval_episodes=1, warn=False)


@pytest.mark.parametrize("cls, kwargs", CLASSES)
def test_gsde(cls: type[VanillaPG], kwargs: dict[str, Any]) -> None:
    env = make_vec_env(ENVS["Pendulum"][0], 2, seed=0)
    model = cls(
        "MlpLstmPolicy", env, use_sde=True, sde_sample_freq=1, seed=0, policy_kwargs=dict(lstm_hidden_size=8), **kwargs
    )
    before = model.policy.log_std.clone()
    assert not th.equal(before, model.learn(100).policy.log_std)


def test_the_same_seed_and_other_vector_environments() -> None:
    results = []
    for vec_env_cls in (DummyVecEnv, DummyVecEnv, SubprocVecEnv):
        env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0, vec_env_cls=vec_env_cls))
        model = VanillaPG("MlpLstmPolicy", env, seed=0, n_steps=32, device="cpu").learn(300)
        results.append(th.cat([p.detach().flatten() for p in model.policy.parameters()]))
        env.close()
    assert th.equal(results[0], results[1]) and th.equal(results[0], results[2])


def test_eval_callback_carries_the_memory(tmp_path: Path) -> None:
    callback = EvalCallback(make_vec_env("CartPole-v1", 1), eval_freq=60, n_eval_episodes=2, log_path=str(tmp_path), verbose=0)
    VanillaPG("MlpLstmPolicy", "CartPole-v1", n_steps=32, seed=0).learn(130, callback=callback)
    assert len(np.load(tmp_path / "evaluations.npz")["timesteps"]) == 2


class OwnForward(RecurrentActorCriticPolicy):
    """Its values are its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        actions, values, log_prob, states = super().forward(*args, **kwargs)
        return actions, th.full_like(values, 3.0), log_prob, states


class OwnEvaluation(RecurrentActorCriticPolicy):
    def evaluate_actions(self, *args: Any, **kwargs: Any) -> Any:
        values, log_prob, entropy = super().evaluate_actions(*args, **kwargs)
        return 2.0 * values, log_prob, entropy


def test_policies_of_the_users_own() -> None:
    model = make(policy=OwnForward)
    stepwise = Stepwise(model)
    _, callback = model._setup_learn(10**6)
    for _ in range(3):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        assert (model.rollout_buffer.values == 3.0).all()
        np.testing.assert_allclose(model.rollout_buffer.log_probs, stepwise.over(model.rollout_buffer)[0], atol=1e-5)
    model = make(policy=OwnEvaluation)
    collect(model)
    stepwise = Stepwise(model)
    log_probs, values = stepwise.over(model.rollout_buffer)
    np.testing.assert_allclose(model.rollout_buffer.values, values, atol=1e-5)
    np.testing.assert_allclose(model.rollout_buffer.log_probs, log_probs, atol=1e-5)
    with pytest.raises(ValueError, match="OwnEvaluation overrides"):
        NaturalPG(OwnEvaluation, "CartPole-v1")


def test_sb3s_buffer_is_refused() -> None:
    from stable_baselines3.common.buffers import RolloutBuffer

    with pytest.raises(ValueError, match="does not keep what RecurrentActorCriticPolicy needs"):
        VanillaPG("MlpLstmPolicy", "CartPole-v1", rollout_buffer_class=RolloutBuffer)
