"""Honest models open without being trusted, act as they did and go on training alike."""

import base64
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from hostile import watched
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiDiscrete
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import (
    FakeImageEnv,
    IdentityEnv,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
    SimpleMultiObsEnv,
)
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import VecNormalize
from test_saved_by_0_1_0 import DATA

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg.loading import NotTrustedError, load_model

SMALL: dict[str, Any] = dict(net_arch=[4])
WITH_MEMORY: dict[str, Any] = dict(net_arch=[4], lstm_hidden_size=4)
TINY_CNN: dict[str, Any] = dict(features_extractor_kwargs=dict(features_dim=4), net_arch=[])


def image() -> gym.Env:
    return gym.wrappers.TimeLimit(FakeImageEnv(screen_height=36, screen_width=36, n_channels=1), 20)


def masked() -> gym.Env:
    return InvalidActionEnvDiscrete(dim=6, n_invalid_actions=2)


def normalised() -> VecNormalize:
    return VecNormalize(make_vec_env("Pendulum-v1", 2))


def zoo_schedule() -> Any:
    from rl_zoo3.utils import linear_schedule

    return linear_schedule(1e-3)


CART, PENDULUM = (lambda: gym.make("CartPole-v1")), (lambda: gym.make("Pendulum-v1"))
BATCH: dict[str, Any] = dict(n_steps=32, batch_size=32)
EPOCH: dict[str, Any] = dict(n_epochs=1, **BATCH)
#: Class, policy, environment, arguments; in the order of one of each kind
MODELS: dict[str, tuple[Any, str, Callable[[], Any], Callable[[], dict[str, Any]]]] = {
    "gae": (VanillaPG, "MlpPolicy", CART, lambda: dict(n_steps=32)),
    "returns": (VanillaPG, "MlpPolicy", CART, lambda: dict(weights="return", n_episodes=2, max_grad_norm=np.float32(1.0))),
    "value": (ReinforceBaseline, "MlpPolicy", CART, lambda: dict(n_steps=32, gamma=np.float64(0.9))),
    "running mean": (ReinforceBaseline, "MlpPolicy", CART, lambda: dict(baseline="running_mean", n_steps=32)),
    "optimal": (ReinforceBaseline, "MlpPolicy", PENDULUM, lambda: dict(baseline="optimal", n_episodes=1)),
    "natural": (NaturalPG, "MlpPolicy", PENDULUM, lambda: dict(n_steps=32, target_kl=LinearSchedule(0.01, 0.001, 0.5))),
    "gSDE, normalised": (VanillaPG, "MlpPolicy", normalised, lambda: dict(n_steps=32, use_sde=True, sde_sample_freq=4)),
    "schedules": (VanillaPG, "MlpPolicy", CART, lambda: dict(n_steps=32, ent_coef=LinearSchedule(0.1, 0.0, 1.0),
                  learning_rate=zoo_schedule(), critic_learning_rate=LinearSchedule(1e-3, 0.0, 1.0))),
    "memory": (VanillaPG, "MlpLstmPolicy", CART, lambda: dict(n_steps=32, policy_kwargs=dict(WITH_MEMORY))),
    "masks": (NaturalPG, "MaskableMlpPolicy", masked,
              lambda: dict(n_steps=32, policy_kwargs=dict(SMALL))),
    "memory and masks": (ReinforceBaseline, "MaskableMlpLstmPolicy", lambda: InvalidActionEnvMultiDiscrete(),
                         lambda: dict(n_steps=32, policy_kwargs=dict(WITH_MEMORY))),
    "images": (VanillaPG, "CnnPolicy", image, lambda: dict(n_steps=32, policy_kwargs=dict(TINY_CNN))),
    "dictionaries": (VanillaPG, "MultiInputPolicy", SimpleMultiObsEnv, lambda: dict(n_steps=32, policy_kwargs=dict(SMALL))),
    "critic sees more": (VanillaPG, "MultiInputPolicy", lambda: SimpleMultiObsEnv(), lambda: dict(n_steps=32,
                         policy_kwargs=dict(net_arch=[4], critic_only_keys=("vec",)))),
    "binary": (VanillaPG, "MlpPolicy", lambda: IdentityEnvMultiBinary(ep_length=8), lambda: dict(n_steps=32)),
    "several actions": (VanillaPG, "MlpPolicy", lambda: IdentityEnvMultiDiscrete(ep_length=8), lambda: dict(n_steps=32)),
    "numbers as observations": (VanillaPG, "MlpPolicy", lambda: IdentityEnv(ep_length=8), lambda: dict(n_steps=32)),
    "activation and optimizer": (VanillaPG, "MlpPolicy", CART, lambda: dict(n_steps=32, policy_kwargs=dict(
        net_arch=dict(pi=[8], vf=[8]), activation_fn=th.nn.LeakyReLU, optimizer_class=th.optim.SGD,
        optimizer_kwargs=dict(momentum=0.9)))),
    "RMSprop of TensorFlow": (NaturalPG, "MlpPolicy", CART, lambda: dict(n_steps=32, policy_kwargs=dict(
        optimizer_class=RMSpropTFLike, share_features_extractor=False))),
    "A2C": (A2C, "MlpPolicy", CART, dict),
    "A2C of images": (A2C, "CnnPolicy", image, lambda: dict(policy_kwargs=dict(TINY_CNN))),
    "PPO": (PPO, "MlpPolicy", normalised, lambda: dict(clip_range_vf=0.2, use_sde=True, **EPOCH)),
    "PPO of dictionaries": (PPO, "MultiInputPolicy", SimpleMultiObsEnv, lambda: dict(policy_kwargs=dict(SMALL), **EPOCH)),
    "TRPO": (TRPO, "MlpPolicy", CART, lambda: dict(BATCH)),
    "MaskablePPO": (MaskablePPO, "MlpPolicy", masked, lambda: dict(EPOCH)),
    "RecurrentPPO": (RecurrentPPO, "MlpLstmPolicy", CART, lambda: dict(policy_kwargs=dict(WITH_MEMORY), **EPOCH)),
    "SAC": (SAC, "MlpPolicy", PENDULUM, lambda: dict(buffer_size=500, learning_starts=8, policy_kwargs=dict(SMALL))),
    "DQN": (DQN, "MlpPolicy", CART, lambda: dict(buffer_size=500, learning_starts=8, policy_kwargs=dict(SMALL))),
}  # fmt: skip


def load_untrusted(algorithm: Any, path: Any, **kwargs: Any) -> Any:
    if issubclass(algorithm, VanillaPG | ReinforceBaseline | NaturalPG):
        return algorithm.load(path, trusted=False, device="cpu", **kwargs)
    return load_model(algorithm, path, device="cpu", **kwargs)


def saved(model: Any) -> io.BytesIO:
    file = io.BytesIO()
    model.save(file)
    return file


@pytest.fixture(scope="module", autouse=True)
def imports() -> None:
    """Torch imports some of itself when it is first needed."""
    load_untrusted(PPO, saved(PPO("MlpPolicy", CART(), n_steps=32)))


@pytest.mark.parametrize("kind", MODELS)
def test_it_opens_acts_and_learns_alike(kind: str) -> None:
    algorithm, policy, make_env, arguments = MODELS[kind]
    model = algorithm(policy, make_env(), device="cpu", **{"seed": 0, **arguments()}).learn(40)
    file = saved(model)
    with watched() as events:
        untrusted = load_untrusted(algorithm, file)
    assert [event for event in events if not event.startswith("open")] == [] and not any("/tmp" in event for event in events)
    trusted = algorithm.load(file, device="cpu")
    observations = [model.observation_space.sample() for _ in range(20)]
    for a, b in ((untrusted, model), (untrusted, trusted)):
        for observation in observations:
            np.testing.assert_array_equal(
                a.predict(observation, deterministic=True)[0], b.predict(observation, deterministic=True)[0]
            )
    after = []
    for loaded in (untrusted, trusted):
        set_random_seed(7)
        env = make_env()
        for space in (env.action_space, env.observation_space):  # from which some of SB3's draw
            space.seed(7)
        loaded.set_env(env)
        loaded.set_random_seed(7)
        loaded.learn(40, reset_num_timesteps=False)
        after.append(loaded.policy.state_dict())
    assert after[0].keys() == after[1].keys() and all(th.equal(after[0][key], after[1][key]) for key in after[0])
    assert any(not th.equal(after[0][key], value) for key, value in model.policy.state_dict().items())
    assert vars(untrusted).keys() == vars(trusted).keys()


class SaveWhilePlaying(BaseCallback):
    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def _on_step(self) -> bool:
        if self.n_calls in (1, 20, 40):
            self.model.save(self.folder / f"step_{self.n_calls}")
        return True

    def _on_rollout_end(self) -> None:
        self.model.save(self.folder / "end")


@pytest.mark.parametrize("algorithm", [VanillaPG, ReinforceBaseline, NaturalPG])
def test_checkpoints_open(algorithm: Any, tmp_path: Path) -> None:
    algorithm("MlpPolicy", make_vec_env("CartPole-v1", 2), n_steps=16).learn(100, callback=SaveWhilePlaying(tmp_path))
    for name in ("step_1", "step_20", "step_40.zip", "end"):
        model = algorithm.load(tmp_path / name, env=make_vec_env("CartPole-v1", 2), trusted=False, seed=1)
        model.learn(50)
        assert model.seed == 1


@pytest.mark.parametrize(
    "cls, name", [(VanillaPG, "vanilla_pg"), (ReinforceBaseline, "reinforce_baseline"), (NaturalPG, "natural_pg")]
)
def test_models_of_0_1_0_open(cls: Any, name: str) -> None:
    path = DATA / f"{name}_0.1.0.zip"
    untrusted, trusted = cls.load(path, trusted=False), cls.load(path)
    assert untrusted.num_timesteps == trusted.num_timesteps >= 64
    observation = np.full(4, 0.1, dtype=np.float32)
    assert untrusted.predict(observation, deterministic=True)[0] == trusted.predict(observation, deterministic=True)[0]


class OwnExtractor(th.nn.Module):
    pass


def test_what_is_the_scripts_own_is_named_with_the_way_out() -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, learning_rate=lambda progress: 1e-3 * progress)
    file = saved(model)
    message = r"learning_rate asks for cloudpickle\.cloudpickle\._make_function, .*: pass custom_objects={'learning_rate'"
    with pytest.raises(NotTrustedError, match=message):
        VanillaPG.load(file, trusted=False)
    # One replacement is enough: the schedules that SB3 makes of it are not read
    loaded = VanillaPG.load(file, trusted=False, custom_objects={"learning_rate": 0.01})
    assert loaded.lr_schedule(0.5) == 0.01
    assert VanillaPG.load(file).lr_schedule(0.5) == 5e-4


def test_a_class_that_is_not_known_is_named() -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16)
    model.policy_kwargs["optimizer_kwargs"] = {"foreach": OwnExtractor}
    with pytest.raises(NotTrustedError, match=r"policy_kwargs asks for .*, which files that are not trusted do not"):
        VanillaPG.load(saved(model), trusted=False)


def test_a_model_does_not_write_where_its_file_says(tmp_path: Path) -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, tensorboard_log=tmp_path / "theirs")
    file = saved(model)
    loaded = VanillaPG.load(file, env=gym.make("CartPole-v1"), trusted=False)
    assert loaded.tensorboard_log is None
    loaded.learn(16)
    assert not (tmp_path / "theirs").exists()
    assert VanillaPG.load(file, trusted=False, tensorboard_log="ours").tensorboard_log == "ours"


def test_keywords_are_checked_as_ever(tmp_path: Path) -> None:
    VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16).save(tmp_path / "model")
    with pytest.raises(TypeError, match="does not take 'gama': did you mean 'gamma'"):
        VanillaPG.load(tmp_path / "model", trusted=False, gama=0.9)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        VanillaPG.load(tmp_path / "model", env=gym.make("Pendulum-v1"), trusted=False)
    with pytest.raises(FileNotFoundError):
        VanillaPG.load(tmp_path / "nothing", trusted=False)
    assert VanillaPG.load(tmp_path / "model", trusted=False, gamma=0.5).gamma == 0.5


def test_models_saved_with_gym_open() -> None:
    """SB3's before version 2 name the spaces of gym."""
    file = saved(A2C("MlpPolicy", "CartPole-v1"))
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(members["data"])
    for key in ("observation_space", "action_space"):
        pickled = base64.b64decode(data[key][":serialized:"])
        for new in (b"gymnasium.spaces.box", b"gymnasium.spaces.discrete", b"numpy._core.numeric", b"numpy._core.multiarray"):
            old_name = new.replace(b"gymnasium", b"gym").replace(b"_core", b"core")
            pickled = pickled.replace(bytes([len(new)]) + new, bytes([len(old_name)]) + old_name)
        assert b"gym.spaces" in pickled and b"gymnasium" not in pickled and b"numpy._core" not in pickled
        # Frames count bytes
        data[key][":serialized:"] = base64.b64encode(pickled[:2] + pickled[11:]).decode()
    members["data"] = json.dumps(data).encode()
    old = io.BytesIO()
    with zipfile.ZipFile(old, "w") as archive:
        for name, contents in members.items():
            archive.writestr(name, contents)
    assert load_model(A2C, old).observation_space == gym.make("CartPole-v1").observation_space
