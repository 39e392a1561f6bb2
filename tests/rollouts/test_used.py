"""Training environments in which somebody else has played."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from envs import ScriptedEnv, TabularMDP, TabularVecEnv
from helpers import changed, params
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_pg import VanillaPG


class Rows(BaseCallback):
    """The rollouts, as (observations, episode starts)."""

    def __init__(self, at_end: Callable[[Any], Any] = lambda model: None):
        super().__init__()
        self.rollouts: list[Any] = []
        self.at_end = at_end

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        self.rollouts.append((buffer.observations.copy(), buffer.episode_starts.astype(bool)))
        self.at_end(self.model)


def make(vec_env_cls: type[VecEnv] = DummyVecEnv) -> VecEnv:
    return make_vec_env(lambda: ScriptedEnv([7]), 2, vec_env_cls=vec_env_cls)


ENVS: dict[str, Callable[[], VecEnv]] = {
    "dummy (episode, t)": make,
    "bare (episode, t)": lambda: DummyVecEnv([lambda: ScriptedEnv([7])]),
    "subprocess (episode, t)": lambda: make(SubprocVecEnv),
    "normalized (episode, t)": lambda: VecNormalize(make(), norm_obs=False),
    "stacked (episode, t)": lambda: VecFrameStack(make(), 1),
    "monitored": lambda: VecMonitor(TabularVecEnv(TabularMDP(0), 2)),
    "of one's own, normalized": lambda: VecNormalize(TabularVecEnv(TabularMDP(0), 2), norm_obs=False),
}


@pytest.mark.parametrize("kwargs", [dict(n_steps=4), dict(n_steps=4, weights="reward_to_go"), dict(n_episodes=1)])
@pytest.mark.parametrize("name", ENVS)
def test_an_evaluation_between_two_learns(name: str, kwargs: Any) -> None:
    with closing(ENVS[name]()) as env:
        model = VanillaPG("MlpPolicy", env, seed=0, **kwargs).learn(8)
        evaluate_policy(model, model.get_env(), n_eval_episodes=3, warn=False)
        rows = Rows()
        model.learn(8, reset_num_timesteps=False, callback=rows)
    observations, starts = rows.rollouts[0]
    assert starts[0].all()
    if "(episode, t)" in name:
        episode, t = np.moveaxis(observations, -1, 0)
        assert (t[0] == 0).all() and (np.diff(episode, axis=0) >= 0).all()
        assert ((np.diff(t, axis=0) == 1) | starts[1:]).all()


@pytest.mark.parametrize("how", ["reset", "step"])
def test_a_single_call_is_enough(how: str) -> None:
    model = VanillaPG("MlpPolicy", make(), n_steps=4, seed=0).learn(8)
    model.env.reset() if how == "reset" else model.env.step(np.zeros(2, dtype=int))
    rows = Rows()
    model.learn(8, reset_num_timesteps=False, callback=rows)
    assert rows.rollouts[0][1][0].all() and (rows.rollouts[0][0][0, :, 1] == 0).all()


@pytest.mark.parametrize("name", ENVS)
def test_two_learns_with_nothing_in_between_go_on(name: str) -> None:
    with closing(ENVS[name]()) as env, closing(ENVS[name]()) as other:
        at_once = VanillaPG("MlpPolicy", env, n_steps=4, seed=0).learn(8 * env.num_envs)
        model = VanillaPG("MlpPolicy", other, n_steps=4, seed=0).learn(4 * env.num_envs)
        model.predict(model._last_obs, deterministic=True)
        model.learn(4 * env.num_envs, reset_num_timesteps=False)
        assert not changed(params(at_once), model)
        assert "(episode, t)" not in name or not model.rollout_buffer.episode_starts[0].all()


def test_an_evaluation_at_the_end_of_a_rollout() -> None:
    rows = Rows(lambda model: evaluate_policy(model, model.get_env(), n_eval_episodes=2, warn=False))
    VanillaPG("MlpPolicy", make(), n_steps=4, seed=0).learn(40, callback=rows)
    assert len(rows.rollouts) == 5 and all(starts[0].all() for _, starts in rows.rollouts)


def test_an_evaluation_within_a_rollout_is_refused() -> None:
    env = make()
    model = VanillaPG("MlpPolicy", env, n_steps=16, seed=0)
    with pytest.raises(RuntimeError, match="environments of its own"):
        model.learn(64, callback=EvalCallback(env, eval_freq=5, n_eval_episodes=1, verbose=0, warn=False))
    rows = Rows()  # nor does the next rollout go on from there
    model.learn(32, reset_num_timesteps=False, callback=rows)
    assert rows.rollouts[0][1][0].all()


def test_a_rollout_after_an_interrupted_one_begins_anew() -> None:
    class Interrupts(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 6:
                raise KeyboardInterrupt
            return True

    model = VanillaPG("MlpPolicy", make(), n_steps=4, seed=0)
    with pytest.raises(KeyboardInterrupt):
        model.learn(64, callback=Interrupts())
    rows = Rows()
    model.learn(8, reset_num_timesteps=False, callback=rows)
    assert rows.rollouts[0][1][0].all() and (rows.rollouts[0][0][0, :, 1] == 0).all()


def test_a_learn_that_resets_resets_once(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make()
    model = VanillaPG("MlpPolicy", env, n_steps=4, seed=0).learn(8)
    reset, calls = env.reset, []
    monkeypatch.setattr(env, "reset", lambda: calls.append(1) or reset())
    evaluate_policy(model, env, n_eval_episodes=1, warn=False)
    calls.clear()
    model.learn(16)
    assert len(calls) == 1


def test_environments_that_are_put_in_place_of_others() -> None:
    model = VanillaPG("MlpPolicy", make(), n_steps=4, seed=0).learn(8)
    before = params(model)
    model.set_env(make())
    assert changed(before, model.learn(16, reset_num_timesteps=False))
