"""Train candidates for the hyperparameter files and append their scores to tuning.jsonl.

python benchmarks/tune.py candidates.jsonl benchmarks/tuning.jsonl

A line of the candidates is one run: {"env": …, "algo": "VanillaPG", "n_envs": …, "normalize": true or false, "steps": …,
"seed": …, "kwargs": {…}}; "lin_0.001" is a schedule and policy_kwargs is text, as in rl-zoo3's files. Runs that the
results have are not repeated. The score, "final", is the mean of the last three of twenty evaluations of ten deterministic
episodes each.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

import sb3_pg

N_EVALUATIONS = 20
KEYS = ("env", "algo", "n_envs", "normalize", "steps", "seed", "kwargs")


class Evaluate(BaseCallback):
    """Mean returns of the deterministic policy, at equal distances."""

    def __init__(self, env: Any, freq: int):
        super().__init__()
        self.env, self.freq, self.next, self.scores = env, freq, freq, []

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.next:
            self.next += self.freq
            if isinstance(self.training_env, VecNormalize):
                self.env.obs_rms = self.training_env.obs_rms
            self.scores.append(float(evaluate_policy(self.model, self.env, 10, warn=False)[0]))
        return True


def read(name: str, value: Any) -> Any:
    if isinstance(value, str) and value.startswith("lin_"):
        return LinearSchedule(float(value[4:]), 0.0, 1.0)
    return eval(value) if name == "policy_kwargs" else value


def train(run: dict[str, Any]) -> dict[str, Any]:
    kwargs = {name: read(name, value) for name, value in run["kwargs"].items()}
    env = make_vec_env(run["env"], run["n_envs"], seed=run["seed"])
    eval_env = make_vec_env(run["env"], seed=run["seed"] + 1000)
    if run["normalize"]:
        env = VecNormalize(env, gamma=kwargs.get("gamma", 0.99))
        eval_env = VecNormalize(eval_env, training=False, norm_reward=False)
    model = getattr(sb3_pg, run["algo"])("MlpPolicy", env, seed=run["seed"], device="cpu", **kwargs)
    callback, start = Evaluate(eval_env, run["steps"] // N_EVALUATIONS), time.time()
    model.learn(run["steps"], callback=callback)
    scores = np.round(callback.scores, 1).tolist()
    return {**run, "curve": scores, "final": round(float(np.mean(scores[-3:])), 1), "seconds": round(time.time() - start)}


def key(run: dict[str, Any]) -> str:
    return json.dumps({name: run[name] for name in KEYS}, sort_keys=True)


if __name__ == "__main__":
    candidates, results = map(Path, sys.argv[1:])
    th.set_num_threads(1)
    done = {key(json.loads(line)) for line in results.read_text().splitlines()} if results.exists() else set()
    for run in map(json.loads, candidates.read_text().splitlines()):
        if key(run) not in done:
            with results.open("a") as file:
                file.write(json.dumps(train(run)) + "\n")
