"""Policies that a callback changes within a rollout: the next step is the new one's, the steps before are scored as played."""

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from envs import ScriptedEnv
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg.policies.snapshot import Snapshot

Change = Callable[[Any], Any]


def make_env() -> Any:
    return make_vec_env(lambda: gym.make("Pendulum-v1", max_episode_steps=7), 2, seed=0)


class Changes(BaseCallback):
    """Changes the policy after given steps, and remembers the policies that played."""

    def __init__(self, change: Change, at: set[int]):
        super().__init__()
        self.change, self.at = change, at

    def _on_rollout_start(self) -> None:
        self.t, self.policies = 0, []

    def _on_step(self) -> bool:
        self.policies.append(copy.deepcopy(self.model.policy))
        if self.t in self.at:
            self.change(self.model.policy)
        self.t += 1
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        names = ("observations", "actions", "values", "log_probs", "episode_starts", "mask")
        self.rows = {name: np.copy(getattr(buffer, name)) for name in names if hasattr(buffer, name)}


def replace_log_std(policy: Any) -> None:
    policy.log_std = nn.Parameter(policy.log_std.detach() - 1.0)


def replace_actor(policy: Any) -> None:
    policy.action_net = nn.Linear(64, 1)


def replace_critic(policy: Any) -> None:
    policy.value_net = nn.Linear(64, 1)


def in_place(policy: Any) -> None:
    with th.no_grad():
        policy.mlp_extractor.policy_net[2].weight[40:].mul_(2.0)


def data_in_place(policy: Any) -> None:
    policy.log_std.data.fill_(-0.7)
    policy.mlp_extractor.value_net[0].weight.data.mul_(0.5)


def data_elsewhere(policy: Any) -> None:
    policy.log_std.data = policy.log_std.data + 0.5


def load(policy: Any) -> None:
    policy.load_state_dict({key: 0.5 * value for key, value in policy.state_dict().items()})


CHANGES = [replace_log_std, replace_actor, replace_critic, in_place, data_in_place, data_elsewhere, load]
changes = pytest.mark.parametrize("change", CHANGES)
times = pytest.mark.parametrize("at", [{0}, {5, 6, 11}, {15}, set(range(16)), {100}])


@times
@changes
def test_steps_are_scored_as_they_were_played(change: Change, at: set[int]) -> None:
    callback = Changes(change, at)
    VanillaPG("MlpPolicy", make_env(), n_steps=16, seed=0).learn(32, callback=callback)
    rows = callback.rows
    for t, policy in enumerate(callback.policies):
        with th.no_grad():
            values, log_probs, _ = policy.evaluate_actions(
                th.as_tensor(rows["observations"][t]), th.as_tensor(rows["actions"][t])
            )
        np.testing.assert_allclose(rows["log_probs"][t], log_probs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rows["values"][t], values.flatten(), rtol=1e-4, atol=1e-5)


class Elu(ActorCriticPolicy):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs, activation_fn=nn.ELU)  # torch plays, not NumPy


class OwnForward(ActorCriticPolicy):
    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        return super().forward(obs, deterministic)


@pytest.mark.parametrize("policy", ["MlpPolicy", Elu, OwnForward])
@pytest.mark.parametrize("buffer_class", [None, RolloutBuffer])
def test_the_next_step_is_that_of_the_changed_policy(policy: Any, buffer_class: Any) -> None:
    def narrow(policy: Any) -> None:
        policy.log_std = nn.Parameter(th.full((1,), -20.0))
        policy.action_net = nn.Linear(64, 1)
        nn.init.constant_(policy.action_net.bias, 5.0)

    callback = Changes(narrow, {5})
    VanillaPG(policy, make_env(), n_steps=16, rollout_buffer_class=buffer_class, seed=0).learn(32, callback=callback)
    actions = callback.rows["actions"].reshape(-1, 16, 2) if buffer_class else callback.rows["actions"]
    actions = actions.reshape(16, 2)
    with th.no_grad():
        means = callback.policies[-1].get_distribution(th.as_tensor(callback.rows["observations"][6:]).flatten(0, 1)).mode()
    np.testing.assert_allclose(actions[6:].ravel(), means.flatten(), atol=1e-5)
    assert np.abs(actions[:6] - 5.0).min() > 1e-3


def test_a_policy_that_is_put_in_the_place_of_another() -> None:
    class Replaces(Changes):
        def _on_step(self) -> bool:
            self.policies.append(self.model.policy)
            if self.t in self.at:
                model = self.model
                model.policy = ActorCriticPolicy(model.observation_space, model.action_space, model.lr_schedule)
            self.t += 1
            return True

    callback = Replaces(lambda policy: None, {4, 9})
    VanillaPG("MlpPolicy", make_env(), n_steps=16, n_critic_updates=0, learning_rate=0.0, seed=0).learn(32, callback=callback)
    assert len(set(map(id, callback.policies))) == 3
    for t, policy in enumerate(callback.policies):
        obs, actions = (th.as_tensor(callback.rows[name][t]) for name in ("observations", "actions"))
        with th.no_grad():
            np.testing.assert_allclose(callback.rows["log_probs"][t], policy.evaluate_actions(obs, actions)[1], atol=1e-5)


@pytest.mark.parametrize("shared", [None, True, False])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("at", [{5}, {0, 6, 7}, set(range(16))])
def test_memory_goes_on_through_a_change(at: set[int], masked: bool, shared: bool | None) -> None:
    def halve(policy: Any) -> None:
        policy.lstm_actor.weight_hh_l0 = nn.Parameter(0.5 * policy.lstm_actor.weight_hh_l0.detach())
        policy.action_net.weight.data.mul_(3.0)
        if policy.lstm_critic is not None:
            policy.lstm_critic.weight_ih_l0.data.mul_(2.0)

    def make() -> gym.Env:
        return ActionMasker(gym.make("CartPole-v1", max_episode_steps=9), lambda env: np.ones(2, dtype=bool))

    callback = Changes(halve, at)
    policy_kwargs = dict(lstm_hidden_size=8, enable_critic_lstm=shared is False, shared_lstm=shared is True)
    policy = "MaskableMlpLstmPolicy" if masked else "MlpLstmPolicy"
    env = make_vec_env(make, 2, seed=0)
    model = VanillaPG(policy, env, n_steps=16, policy_kwargs=policy_kwargs, n_critic_updates=0, learning_rate=0.0, seed=0)
    states: Any = None
    for _ in range(2):  # the second rollout goes on with the memory of the first
        model.learn(32, callback=callback, reset_num_timesteps=False)
        rows = callback.rows
        for t, played in enumerate(callback.policies):
            obs, actions = th.as_tensor(rows["observations"][t]), th.as_tensor(rows["actions"][t]).long().flatten()
            starts = th.as_tensor(rows["episode_starts"][t])
            if states is None:
                zeros = th.zeros(1, 2, 8)
                states = RNNStates((zeros, zeros), (zeros, zeros))
            with th.no_grad():
                values, log_probs, _ = played.evaluate_actions(obs, actions, states, starts)
                _, _, _, states = played.forward(obs, states, starts)
            np.testing.assert_allclose(rows["log_probs"][t], log_probs, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(rows["values"][t], values.flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "cls, kwargs",
    [
        (VanillaPG, dict(weights="reward_to_go")), (ReinforceBaseline, {}), (ReinforceBaseline, dict(baseline="optimal")),
        (NaturalPG, dict(n_episodes=2)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy"])
def test_whole_episodes(cls: Any, kwargs: Any, policy: str) -> None:
    callback = Changes(replace_actor if policy == "MlpPolicy" else lambda p: p.action_net.weight.data.mul_(0.5), {3, 12})
    env = DummyVecEnv([lambda n=n: gym.wrappers.TimeLimit(gym.make("Pendulum-v1"), n) for n in (5, 9)])
    cls(policy, env, n_steps=8, seed=0, **kwargs).learn(80, callback=callback)
    rows = callback.rows
    assert not rows["mask"].all()  # there are surplus steps
    assert (rows["log_probs"][rows["mask"]] != 0.0).all() and (rows["log_probs"][~rows["mask"]] == 0.0).all()
    if policy == "MlpPolicy":
        for t, played in enumerate(callback.policies):
            obs, actions = (th.as_tensor(rows[name][t]) for name in ("observations", "actions"))
            with th.no_grad():
                expected = np.where(rows["mask"][t], played.evaluate_actions(obs, actions)[1], 0.0)
            np.testing.assert_allclose(rows["log_probs"][t], expected, rtol=1e-4, atol=1e-5)


def test_a_schedule_of_the_standard_deviation_trains_the_rest() -> None:
    def set_std(policy: Any) -> None:
        policy.log_std = nn.Parameter(th.full((1,), -1.0), requires_grad=False)

    model = VanillaPG("MlpPolicy", make_env(), n_steps=16, seed=0)
    before = model.policy.action_net.weight.clone()
    model.learn(96, callback=Changes(set_std, set(range(16))))
    assert not th.equal(before, model.policy.action_net.weight) and model.policy.log_std.item() == -1.0
    assert any(p is model.policy.log_std for p in model.policy.optimizer.param_groups[0]["params"])


def test_a_callback_that_changes_nothing_costs_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = VanillaPG("MlpPolicy", DummyVecEnv([lambda: ScriptedEnv([7])]), n_steps=16, seed=0)
    parts = []
    for name in ("fill_values", "fill_log_probs"):
        fill = getattr(model.kind, name)
        monkeypatch.setattr(
            model.kind, name, lambda buffer, rows, *args, fill=fill: parts.append(rows) or fill(buffer, rows, *args)
        )
    model.learn(32, callback=Changes(lambda policy: None, {5}))
    assert parts == [slice(0, 16)] * 4


@changes
def test_a_snapshot_is_what_was_there(change: Change) -> None:
    model = VanillaPG("MlpPolicy", "Pendulum-v1", seed=0)
    policy = model.policy
    obs = th.randn(5, 3)
    snapshot, before = Snapshot(policy), policy.get_distribution(obs).distribution.mean.detach()
    state, values = copy.deepcopy(policy.state_dict()), policy.predict_values(obs).detach()
    assert not snapshot.is_changed(policy)
    change(policy)
    assert snapshot.is_changed(policy)
    objects, after = list(policy.parameters()), copy.deepcopy(policy.state_dict())
    with snapshot.restored():
        assert th.equal(policy.get_distribution(obs).distribution.mean, before)
        assert th.equal(policy.predict_values(obs), values)
        th.testing.assert_close(policy.state_dict(), state, rtol=0.0, atol=0.0)
    th.testing.assert_close(policy.state_dict(), after, rtol=0.0, atol=0.0)
    assert all(a is b for a, b in zip(objects, policy.parameters(), strict=True))
    assert not Snapshot(policy).is_changed(policy)
