"""What ReinforceBaseline adds: baselines that look back, and the episodes they need."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from helpers import params
from stable_baselines3.common.env_util import make_vec_env

from sb3_pg import ReinforceBaseline, VanillaPG
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.policies import kind


def test_state_of_baselines_is_saved(tmp_path: Path) -> None:
    for baseline, name in (("running_mean", "_running_mean"), ("optimal", "_optimal_moments")):
        model = ReinforceBaseline("MlpPolicy", "CartPole-v1", baseline=baseline, n_steps=16, seed=0).learn(100)
        model.save(tmp_path / "m")
        loaded = ReinforceBaseline.load(tmp_path / "m", env=model.get_env())
        np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name))
        assert getattr(model, name) is not None


@pytest.mark.parametrize("baseline", ["running_mean", "optimal"])
def test_standardising_leaves_constant_baselines_alone(baseline: str) -> None:
    def train(cls: type[PolicyGradient], **kwargs: Any) -> dict[str, th.Tensor]:
        env = make_vec_env("CartPole-v1", 2, seed=0)
        return params(cls("MlpPolicy", env, weights="reward_to_go", seed=0, n_steps=32, device="cpu", **kwargs).learn(1000))

    with_baseline, without = train(ReinforceBaseline, baseline=baseline), train(VanillaPG)
    assert (with_baseline["action_net.weight"] - without["action_net.weight"]).abs().max() > 1e-4


def test_chunks_of_an_episode_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = []
    for chunk_size in (10**9, 3):
        monkeypatch.setattr(kind, "CHUNK_SIZE", chunk_size)
        model = ReinforceBaseline("MlpPolicy", "CartPole-v1", baseline="optimal", n_episodes=3, seed=0)
        moments.append(model.learn(1)._optimal_moments)
    np.testing.assert_allclose(*moments, rtol=1e-4)


def test_leave_one_out_is_evaluated_on_one_environment(tmp_path: Path) -> None:
    env = make_vec_env("CartPole-v1", 2)
    ReinforceBaseline("MlpPolicy", env, baseline="leave_one_out", n_steps=8, seed=0).learn(10).save(tmp_path / "m")
    model = ReinforceBaseline.load(tmp_path / "m", env=make_vec_env("CartPole-v1", 1))
    model.predict(model.env.reset())
    with pytest.raises(ValueError, match="n_episodes of at least 2"):
        model.learn(10)
