"""The benchmarks: statistics by hand, files, resuming, command line."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rl_zoo3
import yaml

from sb3_pg.benchmark.cli import main
from sb3_pg.benchmark.report import improvement, interval, load_runs, steps_to_threshold, summarise_runs
from sb3_pg.benchmark.run import Run, plan, read_entry
from sb3_pg.benchmark.speed import summarise
from sb3_pg.zoo import hyperparams_file


def test_summary_by_hand() -> None:
    rates = {"bare VecEnv": [100.0, 200.0, 400.0], "VanillaPG": [50.0, 60.0, 100.0], "A2C": [5.0, 12.0, 5.0]}
    rows = [
        dict(env="E", n_envs=1, algorithm=name, repetition=i, steps_per_second=rate)
        for name, values in rates.items()
        for i, rate in enumerate(values)
    ]
    ours = summarise(pd.DataFrame(rows)).set_index("algorithm").loc["VanillaPG"]
    assert ours["steps_per_second"] == 60.0
    # Ratios are taken within a repetition: 10, 5, 20 and 0.5, 0.3, 0.25
    assert (ours["÷ A2C"], ours["÷ A2C min"], ours["÷ A2C max"]) == (10.0, 5.0, 20.0)
    assert ours["÷ bare VecEnv"] == 0.3
    assert not any(column.startswith("÷ VanillaPG") for column in ours.index)


def test_speed_writes_table_and_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "speed.csv"
    main(["speed", "--envs", "CartPole-v1:2", "--steps", "64", "--repetitions", "2", "--output", str(output)])
    measurements = pd.read_csv(output)
    assert len(measurements) == 2 * 8
    assert (measurements.steps_per_second > 0).all()
    assert {"bare VecEnv", "VanillaPG", "ReinforceBaseline", "NaturalPG", "A2C", "PPO", "A2C, n_steps=256"} <= set(
        measurements.algorithm
    )
    assert "CartPole-v1" in capsys.readouterr().out


def test_an_unknown_environment_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["speed", "--envs", "NoSuchEnvironment-v0:1", "--output", str(tmp_path / "speed.csv")])
    assert error.value.code == 1
    assert "NoSuchEnvironment" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["speed", "--envs", "CartPole-v1"], "ENVIRONMENT:NUMBER"),
        (["speed", "--repetitions", "0"], "positive"),
        ([], "required"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2 and message in capsys.readouterr().err


# Runs


def make_run(folder: Path, algo: str, env: str, seed: int, scores: list[float], imported: bool = False) -> None:
    run = folder / algo / f"{env}_{seed}"
    run.mkdir(parents=True)
    steps = 100 * np.arange(1, len(scores) + 1)
    np.savez(run / "evaluations.npz", timesteps=steps, results=np.array(scores)[:, None] + np.array([[-1.0, 1.0]]))
    info = dict(algo=algo, env=env, seed=seed, n_timesteps=int(steps[-1]), date="2026-01-01", versions={"torch": "2"})
    (run / "run.json").write_text(json.dumps(info | {"imported": imported}))


def test_the_plan_covers_all_runs_one_seed_after_the_other() -> None:
    runs = plan(["vpg", "a2c"], [("CartPole-v1", None), ("Walker2d-v5", 1000)], [1, 2])
    assert [run.seed for run in runs] == [1] * 4 + [2] * 4
    assert runs[0] == Run("vpg", "CartPole-v1", 1, 300_000, 10_000) and runs[3] == Run("a2c", "Walker2d-v5", 1, 1000, 50)
    assert plan(["vpg", "vpg"], [("CartPole-v1", 200)], [1, 1]) == [Run("vpg", "CartPole-v1", 1, 200, 10)]
    assert plan(["vpg"], [("CartPole-v1", 200)], [1])[0].eval_freq == 10
    with pytest.raises(ValueError, match="Walker2d-v5:STEPS"):
        plan(["vpg"], [("Walker2d-v5", None)], [1])


def test_the_zoos_mujoco_entries_are_read_for_v5() -> None:
    theirs = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams/ppo.yml").read_text())
    assert read_entry("ppo", "HalfCheetah-v5") == theirs["HalfCheetah-v4"]
    assert read_entry("ppo", "CartPole-v1") == theirs["CartPole-v1"]
    assert read_entry("ppo", "Unknown-v0") == theirs["default"]
    assert read_entry("ppo", "PongNoFrameskip-v4") == read_entry("ppo", "ALE/Pong-v5") == theirs["atari"]
    ours = yaml.safe_load(hyperparams_file("npg").read_text())
    assert read_entry("npg", "HalfCheetah-v5") == ours["HalfCheetah-v5"]


def test_runs_resume_after_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "sb3_pg", "benchmark", "run", "--algos", "vpg", "a2c", "--envs",
               "CartPole-v1:3000", "--seeds", "1", "--folder", "runs", "--jobs"]  # fmt: skip
    process = subprocess.Popen([*command, "1"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    first, second = tmp_path / "runs/vpg/CartPole-v1_1", tmp_path / "runs/a2c/CartPole-v1_1"
    deadline = time.time() + 120
    while not ((first / "run.json").is_file() and list((tmp_path / "runs/.running").glob("a2c*/a2c/*/evaluations.npz"))):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    stamp = (first / "run.json").stat().st_mtime_ns
    assert not second.exists()
    out = subprocess.run([*command, "2"], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=True).stdout
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
    result = subprocess.run([*command, "1"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and "other hyperparameters" in result.stderr
    result = subprocess.run([*command[:-1], "--envs", "CartPole-v1:500"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and "trained for 3000 steps, not 500" in result.stderr


def test_a_failed_run_is_named_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--algos", "vpg", "--envs", "Nope-v0:500", "CartPole-v1:500", "--seeds", "1", "--folder", str(tmp_path)])
    assert (tmp_path / "vpg/CartPole-v1_1/run.json").is_file()
    assert "1 of 2 runs failed: vpg/Nope-v0_1" in capsys.readouterr().err


def test_an_environment_with_a_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('Name/Space-v0', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=20)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, "-m", "sb3_pg", "benchmark", "run", "--algos", "vpg", "--seeds", "1", "--folder", "runs"]
    command += ["--envs", "Name/Space-v0:500"]
    for message in ("finished vpg/Name-Space-v0_1", "1 of 1 runs are finished"):
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert message in result.stdout, result.stdout + result.stderr


def test_an_unknown_algorithm_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--algos", "nonsense", "--envs", "CartPole-v1:500", "--folder", str(tmp_path)])
    assert "'nonsense' is no algorithm" in capsys.readouterr().err


# Report


def test_runs_of_several_budgets_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path, "vpg", "CartPole-v1", 1, [1.0, 2.0])
    make_run(tmp_path, "a2c", "CartPole-v1", 1, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"several budgets \(200, 300"):
        load_runs(tmp_path)


def test_statistics_by_hand() -> None:
    # Of 8 runs the interquartile mean drops 2 at each end
    estimate, low, high = interval(np.array([[100.0], [1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [-100.0]]))
    assert estimate == np.mean([2.0, 3.0, 4.0, 5.0]) and low < estimate < high
    # Of the 6 pairs of the first environment X wins 4 and ties 1; in the second it loses all
    x, y = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]), np.array([[0.0, 1.0], [2.0, 1.0]])
    assert improvement(x[:, :1], y[:, :1])[0] == 4.5 / 6
    assert improvement(x, y)[0] == pytest.approx((4.5 / 6 + 0.0) / 2)


def test_runs_by_hand(tmp_path: Path) -> None:
    make_run(tmp_path, "vpg", "CartPole-v1", 1, [10.0, 20.0, 30.0, 40.0, 50.0])
    make_run(tmp_path, "vpg", "CartPole-v1", 2, [10.0, 10.0, 10.0, 10.0, 10.0])
    evaluations = load_runs(tmp_path)
    runs = summarise_runs(evaluations).set_index("seed")
    assert runs.final[1] == 40.0 and runs.area[1] == 30.0 and runs.final[2] == runs.area[2] == 10.0
    np.testing.assert_array_equal(steps_to_threshold(evaluations, 30.0), [300.0, np.inf])


def test_report_of_partial_results(tmp_path: Path) -> None:
    folder, output = tmp_path / "runs", tmp_path / "out"
    for seed in (1, 2, 3):
        make_run(folder, "vpg", "CartPole-v1", seed, [50.0 * i + seed for i in range(1, 9)])
        make_run(folder, "a2c", "CartPole-v1", seed, [30.0 * i + seed for i in range(1, 9)], imported=True)
    make_run(folder, "a2c", "Pendulum-v1", 1, [-1200.0, -1000.0])
    throughput = tmp_path / "throughput.csv"
    throughput.write_text(
        "env,algorithm,repetition,steps_per_second\nCartPole-v1,vpg,0,200\nCartPole-v1,vpg,1,100\nCartPole-v1,vpg,2,50\n"
    )
    main(["report", "--folder", str(folder), "--output", str(output), "--throughput", str(throughput)])
    text = (output / "REPORT.md").read_text()
    # Seed 2, the middle one: mean of the last three evaluations
    assert "|CartPole-v1|352.0 [351.0, 353.0] (3)|212.0 [211.0, 213.0] (3)|" in text
    assert "|Pendulum-v1|–|-1,100 [-1,100, -1,100] (1)|" in text
    assert "|VanillaPG over A2C|1.00|1.00 [1.00, 1.00]|–|" in text
    assert "3 runs of A2C" in text and "7 training runs" in text
    # 80% of the way from about 20 to 352 is reached at the sixth evaluation, 600 steps at 100 a second
    assert "|CartPole-v1|600.0 (3/3)|not (0/3)|" in text and "|CartPole-v1|6.0 (3/3)|–|" in text
    for name in ("curves_steps", "curves_seconds", "profiles"):
        assert (output / f"{name}.png").stat().st_size > 10_000 and (output / f"{name}.svg").is_file()
    assert len(pd.read_csv(output / "final.csv")) == 7


def test_the_mean_improvement_counts_every_run(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for seed, (ours, theirs) in enumerate([(1.0, 2.0), (1.0, 2.0), (5.0, 2.0)], start=1):
        make_run(folder, "vpg", "CartPole-v1", seed, [ours])
        make_run(folder, "a2c", "CartPole-v1", seed, [theirs])
    make_run(folder, "vpg", "Acrobot-v1", 1, [-80.0])
    make_run(folder, "a2c", "Acrobot-v1", 1, [-90.0])
    main(["report", "--folder", str(folder), "--output", str(tmp_path), "--throughput", str(tmp_path / "none.csv")])
    # A third and one; of the first seeds alone, the only ones that both environments have, it would be a half
    assert "|VanillaPG over A2C|0.67|" in (tmp_path / "REPORT.md").read_text()


def test_no_runs_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["report", "--folder", str(tmp_path)])
    assert stop.value.code == 1 and "sb3-pg benchmark run makes them" in capsys.readouterr().err


def test_throughput_uses_the_hyperparameter_files(tmp_path: Path) -> None:
    output = tmp_path / "throughput.csv"
    main(["throughput", "--algos", "vpg", "trpo", "--envs", "CartPole-v1", "--steps", "100", "--repetitions", "2",
          "--output", str(output)])  # fmt: skip
    measured = pd.read_csv(output)
    assert len(measured) == 4 and (measured.steps_per_second > 0).all()
