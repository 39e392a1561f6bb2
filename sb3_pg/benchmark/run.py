"""Training runs of the benchmark: algorithms × environments × seeds through rl-zoo3, resumable, several at a time."""

import datetime
import difflib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import yaml
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sb3_pg.benchmark import BUDGETS
from sb3_pg.loading import read_settings
from sb3_pg.zoo import ALGORITHMS, hyperparams_file, register

EVAL_EPISODES = 10
#: Evaluations within the budget of an environment that has no entry in BUDGETS
N_EVALUATIONS = 20
_PACKAGES = ("sb3-pg", "rl-zoo3", "stable-baselines3", "sb3-contrib", "gymnasium", "torch", "numpy")
_POLL_SECONDS = 0.5


class Run(NamedTuple):
    """One training run."""

    algo: str
    env_id: str
    seed: int
    n_timesteps: int
    eval_freq: int

    @property
    def name(self) -> Path:
        """Its folder within the folder of runs, named as rl-zoo3 names its own, the seed for the number."""
        return Path(self.algo) / f"{self.env_name}_{self.seed}"

    @property
    def env_name(self) -> str:
        """The environment, as rl-zoo3 names files after it: ids may have a namespace."""
        return self.env_id.replace("/", "-")

    @property
    def arguments(self) -> list[str]:
        """Options of ``sb3-pg train`` that define the result."""
        return (
            f"--algo {self.algo} --env {self.env_id} --seed {self.seed} -n {self.n_timesteps} --eval-freq {self.eval_freq} "
            f"--eval-episodes {EVAL_EPISODES} --n-eval-envs 1 --num-threads 1 --device cpu"
        ).split()

    def is_finished(self, folder: Path) -> bool:
        """Whether the folder of runs has it.

        :raises ValueError: if it was made with another budget or other hyperparameters
        """
        path = folder / self.name / "run.json"
        if not path.is_file():
            return False
        n_timesteps = json.loads(path.read_text())["n_timesteps"]
        if n_timesteps != self.n_timesteps:
            raise ValueError(
                f"{path.parent} was trained for {n_timesteps} steps, not {self.n_timesteps}: use another --folder."
            )
        if read_settings(path.parent / self.env_name / "config.yml") != read_entry(self.algo, self.env_id):
            raise ValueError(f"{path.parent} was trained with other hyperparameters than the file has now: move it away.")
        return True


def plan(algos: Iterable[str], envs: Iterable[tuple[str, int | None]], seeds: Iterable[int]) -> list[Run]:
    """All runs, a whole set of one seed before the next.

    :param algos: names as rl-zoo3 knows them
    :param envs: environments, each with its budget in steps or None for that of :data:`sb3_pg.benchmark.BUDGETS`
    :param seeds: seeds
    :return: the runs in the order in which to do them
    :raises ValueError: if an environment has no budget, or it or an algorithm is unknown
    """
    runs = []
    algos, envs = list(algos), list(envs)
    for algo in algos:
        _find_file(algo)
    importlib.import_module("rl_zoo3.import_envs")  # registers those that rl-zoo3 trains in, as without velocities
    for env_id, _ in envs:
        if env_id not in gym.registry:
            close = difflib.get_close_matches(env_id, gym.registry, n=1)
            raise ValueError(f"There is no environment {env_id}{f': did you mean {close[0]}?' if close else '.'}")
    for seed in seeds:
        for env_id, n_timesteps in envs:
            if n_timesteps is None and env_id not in BUDGETS:
                raise ValueError(f"{env_id} has no budget: write {env_id}:STEPS.")
            budget, eval_freq = BUDGETS.get(env_id, (0, 0))
            if n_timesteps not in (None, budget):
                budget, eval_freq = n_timesteps, max(n_timesteps // N_EVALUATIONS, 1)  # type: ignore[operator]
            runs += [Run(algo, env_id, seed, budget, eval_freq) for algo in algos]  # type: ignore[arg-type]
    return list(dict.fromkeys(runs))


def _find_file(algo: str) -> Path:
    if algo in ALGORITHMS:
        return hyperparams_file(algo)
    spec = find_spec("rl_zoo3")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "hyperparams" / f"{algo}.yml"
    if not path.is_file():
        raise ValueError(f"{algo!r} is no algorithm of ours or rl-zoo3's.")
    return path


def read_entry(algo: str, env_id: str) -> dict[str, Any]:
    """Hyperparameters of an algorithm for an environment: our file's or rl-zoo3's, whose entries for the version before serve.

    rl-zoo3 has MuJoCo's for v4, and LunarLander's without velocities for v2.

    :param algo: name of the algorithm
    :param env_id: environment
    :return: the entry, or the default one
    :raises ValueError: if there is no file for the algorithm
    """
    entries = yaml.safe_load(_find_file(algo).read_text())
    is_atari = "NoFrameskip" in env_id or env_id.startswith("ALE/")
    version_before = re.sub(r"(?<=-v)\d+$", lambda version: str(int(version[0]) - 1), env_id)
    names = [env_id, version_before, *(["atari"] if is_atari else []), "default"]
    return dict(next(entries[name] for name in names if name in entries))


class _Job:
    """A run in flight: a process that trains into a folder of its own, which the lock keeps for it."""

    def __init__(self, run: Run, folder: Path, lock: FileLock):
        self.run, self.folder, self.lock, self.start = run, folder, lock, time.time()
        self.work = Path(lock.lock_file).with_suffix("")
        shutil.rmtree(self.work, ignore_errors=True)  # of a process that was killed, or has failed
        self.work.mkdir()
        self.log = self.work / "log.txt"
        conf_file = self.work / f"{run.algo}.yml"
        conf_file.write_text(yaml.safe_dump({run.env_id: read_entry(run.algo, run.env_id)}))
        own = ["-f", str(self.work), "--conf-file", str(conf_file), "--verbose", "0"]
        command = [sys.executable, "-m", "sb3_pg.benchmark.run", *run.arguments, *own]
        with self.log.open("w") as log:
            # Nothing is ever written into the pipe: the process ends when we, who hold its other end, are gone
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)

    @property
    def trained(self) -> Path:
        return self.work / self.run.algo / f"{self.run.env_name}_1"

    def has_ended(self) -> bool:
        if self.process.poll() is None:
            return False
        assert self.process.stdin is not None
        self.process.stdin.close()
        return True

    def steps_done(self) -> int:
        """Steps up to the last evaluation."""
        try:
            with np.load(self.trained / "evaluations.npz") as evaluations:
                return int(evaluations["timesteps"][-1])
        except Exception:  # not there yet, or being written
            return 0

    def finish(self, n_parallel: int) -> None:
        """Move what the report needs to its place, in one step: a folder of runs never has a half of one."""
        finished = self.work / "finished"
        (finished / self.run.env_name).mkdir(parents=True)
        shutil.copy(self.trained / "evaluations.npz", finished)
        shutil.copy(self.trained / self.run.env_name / "config.yml", finished / self.run.env_name)
        info: dict[str, Any] = dict(
            algo=self.run.algo,
            env=self.run.env_id,
            seed=self.run.seed,
            n_timesteps=self.run.n_timesteps,
            eval_episodes=EVAL_EPISODES,
            deterministic=True,
            seconds=round(time.time() - self.start),
            runs_at_a_time=n_parallel,
            date=datetime.date.today().isoformat(),
            command=" ".join(["sb3-pg", "train", *self.run.arguments]),
            versions={name: version(name) for name in _PACKAGES},
        )
        (finished / "run.json").write_text(json.dumps(info, indent=1) + "\n")
        target = self.folder / self.run.name
        target.parent.mkdir(parents=True, exist_ok=True)
        finished.rename(target)
        shutil.rmtree(self.work)
        self.lock.release()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.has_ended()
        shutil.rmtree(self.work, ignore_errors=True)
        self.lock.release()


def run_all(runs: list[Run], folder: Path, n_parallel: int, console: Console) -> list[Run]:
    """Do the runs that the folder does not have, several at a time.

    :param runs: what the folder should have in the end
    :param folder: folder of finished runs, ``ALGO/ENV_SEED/`` each
    :param n_parallel: processes at a time; those that another call has in hand are waited for
    :param console: where progress is shown
    :return: runs that failed; what they printed is left in the folder's ``.running``
    """
    waiting = [run for run in runs if not run.is_finished(folder)]
    console.print(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished in {folder}")
    if not waiting:
        return []
    (folder / ".running").mkdir(parents=True, exist_ok=True)
    jobs: list[_Job] = []
    failed: list[Run] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn())
    done = 0
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as progress:
        total = progress.add_task("all runs", total=sum(run.n_timesteps for run in waiting))
        tasks: dict[Run, Any] = {}
        try:
            while waiting or jobs:
                for run in list(waiting):
                    if len(jobs) == n_parallel:
                        break
                    lock = FileLock(folder / ".running" / f"{run.algo}-{run.env_name}-{run.seed}.lock")
                    try:
                        lock.acquire(blocking=False)
                    except Timeout:
                        continue  # another process is at it
                    waiting.remove(run)
                    if run.is_finished(folder):  # by another process meanwhile
                        lock.release()
                        done += run.n_timesteps
                        continue
                    job = _Job(run, folder, lock)
                    jobs.append(job)
                    tasks[job.run] = progress.add_task(str(job.run.name), total=job.run.n_timesteps)
                time.sleep(_POLL_SECONDS)
                for job in [job for job in jobs if job.has_ended()]:
                    jobs.remove(job)
                    progress.remove_task(tasks.pop(job.run))
                    done += job.run.n_timesteps
                    if job.process.returncode == 0:
                        job.finish(n_parallel)
                        console.print(f"finished {job.run.name} in {time.time() - job.start:.0f} s")
                    else:
                        failed.append(job.run)
                        job.lock.release()
                        last = (job.log.read_text().strip().splitlines() or ["no output"])[-1]
                        console.print(f"failed {job.run.name} ({last}); see {job.log}")
                steps = {job.run: job.steps_done() for job in jobs}
                for run, n in steps.items():
                    progress.update(tasks[run], completed=n)
                progress.update(total, completed=done + sum(steps.values()))
        finally:
            for job in jobs:
                job.kill()
    return failed


def _exit_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    from rl_zoo3.train import train

    threading.Thread(target=_exit_with_parent, daemon=True).start()
    register()
    train()
