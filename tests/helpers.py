"""What several files of tests need: the algorithms in all their variants, eyes on a training, and processes of one's own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg.algorithms.policy_gradient import PolicyGradient

VARIANTS: list[tuple[type[PolicyGradient], dict[str, Any]]] = [
    (VanillaPG, dict(n_steps=16)),
    (VanillaPG, dict(n_episodes=1)),
    (VanillaPG, dict(weights="reward_to_go", n_steps=16)),
    (VanillaPG, dict(weights="return", n_episodes=2)),
    (ReinforceBaseline, dict(n_steps=16)),
    (ReinforceBaseline, dict(baseline="leave_one_out", n_episodes=2, weights="return")),
    (ReinforceBaseline, dict(baseline="running_mean", n_steps=16)),
    (ReinforceBaseline, dict(baseline="optimal", n_steps=16, discounted_state_distribution=True)),
    (NaturalPG, dict(n_steps=16)),
    (NaturalPG, dict(weights="reward_to_go", n_steps=16, sub_sampling_factor=2)),
]
variants = pytest.mark.parametrize("cls, kwargs", VARIANTS)
#: A few of them, for policies of other kinds
CLASSES: list[tuple[type[PolicyGradient], dict[str, Any]]] = [
    (VanillaPG, dict(n_steps=24)),
    (VanillaPG, dict(weights="return", n_episodes=2)),
    (ReinforceBaseline, dict(n_steps=24)),
    (ReinforceBaseline, dict(baseline="optimal", n_steps=24)),
    (ReinforceBaseline, dict(baseline="leave_one_out", n_episodes=2)),
    (NaturalPG, dict(n_steps=24, sub_sampling_factor=2)),
]


def params(model: PolicyGradient) -> dict[str, th.Tensor]:
    return {key: value.clone() for key, value in model.policy.state_dict().items()}


def changed(before: dict[str, th.Tensor], model: PolicyGradient) -> set[str]:
    return {key for key, value in model.policy.state_dict().items() if not th.equal(before[key], value)}


class Recorder(BaseCallback):
    NAMES = ("infos", "dones", "rewards", "actions", "clipped_actions", "new_obs", "n_steps", "n_rollout_steps", "callback",
             "env", "rollout_buffer", "self")  # fmt: skip

    def __init__(self, stop_after: int | None = None):
        super().__init__()
        self.stop_after, self.events, self.filled = stop_after, [], []

    def _on_rollout_start(self) -> None:
        self.events.append("start")

    def _on_step(self) -> bool:
        assert all(name in self.locals for name in self.NAMES)
        assert self.num_timesteps == self.model.num_timesteps
        n_envs = self.training_env.num_envs
        for name in ("infos", "dones", "rewards", "actions", "clipped_actions", "new_obs"):
            assert len(self.locals[name]) == n_envs
        self.events.append("step")
        return self.n_calls != self.stop_after

    def _on_rollout_end(self) -> None:
        self.events.append("end")
        buffer = self.locals["rollout_buffer"]
        assert buffer is self.model.rollout_buffer and buffer.full
        self.filled.append({name: getattr(buffer, name).copy() for name in ("advantages", "returns", "values", "log_probs")})
        list(buffer.get(7))  # a callback may sample the buffer


def collect(model: PolicyGradient) -> None:
    """Play one rollout, as learn() does, and leave it in the buffer."""
    _, callback = model._setup_learn(1)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


# Processes

#: Seconds after which a process hangs. Nothing is expected to take so long, however busy the machine is: no test waits for it
HANGS = 1800.0


@contextmanager
def running(command: list[str], **kwargs: Any) -> Iterator["subprocess.Popen[str]"]:
    """A process that is gone afterwards, whatever happens to the test meanwhile."""
    with subprocess.Popen(command, text=True, encoding="utf-8", **kwargs) as process:
        try:
            yield process
        finally:
            process.kill()


def run_process(command: list[str], **kwargs: Any) -> "subprocess.CompletedProcess[str]":
    """A process from its start to its end, with what it printed."""
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=HANGS, **kwargs)


def wait_until(event: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Wait for something that the process brings about."""
    start = time.monotonic()
    while not event():
        assert process.poll() is None and time.monotonic() - start < HANGS
        time.sleep(0.1)


# The command sb3-pg, as a user types it

TESTS = Path(__file__).parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "MPLBACKEND": "Agg",
    "SDL_VIDEODRIVER": "dummy",
}


def command_of(*arguments: str, program: tuple[str, ...] = ("-m", "sb3_pg")) -> list[str]:
    return [sys.executable, "-W", "ignore", *program, *arguments]


def finish(folder: Path, *arguments: str, program: tuple[str, ...] = ("-m", "sb3_pg")) -> tuple[int, str, str]:
    result = run_process(command_of(*arguments, program=program), cwd=folder, env=ENVIRONMENT)
    return result.returncode, result.stdout, result.stderr


def sb3_pg(folder: Path, command: str, program: tuple[str, ...] = ("-m", "sb3_pg")) -> str:
    code, out, err = finish(folder, *command.split(), program=program)
    assert code == 0, out + err
    return out
