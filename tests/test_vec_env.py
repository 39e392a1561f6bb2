"""Gymnasium's vector environments: in every autoreset mode what DummyVecEnv makes of the same episodes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from envs import ScriptedEnv, TabularVectorEnv
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from helpers import params
from oracle import DISCOUNTED, QUOTA, SIGNIFICANCE, WINDOW, tabular_p_value
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize, VecVideoRecorder

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.vec_env import GymnasiumVecEnv

MODES = list(AutoresetMode)
N_ENVS = 3


class Mixed(gym.Env):
    """Dictionaries of vectors and images; ends when the sum of its actions passes 4, or after 6 steps, or by both at once."""

    observation_space = spaces.Dict(
        {"state": spaces.Box(-np.inf, np.inf, (2,)), "image": spaces.Box(0, 255, (36, 36, 1), np.uint8)}
    )
    action_space = spaces.Discrete(3)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None, size: int = 1):
        self.render_mode, self.size = render_mode, size

    def _obs(self) -> dict[str, np.ndarray]:
        state = np.array([self.position, self.t], dtype=np.float32)
        return {"state": state, "image": np.full((36, 36, 1), 10 * self.t + int(self.position) % 10, np.uint8)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.total, self.t = float(self.np_random.normal()), 0, 0
        return self._obs(), {"started_at": self.position}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.total += int(action)
        self.position += float(self.np_random.normal())
        terminated, truncated = self.total > 4, self.t >= 6
        return self._obs(), self.position, terminated, truncated, {"is_success": terminated, "total": self.total}

    def action_masks(self) -> np.ndarray:
        return np.array([True, self.total % 2 == 0, True])

    def render(self) -> np.ndarray:
        return np.full((32, 32, 3), self.t, np.uint8)


def cart_pole() -> gym.Env:
    return gym.wrappers.TimeLimit(gym.make("CartPole-v1").env, 20)


def vectorised(make: Callable[[], gym.Env], mode: AutoresetMode, cls: Any = SyncVectorEnv) -> GymnasiumVecEnv:
    return GymnasiumVecEnv(cls([make] * N_ENVS, autoreset_mode=mode))


def same(x: Any, y: Any) -> bool:
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(same(x[key], y[key]) for key in x)
    return bool(np.array_equal(x, y)) and np.asarray(x).dtype == np.asarray(y).dtype


@pytest.mark.parametrize("cls", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("make", [cart_pole, Mixed])
@pytest.mark.parametrize("mode", MODES)
def test_episodes_are_those_of_dummy_vec_env(mode: AutoresetMode, make: Callable[[], gym.Env], cls: Any) -> None:
    dummy, env = DummyVecEnv([lambda: Monitor(make())] * N_ENVS), vectorised(make, mode, cls)
    rng = np.random.default_rng(0)
    for e in (dummy, env):
        e.seed(7)
    assert same(dummy.reset(), env.reset())
    assert all(map(same, dummy.reset_infos, env.reset_infos))
    n_ended = n_truncated = 0
    for _ in range(90):
        actions = rng.integers(0, dummy.action_space.n, N_ENVS)
        expected, found = dummy.step(actions), env.step(actions)
        for x, y in zip(expected[:3], found[:3], strict=True):
            assert same(x, y)
        for i in np.flatnonzero(expected[2]):
            of_dummy, of_env = expected[3][i], found[3][i]
            assert same(of_dummy["terminal_observation"], of_env["terminal_observation"])
            assert of_dummy["TimeLimit.truncated"] == of_env["TimeLimit.truncated"]
            n_truncated += of_env["TimeLimit.truncated"]
            assert {**of_dummy["episode"], "t": 0} == {**of_env["episode"], "t": 0}
            rest = of_dummy.keys() - {"episode", "terminal_observation"}
            assert all(of_dummy[key] == of_env[key] for key in rest) and rest <= of_env.keys()
            assert same(dummy.reset_infos[i], env.reset_infos[i])
        assert not any(found[3][i] for i in np.flatnonzero(~expected[2]))
        n_ended += expected[2].sum()
    assert n_ended > 10 and n_truncated > 0
    env.close()


@pytest.mark.parametrize("mode", MODES)
def test_terminal_observations_stay_what_they_were(mode: AutoresetMode) -> None:
    env = GymnasiumVecEnv(SyncVectorEnv([lambda: ScriptedEnv([2, 3])] * N_ENVS, copy=False, autoreset_mode=mode))
    first = env.reset()
    kept, last = first.copy(), None
    for _ in range(2):
        last = env.step(np.zeros(N_ENVS))[3]
    terminal = last[0]["terminal_observation"]
    then = terminal.copy()
    for _ in range(6):
        env.step(np.zeros(N_ENVS))
    assert same(first, kept) and same(terminal, then) and terminal.tolist() == [0, 2]


class TwoFold(gym.vector.VectorEnv):
    """Native, and resets at the next step: in the first environment episodes of 2 steps, in the second of 3, truncated."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    num_envs = 2
    single_observation_space, observation_space = spaces.Box(0, 9, (1,)), spaces.Box(0, 9, (2, 1))
    single_action_space, action_space = spaces.Discrete(2), spaces.MultiDiscrete([2, 2])
    knob = 1

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.t, self.done = np.zeros(2, dtype=int), np.zeros(2, dtype=bool)
        return self.t[:, None].astype(np.float32), {}

    def step(self, actions: np.ndarray) -> Any:
        self.t = np.where(self.done, 0, self.t + 1)
        rewards = np.where(self.done, 0.0, self.t)
        terminated, truncated = self.t == [2, 9], self.t == [9, 3]
        self.done = terminated | truncated
        return self.t[:, None].astype(np.float32), rewards, terminated, truncated, {}

    def ask(self, n: int = 2) -> int:
        return n


def test_reset_rows_are_in_nothing() -> None:
    model = VanillaPG("MlpPolicy", TwoFold(), n_steps=8, seed=0, gamma=0.9, gae_lambda=1.0, normalize_advantage=False)
    model.learn(1)
    # Environment 0: s s R s s R s s; environment 1: s s s R s s s R
    resets = np.array([[0, 0, 1, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0, 0, 1]], dtype=bool).T
    buffer = model.rollout_buffer
    assert np.array_equal(buffer.mask, ~resets)
    assert model.num_timesteps == 12
    assert [(e["l"], e["r"]) for e in model.ep_info_buffer] == [(2, 3.0), (3, 6.0), (2, 3.0), (3, 6.0), (2, 3.0)]
    assert buffer.timesteps[[0, 1, 3, 4], 0].tolist() == [0, 1, 0, 1]
    with th.no_grad():
        at_limit = float(model.policy.predict_values(th.tensor([[3.0]])))
    assert at_limit != 0.0
    samples = buffer.samples()[0]
    assert len(samples.returns) == 12
    before = VanillaPG("MlpPolicy", TwoFold(), n_steps=8, seed=0).policy.predict_values(th.tensor([[3.0]])).item()
    expected = [1 + 0.9 * 2, 2] * 3 + [
        1 + 0.9 * (2 + 0.9 * (3 + 0.9 * before)),
        2 + 0.9 * (3 + 0.9 * before),
        3 + 0.9 * before,
    ] * 2
    np.testing.assert_allclose(samples.returns, expected, rtol=1e-5)
    # The reset that the rollout left open is the first row of the next
    model.learn(1, reset_num_timesteps=False)
    assert buffer.mask[:3].tolist() == [[False, True], [True, True], [True, True]]


def test_windows_and_quotas_count_steps() -> None:
    for kwargs, lengths in ((dict(n_steps=4), [2, 3, 2, 3]), (dict(n_episodes=2), [2, 3, 2, 3])):
        model = ReinforceBaseline("MlpPolicy", TwoFold(), seed=0, **kwargs).learn(1)
        assert [e["l"] for e in model.ep_info_buffer] == lengths
        assert len(model.rollout_buffer.samples()[0].returns) == 10


def test_who_cannot_skip_reset_rows_is_told() -> None:
    for use in (
        lambda: PPO("MlpPolicy", GymnasiumVecEnv(TwoFold()), n_steps=8, batch_size=4).learn(16),
        lambda: evaluate_policy(VanillaPG("MlpPolicy", TwoFold()), GymnasiumVecEnv(TwoFold())),
    ):
        with pytest.raises(
            RuntimeError, match="was reset in the place of a step, which only the training of sb3_pg's algorithms can leave"
        ):
            use()
    for wrap in (VecNormalize, VecMonitor, partial(VecFrameStack, n_stack=2)):
        with pytest.raises(ValueError, match=r"takes every row for a step.*SAME_STEP"):
            VanillaPG("MlpPolicy", wrap(GymnasiumVecEnv(TwoFold())))
    from stable_baselines3.common.buffers import RolloutBuffer

    with pytest.raises(ValueError, match="This rollout_buffer_class takes every row"):
        VanillaPG("MlpPolicy", TwoFold(), rollout_buffer_class=RolloutBuffer)
    model = PPO("MlpPolicy", GymnasiumVecEnv(TwoFold(), reset_rows="keep"), n_steps=8, batch_size=4).learn(16)
    assert [e["l"] for e in model.ep_info_buffer][:3] == [2, 3, 3]  # the reset is taken for a step


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "cls, kwargs",
    [
        (VanillaPG, dict(weights="return", **WINDOW)),
        (ReinforceBaseline, dict(baseline="leave_one_out", **DISCOUNTED, **QUOTA)),
        (VanillaPG, dict(gae_lambda=0.0, right_critic=True, direction_only=True, n_steps=2, **DISCOUNTED)),
    ],
    ids=["window", "quota", "cut"],
)
def test_the_gradient_is_exact(mode: AutoresetMode, cls: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    def make_env(*args: Any) -> VecEnv:
        return GymnasiumVecEnv(TabularVectorEnv(*args, mode))

    assert tabular_p_value(cls, seed=1, make_env=make_env, **kwargs) > SIGNIFICANCE


@pytest.mark.parametrize("extent", [QUOTA, WINDOW], ids=["quota", "window"])
def test_reset_rows_that_are_kept_are_rejected(extent: dict[str, Any]) -> None:
    def make_env(*args: Any) -> VecEnv:
        return GymnasiumVecEnv(TabularVectorEnv(*args, AutoresetMode.NEXT_STEP), reset_rows="keep")

    p = tabular_p_value(VanillaPG, seed=1, make_env=make_env, weights="return", **extent)
    assert p < SIGNIFICANCE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "cls, kwargs",
    [
        (VanillaPG, dict(n_steps=32)),
        (NaturalPG, dict(n_episodes=1)),
        (A2C, {}),
        (PPO, dict(n_steps=32, batch_size=32, n_epochs=2)),
    ],
)
def test_training_is_that_through_dummy_vec_env(mode: AutoresetMode, cls: Any, kwargs: dict[str, Any]) -> None:
    weights = []
    for env in (DummyVecEnv([lambda: Monitor(cart_pole())] * N_ENVS), vectorised(cart_pole, mode)):
        model = cls("MlpPolicy", env, seed=3, device="cpu", **kwargs).learn(400)
        assert [e["l"] for e in model.ep_info_buffer]
        weights.append((model.policy.state_dict(), [(e["r"], e["l"]) for e in model.ep_info_buffer]))
    th.testing.assert_close(*(x for x, _ in weights), rtol=0, atol=0)
    assert weights[0][1] == weights[1][1]


@pytest.mark.parametrize("wrap", [VecNormalize, partial(VecFrameStack, n_stack=3), VecMonitor])
def test_wrappers_of_sb3_see_what_they_see_around_dummy_vec_env(wrap: Callable[..., Any]) -> None:
    """In the default mode, NEXT_STEP."""
    seen = []
    for env in (DummyVecEnv([cart_pole] * N_ENVS), vectorised(cart_pole, AutoresetMode.NEXT_STEP)):
        wrapped = wrap(env)
        model = VanillaPG("MlpPolicy", wrapped, n_steps=32, seed=0).learn(300)
        seen.append(model.policy.state_dict())
        if isinstance(wrapped, VecNormalize):
            seen[-1] |= {name: getattr(rms, part) for name, rms in (("obs", wrapped.obs_rms), ("ret", wrapped.ret_rms))
                         for part in ("mean", "var", "count")}  # fmt: skip
    th.testing.assert_close(*seen, rtol=0, atol=0)


def test_a_video_is_recorded(tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    venv = vectorised(partial(Mixed, render_mode="rgb_array"), AutoresetMode.SAME_STEP)
    env = VecVideoRecorder(venv, str(tmp_path), lambda step: step == 0, video_length=4)
    env.reset()
    for _ in range(6):
        env.step(np.zeros(N_ENVS, dtype=int))
    env.close()
    assert list(tmp_path.glob("*.mp4"))


@pytest.mark.parametrize("policy", ["MultiInputPolicy", "MaskableMultiInputPolicy", "MultiInputLstmPolicy"])
@pytest.mark.parametrize("mode", MODES)
def test_all_kinds_of_policies_train(policy: str, mode: AutoresetMode) -> None:
    weights = []
    for env in (DummyVecEnv([Mixed] * N_ENVS), vectorised(Mixed, mode)):
        model = VanillaPG(policy, env, n_steps=16, seed=0).learn(100)
        weights.append(params(model))
    th.testing.assert_close(*weights, rtol=0, atol=0)


class MasksInInfos(TwoFold):
    """Action 1 is illegal in the second environment."""

    masks = np.array([[1, 1], [1, 0]], dtype=np.int8)

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0], {"action_mask": self.masks}

    def step(self, actions: np.ndarray) -> Any:
        assert actions[1] == 0 or self.done[1]
        result = super().step(actions)[:4]
        return *result, {"action_mask": self.masks * ~self.done[:, None]}  # none is legal where the episode is over


def test_masks_come_from_the_infos_too() -> None:
    VanillaPG("MaskableMlpPolicy", MasksInInfos(), n_steps=16, seed=0).learn(64)
    with pytest.raises(ValueError, match="action_masks"):
        VanillaPG("MaskableMlpPolicy", TwoFold())


def test_attributes_and_methods() -> None:
    env = vectorised(Mixed, AutoresetMode.SAME_STEP)
    env.reset()
    assert env.get_attr("size") == [1, 1, 1] and env.has_attr("size") and not env.has_attr("nothing")
    env.set_attr("size", 5, indices=[1])
    assert env.get_attr("size") == [1, 5, 1] and env.get_attr("size", indices=1) == [5]
    assert [masks.tolist() for masks in env.env_method("action_masks", indices=[0, 2])] == [[True, True, True]] * 2
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * 3 and env.env_is_wrapped(Monitor) == [True] * 3
    assert vectorised(cart_pole, AutoresetMode.SAME_STEP).env_is_wrapped(gym.wrappers.TimeLimit) == [True] * 3

    native = GymnasiumVecEnv(TwoFold())
    assert native.get_attr("knob") == [1, 1] and native.env_method("ask", n=3) == [3, 3]
    native.set_attr("knob", 4)
    assert native.get_attr("knob") == [4, 4]
    with pytest.raises(ValueError, match="TwoFold takes 'knob' for all environments at once"):
        native.set_attr("knob", 1, indices=[0])
    with pytest.raises(AttributeError):
        native.get_attr("nothing")

    parallel = vectorised(Mixed, AutoresetMode.SAME_STEP, AsyncVectorEnv)
    parallel.set_attr("size", 3)
    assert parallel.get_attr("size") == [3] * 3 and not parallel.has_attr("nothing") and parallel.has_attr("action_masks")
    parallel.close()


def test_models_take_vector_environments_wherever_they_take_environments(tmp_path: Path) -> None:
    env = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    model = VanillaPG("MlpPolicy", env, n_steps=16, seed=0).learn(32)
    assert isinstance(model.get_env(), GymnasiumVecEnv) and model.get_env().env is env
    model.set_env(gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="vector_entry_point"))
    model.learn(32)
    model.save(tmp_path / "model")
    loaded = VanillaPG.load(
        tmp_path / "model", env=gym.make_vec("CartPole-v1", num_envs=4, vectorization_mode="sync"), n_envs=4
    )
    assert loaded.n_envs == 4
    loaded.learn(64)
    evaluation = GymnasiumVecEnv(gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync"))
    _, lengths = evaluate_policy(model, evaluation, n_eval_episodes=5, return_episode_rewards=True)
    assert len(lengths) == 5


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"env must be a gymnasium\.vector\.VectorEnv"):
        GymnasiumVecEnv(gym.make("CartPole-v1"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='reset_rows must be "skip" or "keep"'):
        GymnasiumVecEnv(TwoFold(), reset_rows="drop")


def test_env_pool() -> None:
    envpool = pytest.importorskip("envpool")
    vector = envpool.make("CartPole-v1", env_type="gymnasium", num_envs=4, seed=1, max_episode_steps=30)
    env = GymnasiumVecEnv(vector)
    observations, lengths, now = env.reset(), [], np.zeros(4, dtype=int)
    for _ in range(200):
        new, rewards, dones, infos = env.step((observations[:, 2] + 0.4 * observations[:, 3] > 0).astype(int))
        now += 1
        assert (rewards == 1.0).all()
        for i in np.flatnonzero(dones):
            assert infos[i]["episode"]["l"] == infos[i]["episode"]["r"] == now[i]
            assert infos[i]["TimeLimit.truncated"] == (now[i] == 30)
            terminal = infos[i]["terminal_observation"]
            assert np.abs(terminal - observations[i]).max() < 1.0 and np.abs(new[i]).max() <= 0.1  # the next one's first
            lengths.append(now[i])
            now[i] = 0
        observations = new
    assert lengths and 30 in lengths
    VanillaPG("MlpPolicy", VecNormalize(env), n_steps=32, seed=0).learn(256)
