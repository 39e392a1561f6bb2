"""Kill trainings at random moments and resume them: each has to end bit for bit as the one that was not disturbed.

One row a kill in benchmarks/soak.csv; finished rows are kept: start it again to go on (`--kills 100`).
"""

import argparse
import hashlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from rows import Rows
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg.checkpoints import CheckpointCallback, find_checkpoint, resume
from sb3_pg.saving import write_atomically

ROWS = Rows(Path(__file__).with_suffix(".csv"), "subject", "killed_after_s", "checkpoints", "same_end")
STEPS, FREQ = 4_000, 600
# Class, environment, policy, arguments, whether VecNormalize is around, class of vector environments
SUBJECTS: dict[str, tuple[Any, str, str, dict[str, Any], bool, Any]] = {
    "VanillaPG CartPole-v1": (VanillaPG, "CartPole-v1", "MlpPolicy", {"n_steps": 64}, False, None),
    "ReinforceBaseline CartPole-v1": (ReinforceBaseline, "CartPole-v1", "MlpPolicy", {"n_steps": 32}, False, None),
    "NaturalPG Pendulum-v1": (NaturalPG, "Pendulum-v1", "MlpPolicy", {"n_steps": 128}, False, None),
    "NaturalPG HalfCheetah-v5, VecNormalize": (NaturalPG, "HalfCheetah-v5", "MlpPolicy", {"n_steps": 128}, True, None),
    "VanillaPG Pendulum-v1, SubprocVecEnv": (VanillaPG, "Pendulum-v1", "MlpPolicy", {"n_steps": 128}, False, SubprocVecEnv),
    "VanillaPG CartPole-v1, memory": (
        VanillaPG, "CartPole-v1", "MlpLstmPolicy", {"n_steps": 64, "policy_kwargs": {"lstm_hidden_size": 16}}, False, None,
    ),
}  # fmt: skip


def run(name: str, folder: Path) -> None:
    """Begin a training, or go on with one that was killed; leave a digest of its end."""
    os.setpgrp()  # with its workers, so that all of them can be killed
    th.set_num_threads(1)
    cls, env_id, policy, kwargs, is_normalized, vec_env_cls = SUBJECTS[name]

    def make(n_envs: int, seed: int, **settings: Any) -> VecEnv:
        env: VecEnv = make_vec_env(env_id, n_envs, seed=seed, vec_env_cls=vec_env_cls if n_envs > 1 else None)
        return VecNormalize(env, **settings) if is_normalized else env

    env, evaluation = make(2, 5), make(1, 9, training=False, norm_reward=False)
    callback = EvalCallback(evaluation, eval_freq=500, n_eval_episodes=2, verbose=0, log_path=str(folder))
    try:
        find_checkpoint(folder)
    except ValueError:
        model = cls(policy, env, seed=3, device="cpu", **kwargs).learn(
            STEPS, callback=[CheckpointCallback(FREQ, folder), callback]
        )
    else:
        model = resume(cls, folder, env, callback, device="cpu")
    digest = hashlib.sha256(str(model.num_timesteps).encode())
    for tensor in [*model.policy.state_dict().values(), *th.utils._pytree.tree_leaves(model.critic_optimizer.state_dict())]:
        digest.update(np.asarray(tensor).tobytes())
    digest.update(np.load(folder / "evaluations.npz")["results"].tobytes())
    env.close()
    write_atomically(folder / "end", digest.hexdigest().encode())


def start(name: str, folder: Path) -> Any:
    """Have :func:`run` in a process of its own, which has imported all that it needs."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(name, folder))
    process.start()
    return process


def main() -> None:
    """Kill until there are enough rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    n_kills = parser.parse_args().kills
    rows = ROWS.read()
    rng = np.random.default_rng(len(rows))
    names = list(SUBJECTS)
    with tempfile.TemporaryDirectory() as temporary:
        ends: dict[str, tuple[str, float]] = {}
        for i in range(len(rows), n_kills):
            name = names[i % len(names)]
            if name not in ends:
                began = time.perf_counter()
                start(name, Path(temporary) / f"whole {name}").join()
                ends[name] = (Path(temporary) / f"whole {name}" / "end").read_text(), time.perf_counter() - began
            expected, duration = ends[name]
            folder = Path(temporary) / str(i)
            process = start(name, folder)
            delay = float(rng.uniform(0.0, duration))
            time.sleep(delay)
            if process.is_alive():
                os.killpg(process.pid, signal.SIGKILL)
            process.join()
            n_checkpoints = len(list(folder.glob("*_steps.zip")))
            start(name, folder).join()
            same = (folder / "end").is_file() and (folder / "end").read_text() == expected
            ROWS.add(name, f"{delay:.2f}", n_checkpoints, same)
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
