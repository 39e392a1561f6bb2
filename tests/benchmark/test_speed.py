"""Steps a second: the table by hand, the commands, wrong arguments."""

from pathlib import Path

import pandas as pd
import pytest

from sb3_pg.benchmark.speed import summarise
from sb3_pg.cli.benchmark import main


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


def test_speed_of_policies_with_memory_and_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "speed.csv"
    rows = ["CartPole-v1:2:lstm8", "CartPole-v1:2:masked"]
    main(["speed", "--envs", *rows, "--steps", "64", "--repetitions", "1", "--output", str(output)])
    by_env = pd.read_csv(output).groupby("env").algorithm.unique()
    assert {"VanillaPG", "RecurrentPPO"} <= set(by_env["CartPole-v1 lstm8"])
    assert {"VanillaPG", "MaskablePPO", "bare VecEnv"} <= set(by_env["CartPole-v1 masked"])
    assert "RecurrentPPO" in capsys.readouterr().out


def test_speed_of_vector_environments(tmp_path: Path) -> None:
    output = tmp_path / "speed.csv"
    main(["speed", "--envs", "CartPole-v1:128:native", "--steps", "1024", "--repetitions", "1", "--output", str(output)])
    measurements = pd.read_csv(output)
    assert {"bare VectorEnv", "bare VecEnv", "one pass", "VanillaPG", "A2C"} <= set(measurements.algorithm)
    assert {"÷ one pass", "÷ bare VectorEnv"} <= set(summarise(measurements).columns)


def test_speed_of_several_processes(tmp_path: Path) -> None:
    output = tmp_path / "speed.csv"
    main(["speed", "--envs", "CartPole-v1:2:ranks2", "--steps", "600", "--repetitions", "1", "--output", str(output)])
    measurements = pd.read_csv(output)
    assert {"VanillaPG, 1 process", "VanillaPG, 2 processes", "NaturalPG, 2 processes"} <= set(measurements.algorithm)
    assert "÷ NaturalPG, 1 process" in summarise(measurements).columns
    with pytest.raises(SystemExit):
        main(["speed", "--envs", "NoSuchEnvironment-v0:1:ranks2", "--output", str(output)])


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


def test_throughput_uses_the_hyperparameter_files(tmp_path: Path) -> None:
    output = tmp_path / "throughput.csv"
    main(["throughput", "--algos", "vpg", "trpo", "--envs", "CartPole-v1", "--steps", "100", "--repetitions", "2",
          "--output", str(output)])  # fmt: skip
    measured = pd.read_csv(output)
    assert len(measured) == 4 and (measured.steps_per_second > 0).all()
