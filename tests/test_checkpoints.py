"""A training that is stopped and resumed ends as the one that was not."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from helpers import params
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnNoModelImprovement
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.checkpoints import CheckpointCallback, find_checkpoint, resume, steps_of
from sb3_pg.loading import NotTrustedError
from sb3_pg.saving import TRAINING, add_member, read_member, write_atomically

STEPS, FREQ = 800, 150


class Counter(BaseCallback):
    """A callback of the user's own, with a state."""

    def __init__(self) -> None:
        super().__init__()
        self.total, self.stopped_at = 0.0, None

    def _on_step(self) -> bool:
        self.total += float(np.sum(self.locals["rewards"]))
        return self.stopped_at is None or self.num_timesteps < self.stopped_at

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total = state["total"]


def make_env(env_id: str, folder: Path, normalize: bool = False, again: bool = False) -> VecEnv:
    monitor_kwargs = dict(override_existing=not again)
    env = make_vec_env(env_id, 2, seed=5, monitor_dir=str(folder), monitor_kwargs=monitor_kwargs)
    return VecNormalize(env) if normalize else env


def make_callbacks(env_id: str, folder: Path, normalize: bool, stopped_at: int | None = None) -> list[BaseCallback]:
    env = make_vec_env(env_id, 1, seed=9)
    if normalize:
        env = VecNormalize(env, training=False, norm_reward=False)
    counter = Counter()
    counter.stopped_at = stopped_at
    evaluation = EvalCallback(
        env, eval_freq=60, n_eval_episodes=2, log_path=str(folder), best_model_save_path=str(folder), verbose=0,
        callback_after_eval=StopTrainingOnNoModelImprovement(100),
    )  # fmt: skip
    return [counter, evaluation]


def train(
    cls: type[PolicyGradient], env_id: str, folder: Path, normalize: bool, stopped_at: int | None = None, **kwargs: Any
) -> tuple[PolicyGradient, list[BaseCallback]]:
    kwargs = dict(policy="MlpPolicy", n_steps=32, seed=3, device="cpu", tensorboard_log=str(folder / "tb")) | kwargs
    env = make_env(env_id, folder, normalize)
    callbacks = make_callbacks(env_id, folder, normalize, stopped_at)
    model = cls(env=env, **kwargs).learn(STEPS, callback=[CheckpointCallback(FREQ, folder), *callbacks], log_interval=2)
    env.close()
    return model, callbacks


def logged(folder: Path) -> dict[str, Any]:
    """All that was written, but for clocks."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = (folder / "tb").iterdir()
    accumulator = EventAccumulator(str(run)).Reload()
    scalars = {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}
    monitors = {
        path.name: [line.split(",")[:2] for line in path.read_text().splitlines()[1:]] for path in folder.glob("*.monitor.csv")
    }
    evaluations = dict(np.load(folder / "evaluations.npz"))
    return {"scalars": {tag: x for tag, x in scalars.items() if "fps" not in tag}, "monitors": monitors} | {
        name: x.tolist() for name, x in evaluations.items()
    }


def state_of(model: PolicyGradient, callbacks: list[BaseCallback]) -> dict[str, Any]:
    normalize = model.get_vec_normalize_env()
    counter, evaluation = callbacks
    return {
        "parameters": model.get_parameters(),
        "numbers": [model.num_timesteps, model._n_updates, model._current_progress_remaining, *model.target_moments],
        "episodes": [(e["r"], e["l"]) for e in model.ep_info_buffer or ()],
        "callbacks": [counter.total, counter.n_calls, evaluation.best_mean_reward, evaluation.n_calls],
        "normalizer": [] if normalize is None else [normalize.obs_rms.mean, normalize.obs_rms.count, normalize.ret_rms.var],
    }


@pytest.mark.parametrize(
    "cls, env_id, kwargs",
    [
        (VanillaPG, "CartPole-v1", dict(learning_rate=lambda p: 3e-3 * p)),
        (NaturalPG, "Pendulum-v1", dict(normalize=True)),
        (ReinforceBaseline, "CartPole-v1", dict(baseline="optimal", n_steps=16)),
        (VanillaPG, "CartPole-v1", dict(policy="MlpLstmPolicy", policy_kwargs=dict(lstm_hidden_size=8))),
        (VanillaPG, "Pendulum-v1", dict(use_sde=True, sde_sample_freq=4)),
    ],
)
def test_the_end_is_that_of_the_undisturbed_run(
    cls: type[PolicyGradient], env_id: str, kwargs: dict[str, Any], tmp_path: Path
) -> None:
    normalize = kwargs.get("normalize", False)
    kwargs = {name: value for name, value in kwargs.items() if name != "normalize"}
    whole, of_whole = train(cls, env_id, tmp_path / "whole", normalize, **kwargs)
    stopped, _ = train(cls, env_id, tmp_path / "stopped", normalize, stopped_at=600, **kwargs)
    assert stopped.num_timesteps < whole.num_timesteps
    env, callbacks = (
        make_env(env_id, tmp_path / "stopped", normalize, again=True),
        make_callbacks(env_id, tmp_path / "stopped", normalize),
    )
    resumed = resume(cls, tmp_path / "stopped", env, callbacks, device="cpu")
    env.close()
    th.testing.assert_close(state_of(resumed, callbacks), state_of(whole, of_whole), rtol=0, atol=0)
    assert logged(tmp_path / "stopped") == logged(tmp_path / "whole")
    names = {path.name for path in (tmp_path / "whole").glob("*_steps.zip")}
    assert len(names) >= 3 and names == {path.name for path in (tmp_path / "stopped").glob("*_steps.zip")}


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_checkpoints import SUBJECTS, finish_run
finish_run(sys.argv[1], Path(sys.argv[2]))
"""
SUBJECTS: dict[str, tuple[type[PolicyGradient], str, bool, dict[str, Any]]] = {
    "vpg": (VanillaPG, "CartPole-v1", False, {}),
    "npg": (NaturalPG, "Pendulum-v1", True, {}),
}


def finish_run(name: str, folder: Path) -> None:
    """Begin a run, or go on with the one that was killed; write its parameters in the end."""
    cls, env_id, normalize, kwargs = SUBJECTS[name]
    try:
        find_checkpoint(folder)
    except ValueError:
        model, _ = train(cls, env_id, folder, normalize, **kwargs)
    else:
        env = make_env(env_id, folder, normalize, again=True)
        model = resume(cls, folder, env, make_callbacks(env_id, folder, normalize), device="cpu")
    write_atomically(folder / "end.pt", repr({k: v.tolist() for k, v in params(model).items()}).encode())


@pytest.mark.parametrize("name", SUBJECTS)
def test_runs_that_are_killed_end_alike(name: str, tmp_path: Path) -> None:
    """Killed once a checkpoint has appeared, at some moment of what follows."""
    finish_run(name, tmp_path / "whole")
    folder, rng = tmp_path / "killed", np.random.default_rng(0)
    command = [sys.executable, "-c", SCRIPT.format(tests=str(Path(__file__).parent)), name, str(folder)]
    n_before = 0
    for _ in range(2):
        with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
            while process.poll() is None and len(list(folder.glob("*_steps.zip"))) <= n_before:
                time.sleep(0.005)
            time.sleep(rng.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
        n_before = len(list(folder.glob("*_steps.zip")))
    if not (folder / "end.pt").exists():
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (folder / "end.pt").read_text() == (tmp_path / "whole" / "end.pt").read_text()


def test_a_write_that_is_interrupted_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, seed=0)
    model.save(tmp_path / "model")
    before = (tmp_path / "model.zip").read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        model.learn(32).save(tmp_path / "model")
    assert (tmp_path / "model.zip").read_bytes() == before and os.listdir(tmp_path) == ["model.zip"]


def test_a_kill_between_two_bytes_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from sb3_pg import saving
path = Path(sys.argv[1])
saving.write_atomically(path, b"old")
os.fsync = lambda descriptor: os.kill(os.getpid(), 9)
saving.write_atomically(path, b"new" * 1000)
"""
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path / "file")], check=False)
    assert result.returncode == -9 and (tmp_path / "file").read_bytes() == b"old"


def test_the_newest_that_is_whole_is_taken(tmp_path: Path) -> None:
    train(VanillaPG, "CartPole-v1", tmp_path, False)
    files = sorted(tmp_path.glob("*_steps.zip"), key=lambda path: int(re.findall(r"\d+", path.name)[-1]))
    files[-1].write_bytes(files[-1].read_bytes()[:-100])
    assert find_checkpoint(tmp_path)[0] == files[-2]
    for path in (files[-1], tmp_path / "tb"):
        with pytest.raises(ValueError, match=r"has no checkpoint to go on from"):
            find_checkpoint(path)
    with pytest.raises(ValueError, match=r"written with \d callbacks, and there are 0"):
        resume(VanillaPG, tmp_path, make_vec_env("CartPole-v1", 2))


def with_state(file: Path, **changes: Any) -> None:
    """Write a checkpoint anew with another state of the training."""
    state = read_member(file, TRAINING)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != TRAINING}
    contents = io.BytesIO()
    with zipfile.ZipFile(contents, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    add_member(contents, TRAINING, {**(state or {}), **changes})
    file.write_bytes(contents.getvalue())


def test_a_checkpoint_does_not_say_where_to_write(tmp_path: Path) -> None:
    env = make_vec_env("CartPole-v1", 2)
    run = tmp_path / "run"
    VanillaPG("MlpPolicy", env, n_steps=32, seed=1).learn(2e2, callback=CheckpointCallback(64, run))  # type: ignore[arg-type]
    file = min(run.glob("*.zip"), key=steps_of)
    assert resume(VanillaPG, file, env, trusted=False).num_timesteps == 256
    log = tmp_path / "tensorboard/VanillaPG_1"
    log.mkdir(parents=True)
    (log / "events.out.tfevents.other").touch()
    with_state(file, learn=[1, "VanillaPG", 0, 0])
    resume(VanillaPG, file, env, trusted=False, tensorboard_log=str(log.parent))
    assert (log / "events.out.tfevents.other").is_file()  # of another training
    with_state(file, save=[64, 0, f"{tmp_path}/evil"])
    with pytest.raises(ValueError, match="name_prefix is what the names of the files begin with, no path"):
        resume(VanillaPG, file, env, trusted=False)
    with_state(file, save=[64, 0, "rl_model"], learn=[1, "../evil", 0, 0])
    with pytest.raises(NotTrustedError, match=r"logs to '../evil', a path"):
        resume(VanillaPG, file, env, trusted=False, tensorboard_log=str(tmp_path / "tensorboard"))
    for damage in ({"save": [64]}, {"files": None}, {"learn": []}):
        with_state(file, **damage)
        with pytest.raises(ValueError, match="has no checkpoint to go on from"):
            resume(VanillaPG, file, env)
    assert not list(tmp_path.rglob("*evil*"))


def test_checkpoints_are_models_with_their_normaliser(tmp_path: Path) -> None:
    model, _ = train(NaturalPG, "Pendulum-v1", tmp_path, True)
    first = min(tmp_path.glob("*_steps.zip"), key=lambda path: path.stat().st_mtime)
    for trusted in (True, False):
        plain = NaturalPG.load(first, env=make_vec_env("Pendulum-v1", 2), trusted=trusted)
        normalize = plain.get_vec_normalize_env()
        assert normalize is not None and 100 < normalize.obs_rms.count < model.get_vec_normalize_env().obs_rms.count
        own = VecNormalize(make_vec_env("Pendulum-v1", 2))
        later = NaturalPG.load(first, trusted=trusted)
        later.set_env(own)
        np.testing.assert_array_equal(own.obs_rms.mean, normalize.obs_rms.mean)
        used = model.get_vec_normalize_env()
        assert NaturalPG.load(first, env=used).get_vec_normalize_env() is used
        assert used.obs_rms.count > normalize.obs_rms.count  # what it has seen stays
    plain.learn(200)


class Unseeded(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def reset(self, **kwargs: Any) -> Any:
        return np.random.default_rng().uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        return self.reset()[0], 1.0, True, False, {}


def test_environments_that_ignore_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"do not follow reset\(seed=…\)"):
        VanillaPG("MlpPolicy", Unseeded(), n_steps=16).learn(32, callback=CheckpointCallback(16, tmp_path))
    with pytest.raises(ValueError, match="save_freq must be a positive number"):
        CheckpointCallback(0, tmp_path)


def test_a_state_that_is_no_data_is_refused(tmp_path: Path) -> None:
    class Wrong(Counter):
        def state_dict(self) -> dict[str, Any]:
            return {"model": self.model}

    with pytest.raises(TypeError, match=r"state_dict\(\) of Wrong holds something else"):
        VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16).learn(64, callback=[Wrong(), CheckpointCallback(16, tmp_path)])


def test_a_logger_of_ones_own_goes_on(tmp_path: Path) -> None:
    formats = ["csv", "json", "log"]

    def rows(folder: Path) -> list[dict[str, str]]:
        table = csv.DictReader((folder / "progress.csv").read_text().splitlines())
        return [{k: v for k, v in row.items() if "time" not in k and "fps" not in k} for row in table]

    logs: list[list[dict[str, str]]] = []
    for stopped_at in (None, 500):
        folder = tmp_path / str(stopped_at)
        counter = Counter()
        counter.stopped_at = stopped_at
        model = VanillaPG("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=5), n_steps=32, seed=3, device="cpu")
        model.set_logger(configure(str(folder), formats))
        model.learn(STEPS, callback=[CheckpointCallback(FREQ, folder), counter], log_interval=1)
        model.logger.close()
        if stopped_at is not None:
            env = make_vec_env("CartPole-v1", 2, seed=5)
            resume(VanillaPG, folder, env, Counter(), log_folder=folder, device="cpu").logger.close()
            with pytest.raises(ValueError, match="no logger of its own"):
                other = tmp_path / "other"
                VanillaPG("MlpPolicy", env, n_steps=32).learn(300, callback=CheckpointCallback(100, other))
                resume(VanillaPG, other, env, log_folder=other)
        logs.append(rows(folder))
        steps = [json.loads(line)["time/total_timesteps"] for line in (folder / "progress.json").read_text().splitlines()]
        assert steps == sorted(set(steps)) and steps[-1] >= STEPS
        assert (folder / "log.txt").read_text().count("total_timesteps") == len(steps) == len(logs[-1])
    assert logs[0] == logs[1] and len(logs[0]) == 13
