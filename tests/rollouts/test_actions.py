"""Actions that do not count from 0, or have rows: the environment gets its own, and everything else is as if they did."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import params, variants
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pg import VanillaPG
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.diagnostics import gradient_diagnostics
from sb3_pg.rollouts.actions import policy_action_space, to_env_actions

# A space, and the same choices counted from 0 in one dimension
SPACES: list[tuple[spaces.Space, spaces.Space]] = [
    (spaces.Discrete(3, start=5), spaces.Discrete(3)),
    (spaces.Discrete(3, start=-1), spaces.Discrete(3)),
    (spaces.MultiDiscrete([2, 3], start=[4, -5]), spaces.MultiDiscrete([2, 3])),
    (spaces.MultiDiscrete([[2, 3], [2, 2]]), spaces.MultiDiscrete([2, 3, 2, 2])),
    (spaces.MultiDiscrete([[2, 3], [2, 2]], start=[[1, 2], [3, 4]]), spaces.MultiDiscrete([2, 3, 2, 2])),
    (spaces.MultiBinary((2, 3)), spaces.MultiBinary(6)),
    (spaces.Box(-1, 1, (), np.float32), spaces.Box(-1, 1, (1,), np.float32)),
]
translated = pytest.mark.parametrize("space, plain", SPACES, ids=lambda space: " ".join(str(space).split()))


class Choosing(gym.Env):
    """Takes actions of its space and no others; the reward is another for each of them."""

    def __init__(self, space: spaces.Space):
        self.observation_space, self.action_space = spaces.Box(-1, 1, (2,), np.float32), space
        self.t, self.starts = 0, getattr(space, "start", 0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.array([0.5, -0.5], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert np.shape(action) == self.action_space.shape
        assert self.action_space.contains(np.asarray(action, self.action_space.dtype)), action
        choices = np.ravel(action - self.starts)
        self.t += 1
        obs = np.array([np.sin(self.t), np.cos(self.t)], np.float32)
        return obs, float(choices @ np.arange(1, len(choices) + 1)), self.t == 5, False, {}

    def action_masks(self) -> np.ndarray:
        n = spaces.utils.flatdim(self.action_space) * (2 if isinstance(self.action_space, spaces.MultiBinary) else 1)
        return np.arange(n) != 1


@variants
@translated
def test_the_same_training_as_with_actions_from_0(
    space: spaces.Space, plain: spaces.Space, cls: type[PolicyGradient], kwargs: dict[str, Any], tmp_path: Path
) -> None:
    ours, reference = (
        cls("MlpPolicy", DummyVecEnv([lambda s=s: Choosing(s)] * 2), seed=0, **kwargs).learn(64) for s in (space, plain)
    )
    trained, expected = params(ours), params(reference)
    assert all(th.equal(trained[name], expected[name]) for name in expected)
    obs = ours.env.reset()
    chosen, from_0 = (model.predict(obs, deterministic=True)[0] for model in (ours, reference))
    assert chosen.shape == (2, *space.shape)
    np.testing.assert_array_equal(chosen.ravel(), (from_0.reshape(2, -1) + np.ravel(getattr(space, "start", 0))).ravel())
    single, _ = ours.predict(obs[0], deterministic=True)
    assert isinstance(single, np.ndarray)
    np.testing.assert_allclose(single, chosen[0], rtol=1e-5)
    # The environment refuses wrong actions
    ours.save(tmp_path / "m")
    evaluate_policy(cls.load(tmp_path / "m"), DummyVecEnv([lambda: Choosing(space)]), n_eval_episodes=2, warn=False)


@translated
def test_diagnostics_play_them_too(space: spaces.Space, plain: spaces.Space) -> None:
    ours, reference = (
        gradient_diagnostics(VanillaPG("MlpPolicy", DummyVecEnv([lambda s=s: Choosing(s)] * 2), seed=0), n_episodes=8)
        for s in (space, plain)
    )
    assert ours.equals(reference)


@pytest.mark.parametrize("policy", ["MaskableMlpPolicy", "MlpLstmPolicy"])
@translated
def test_other_kinds_of_policy(space: spaces.Space, plain: spaces.Space, policy: str) -> None:
    if policy == "MaskableMlpPolicy" and isinstance(space, spaces.Box):
        return
    ours, reference = (
        params(VanillaPG(policy, DummyVecEnv([lambda s=s: Choosing(s)] * 2), seed=0, n_steps=16).learn(32))
        for s in (space, plain)
    )
    assert all(th.equal(ours[name], reference[name]) for name in reference)


@translated
def test_spaces_of_policies(space: spaces.Space, plain: spaces.Space) -> None:
    assert policy_action_space(plain) is plain
    if isinstance(space, spaces.Box):
        assert policy_action_space(space) is space
        return
    assert policy_action_space(space) == plain
    for action in (space.sample() for _ in range(20)):
        from_0 = np.ravel(action - getattr(space, "start", 0)).reshape(plain.shape)
        assert np.array_equal(to_env_actions(from_0, space), action)
