"""Training runs: their plan, their hyperparameters, resuming, failures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rl_zoo3
import yaml
from helpers import run_process, running, wait_until

from sb3_pg.benchmark.run import Run, plan, read_entry
from sb3_pg.cli.benchmark import main
from sb3_pg.zoo import hyperparams_file


def test_the_plan_covers_all_runs_one_seed_after_the_other() -> None:
    runs = plan(["vpg", "a2c"], [("CartPole-v1", None), ("Walker2d-v5", 1000)], [1, 2])
    assert [run.seed for run in runs] == [1] * 4 + [2] * 4
    assert runs[0] == Run("vpg", "CartPole-v1", 1, 300_000, 10_000) and runs[3] == Run("a2c", "Walker2d-v5", 1, 1000, 50)
    assert plan(["vpg", "vpg"], [("CartPole-v1", 200)], [1, 1]) == [Run("vpg", "CartPole-v1", 1, 200, 10)]
    assert plan(["vpg"], [("CartPole-v1", 200)], [1])[0].eval_freq == 10
    assert plan(["vpg"], [("CartPoleNoVel-v1", 200)], [1])[0].env_id == "CartPoleNoVel-v1"  # rl-zoo3's own
    with pytest.raises(ValueError, match="Walker2d-v5:STEPS"):
        plan(["vpg"], [("Walker2d-v5", None)], [1])


def test_the_zoos_mujoco_entries_are_read_for_v5() -> None:
    theirs = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams/ppo.yml").read_text())
    assert read_entry("ppo", "HalfCheetah-v5") == theirs["HalfCheetah-v4"]
    assert read_entry("ppo_lstm", "LunarLanderNoVel-v3")["policy"] == "MlpLstmPolicy"
    assert read_entry("ppo", "CartPole-v1") == theirs["CartPole-v1"]
    assert read_entry("ppo", "Unknown-v0") == theirs["default"]
    assert read_entry("ppo", "PongNoFrameskip-v4") == read_entry("ppo", "ALE/Pong-v5") == theirs["atari"]
    ours = yaml.safe_load(hyperparams_file("npg").read_text())
    assert read_entry("npg", "HalfCheetah-v5") == ours["HalfCheetah-v5"]


# Imported by every Python at its start: the run of A2C stops at its first evaluation and goes no further, until it is killed
PAUSE = """
import sys, time
from pathlib import Path
if {"sb3_pg.benchmark.run", "a2c"} <= set(sys.orig_argv):
    from gymnasium.envs.classic_control import CartPoleEnv
    step = CartPoleEnv.step
    def pausing_step(self, action):
        while list(Path("runs/.running").glob("a2c*/a2c/*/evaluations.npz")):
            time.sleep(0.1)
        return step(self, action)
    CartPoleEnv.step = pausing_step
"""


def test_runs_resume_after_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "sb3_pg", "benchmark", "run", "--algos", "vpg", "a2c", "--envs",
               "CartPole-v1:3000", "--seeds", "1", "--folder", "runs", "--jobs"]  # fmt: skip
    first, second = tmp_path / "runs/vpg/CartPole-v1_1", tmp_path / "runs/a2c/CartPole-v1_1"
    (tmp_path / "pause").mkdir()
    (tmp_path / "pause/sitecustomize.py").write_text(PAUSE)
    pausing = {**os.environ, "PYTHONPATH": str(tmp_path / "pause")}

    def second_has_begun() -> bool:
        return any((tmp_path / "runs/.running").glob("a2c*/a2c/*/evaluations.npz"))

    with running([*command, "1"], cwd=tmp_path, env=pausing, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: (first / "run.json").is_file() and second_has_begun(), process)
    stamp = (first / "run.json").stat().st_mtime_ns
    assert not second.exists()
    out = run_process([*command, "2"], cwd=tmp_path, check=True).stdout
    assert "1 of 2 runs are finished" in out
    assert (first / "run.json").stat().st_mtime_ns == stamp
    info = json.loads((second / "run.json").read_text())
    assert info["n_timesteps"] == 3000 and info["command"].startswith("sb3-pg train --algo a2c")
    with np.load(second / "evaluations.npz") as evaluations:
        assert len(evaluations["timesteps"]) == 20 and evaluations["results"].shape[1] == 10
    config = yaml.unsafe_load((second / "CartPole-v1/config.yml").read_text())
    assert config["n_envs"] == 8
    # Neither another budget nor other hyperparameters pass for these
    file = first / "CartPole-v1/config.yml"
    file.write_text(file.read_text().replace("lin_1.5e-3", "lin_1"))
    result = run_process([*command, "1"], cwd=tmp_path)
    assert result.returncode == 1 and "other hyperparameters" in result.stderr
    text = file.read_text()
    file.write_text(text + f"- - a\n  - !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    result = run_process([*command, "1"], cwd=tmp_path)
    assert result.returncode == 1 and "asks for Python's 'object/apply:os.mkdir'" in result.stderr
    assert not (tmp_path / "made").exists()
    file.write_text(text)
    result = run_process([*command[:-1], "--envs", "CartPole-v1:500"], cwd=tmp_path)
    assert result.returncode == 1 and "trained for 3000 steps, not 500" in result.stderr


def test_two_calls_share_the_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "sb3_pg", "benchmark", "run", "--algos", "vpg", "--envs",
               "CartPole-v1:3000", "--seeds", "1", "2", "--folder", "runs", "--jobs", "1"]  # fmt: skip
    # Left by one that was killed
    (tmp_path / "runs/.running/vpg-CartPole-v1-1/vpg").mkdir(parents=True)
    with running(command, cwd=tmp_path, stdout=subprocess.PIPE) as first:
        wait_until(lambda: any((tmp_path / "runs/.running").glob("*1/vpg/*/evaluations.npz")), first)
        second = run_process(command, cwd=tmp_path, check=True).stdout
        assert first.stdout is not None
        out = first.stdout.read()
        assert first.wait() == 0
    assert "finished vpg/CartPole-v1_1" in out and "finished vpg/CartPole-v1_1" not in second
    assert (out + second).count("finished vpg/CartPole-v1_2") == 1
    assert len(list((tmp_path / "runs/vpg").glob("*/run.json"))) == 2
    assert not [path for path in (tmp_path / "runs/.running").iterdir() if path.is_dir()]


def test_a_failed_run_is_named_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(
            [
                "run",
                "--algos",
                "vpg",
                "--envs",
                "phys2d/CartPole-v1:500",
                "CartPole-v1:500",
                "--seeds",
                "1",
                "--folder",
                str(tmp_path),
            ]
        )
    assert (tmp_path / "vpg/CartPole-v1_1/run.json").is_file()
    assert "1 of 2 runs failed: vpg/phys2d-CartPole-v1_1" in capsys.readouterr().err


def test_an_environment_with_a_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('Name/Space-v0', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=20)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, "-m", "sb3_pg", "benchmark", "run", "--algos", "vpg", "--seeds", "1", "--folder", "runs"]
    command += ["--envs", "Name/Space-v0:500"]
    for message in ("finished vpg/Name-Space-v0_1", "1 of 1 runs are finished"):
        result = run_process(command, cwd=tmp_path)
        assert message in result.stdout, result.stdout + result.stderr


def test_unknown_names_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--algos", "nonsense", "--envs", "CartPole-v1:500", "--folder", str(tmp_path)])
    assert "'nonsense' is no algorithm" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["run", "--algos", "vpg", "--envs", "CartPol-v1:500", "--folder", str(tmp_path)])
    assert "There is no environment CartPol-v1: did you mean CartPole-v1?" in capsys.readouterr().err
