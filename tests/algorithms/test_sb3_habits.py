"""The classes as a user of SB3 knows them: spaces, seeds, wrappers, saving, parameters, metrics."""

import copy
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from helpers import VARIANTS, changed, params, variants
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import EvalCallback, LogEveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import (
    FakeImageEnv,
    IdentityEnv,
    IdentityEnvBox,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
    SimpleMultiObsEnv,
)
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg.algorithms.policy_gradient import PolicyGradient

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
        with closing(make_vec_env("CartPole-v1", 2, seed=0, vec_env_cls=vec_env_cls)) as env:
            results.append(params(ReinforceBaseline("MlpPolicy", env, seed=0, n_steps=16).learn(200)))
    assert all(th.equal(*(result[key] for result in results)) for key in results[0])


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


def test_linear_policy() -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", weights="return", policy_kwargs=dict(net_arch=[]), n_steps=16).learn(100)
    assert sum(p.numel() for p in model.kind.actor_parameters()) == 2 * 4 + 2


def test_policy_kwargs_are_left_alone() -> None:
    policy_kwargs = dict(net_arch=[8])
    VanillaPG("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs)
    assert policy_kwargs == dict(net_arch=[8])


def test_a_model_can_be_copied() -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, seed=0).learn(32)
    assert not changed(params(model), copy.deepcopy(model))


def test_a_model_loaded_without_an_environment(tmp_path: Path) -> None:
    env = make_vec_env("CartPole-v1", 2, seed=0)
    VanillaPG("MlpPolicy", env, n_steps=16).learn(32).save(tmp_path / "m")
    model = VanillaPG.load(tmp_path / "m")
    assert model.predict(env.reset())[0].shape == (2,)
    with pytest.raises(ValueError, match=r"no environment to learn from: pass env to VanillaPG or VanillaPG\.load"):
        model.learn(32)
    model.set_env(env)
    assert model.learn(32).num_timesteps == 32
    with pytest.raises(ValueError, match="no environment to learn from"):
        VanillaPG("MlpPolicy", None)


@pytest.mark.parametrize(
    "cls, name, message",
    [
        (VanillaPG, "n_step", r"VanillaPG\.load\(\) does not take 'n_step': did you mean 'n_steps'\?"),
        (VanillaPG, "target_kl", r"'target_kl': it takes env, learning_rate, .*, device, .*and attributes of the saved model"),
        (VanillaPG, "vf_coef", "'vf_coef'"),  # an attribute, without effect
        (NaturalPG, "max_grad_norm", "'max_grad_norm'"),
        (ReinforceBaseline, "policy", "'policy'"),
        (ReinforceBaseline, "base_line", "did you mean 'baseline'"),
    ],
)
def test_misspelt_keywords_of_load(cls: type[PolicyGradient], name: str, message: str, tmp_path: Path) -> None:
    cls("MlpPolicy", "CartPole-v1").save(tmp_path / "m")
    with pytest.raises(TypeError, match=message):
        cls.load(tmp_path / "m", **{name: 3})


def test_keywords_of_load(tmp_path: Path) -> None:
    env = make_vec_env("CartPole-v1", 2, seed=0)
    model = VanillaPG("MlpPolicy", env)
    model.note = "the user's own"
    model.save(tmp_path / "m")
    # rl-zoo3's enjoy, its train -i, attributes, and a file that is open
    zoos = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    assert VanillaPG.load(tmp_path / "m", custom_objects=zoos, device="cpu", seed=3).seed == 3
    given = dict(seed=1, tensorboard_log=str(tmp_path), verbose=0, n_steps=8, policy_kwargs={}, note="another")
    model = VanillaPG.load(tmp_path / "m", env=env, device="cpu", **given)
    assert {name: getattr(model, name) for name in given} == given and model.rollout_buffer.buffer_size == 8
    with open(tmp_path / "m.zip", "rb") as file:
        assert VanillaPG.load(file, n_envs=3).rollout_buffer.n_envs == 3


def test_load_of_a_users_class(tmp_path: Path) -> None:
    class Mine(VanillaPG):
        def __init__(self, *args: Any, temperature: float = 1.0, **kwargs: Any):
            self.temperature = temperature
            super().__init__(*args, **kwargs)

    Mine("MlpPolicy", "CartPole-v1", temperature=2.0).save(tmp_path / "m")
    model = Mine.load(tmp_path / "m", temperature=3.0, n_steps=8)
    assert model.temperature == 3.0 and model.n_steps == 8
    with pytest.raises(TypeError, match=r"Mine\.load\(\) does not take 'n_step': did you mean 'n_steps'"):
        Mine.load(tmp_path / "m", n_step=8)


class Rows(KVWriter):
    """Where rows of a log are counted."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.steps.append(step)


def rows_of(model: PolicyGradient, n_steps: int, **kwargs: Any) -> list[int]:
    rows = Rows()
    model.set_logger(Logger(None, [rows]))
    model.learn(n_steps, **kwargs)
    return rows.steps


@pytest.mark.parametrize(
    "cls, kwargs, n_envs, every",
    [
        (VanillaPG, {}, 8, 2048),
        (VanillaPG, {}, 1, 2048),
        (VanillaPG, dict(n_steps=5), 8, 2080),  # 52 rollouts of 40 steps
        (NaturalPG, {}, 8, 8192),
        (NaturalPG, {}, 1, 2048),
    ],
)
def test_the_pace_of_the_log(cls: type[PolicyGradient], kwargs: dict[str, Any], n_envs: int, every: int) -> None:
    model = cls("MlpPolicy", make_vec_env("CartPole-v1", n_envs, seed=0), seed=0, **kwargs)
    steps = rows_of(model, 2 * every)
    assert steps == [every, 2 * every]
    # Going on: the pace is that of each call of learn
    assert rows_of(model, every, reset_num_timesteps=False) == [model.num_timesteps] == [3 * every]


def test_the_pace_of_the_log_with_whole_episodes() -> None:
    model = ReinforceBaseline("MlpPolicy", "CartPole-v1", n_episodes=1, seed=0)
    gaps = np.diff([0, *rows_of(model, 10_000)])
    assert 4 <= len(gaps) <= 5 and all(gaps >= 2048) and all(gaps < 2048 + 500)


def test_the_pace_of_the_log_on_request() -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, seed=0)
    assert rows_of(model, 160, log_interval=3) == [48, 96, 144]
    assert rows_of(model, 160, log_interval=None) == []
    assert rows_of(model, 160, log_interval=None, callback=LogEveryNTimesteps(32)) == [32, 64, 96, 128, 160]
    assert rows_of(model, 64, callback=LogEveryNTimesteps(32)) == [32, 64]
