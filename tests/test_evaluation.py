"""Evaluations of policies with memory and masks."""

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from helpers import run_process
from sb3_contrib.common.maskable.evaluation import evaluate_policy as contribs
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy as sb3s

from sb3_pg import VanillaPG
from sb3_pg.evaluation import EvalCallback, acted_in, evaluate_policy


class Alternating(gym.Env):
    """One action is legal at a time, and any other ends the episode with a loss. What is observed says nothing."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(6)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.legal = 0, int(self.np_random.integers(6))
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> Any:
        self.t += 1
        is_legal = action == self.legal
        self.legal = int(self.np_random.integers(6))
        return np.zeros(1, np.float32), 1.0 if is_legal else -100.0, not is_legal, self.t == 5, {}

    def action_masks(self) -> np.ndarray:
        return np.arange(6) == self.legal


gym.register("Alternating-v0", entry_point=Alternating)
POLICIES = ["MaskableMlpPolicy", "MaskableMlpLstmPolicy"]


@pytest.mark.parametrize("policy", POLICIES)
def test_evaluations_use_the_masks(policy: str, tmp_path: Path) -> None:
    env = make_vec_env(Alternating, 2, seed=0)
    callback = EvalCallback(make_vec_env(Alternating, 1, seed=1), eval_freq=20, log_path=str(tmp_path), verbose=0)
    model = VanillaPG(policy, env, n_steps=16, seed=0).learn(100, callback=callback)
    assert (np.load(tmp_path / "evaluations.npz")["results"] == 5.0).all()
    assert evaluate_policy(model, make_vec_env(Alternating, 3, seed=2), n_eval_episodes=9) == (5.0, 0.0)
    assert evaluate_policy(model, Alternating(), n_eval_episodes=3, warn=False) == (5.0, 0.0)
    assert sb3s(model, make_vec_env(Alternating, 1), n_eval_episodes=9)[0] < 0.0  # knows no masks
    if policy == "MaskableMlpPolicy":
        assert contribs(model, make_vec_env(Alternating, 1), n_eval_episodes=9) == (5.0, 0.0)


def test_the_memory_is_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    model = VanillaPG("MaskableMlpLstmPolicy", make_vec_env(Alternating, 2, seed=0), n_steps=16, seed=0)
    states = []
    predict = model.policy.predict

    def spy(observation: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        states.append(state)
        return predict(observation, state, *args, **kwargs)

    monkeypatch.setattr(model.policy, "predict", spy)
    evaluate_policy(model, make_vec_env(Alternating, 1), n_eval_episodes=1)
    assert states[0] is None and all(np.abs(state[0]).sum() > 0.0 for state in states[1:]) and len(states) == 5


def test_callbacks_of_the_users_own_act_where_they_say() -> None:
    class Child(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(acted_in())
            return True

    seen: list[Any] = []
    eval_env = make_vec_env(Alternating, 1, seed=1)
    callback = EvalCallback(eval_env, eval_freq=20, callback_after_eval=Child(), callback_on_new_best=Child(), verbose=0)
    VanillaPG("MaskableMlpPolicy", make_vec_env(Alternating, 2, seed=0), n_steps=16, seed=0).learn(60, callback=callback)
    assert len(seen) >= 2 and seen == [None] * len(seen)


def test_masks_given_to_predict_are_checked() -> None:
    env = make_vec_env(Alternating, 2, seed=0)
    model, obs = VanillaPG("MaskableMlpPolicy", env, seed=0), env.reset()
    with pytest.raises(ValueError, match=r"have 9 values, but Discrete\(6\) needs 6 each"):
        model.predict(obs, action_masks=np.ones(9, dtype=bool))
    with pytest.raises(ValueError, match="leave no action legal"):
        model.predict(obs, action_masks=np.zeros((2, 6), dtype=bool))


def test_other_models_are_evaluated_as_before() -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", seed=0)
    env = make_vec_env("CartPole-v1", 1, seed=0)
    ours = evaluate_policy(model, env, n_eval_episodes=3)
    env.seed(0)
    assert ours == sb3s(model, env, n_eval_episodes=3)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_zoo_uses_the_masks(policy: str, tmp_path: Path) -> None:
    (tmp_path / "alternating.py").write_text(Path(__file__).read_text().split("POLICIES =")[0].replace("from helpers", "# "))
    command = [sys.executable, "-W", "ignore", "-m", "sb3_pg"]
    common = ["--algo", "vpg", "--env", "Alternating-v0", "--gym-packages", "alternating"]
    conf = tmp_path / "vpg.yml"
    conf.write_text(f"Alternating-v0:\n  policy: '{policy}'\n  n_timesteps: 100\n  n_steps: 16\n")
    train = [*command, "train", *common, "--conf-file", str(conf), "--eval-freq", "50", "--eval-episodes", "3"]
    result = run_process(train, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (np.load(tmp_path / "logs/vpg/Alternating-v0_1/evaluations.npz")["results"] == 5.0).all()
    result = run_process([*command, "enjoy", *common, "--no-render", "-n", "50"], cwd=tmp_path)
    assert result.returncode == 0 and "-100" not in result.stdout and "Episode Reward: 5.00" in result.stdout, result.stdout
