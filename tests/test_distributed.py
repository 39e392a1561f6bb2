"""Several processes train as one does with all their environments; what happens on one of them leaves no other waiting."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch as th
from helpers import ENVIRONMENT, TESTS, collect
from ranks import CASES, N_ENVS, learn_from, make_model, tabular_updates
from stable_baselines3.common.env_util import make_vec_env

from sb3_pg import VanillaPG
from sb3_pg.cli import main
from sb3_pg.policies.steps import map_obs

# Seconds within which a fault of one rank has ended all, their start included
LIMIT = 120


def torchrun(
    n: int, *arguments: str, script: Path = TESTS / "ranks.py", cwd: Path | None = None, limit: int = LIMIT
) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    program = arguments if arguments[0] == "-m" else (str(script), *arguments)
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *program], capture_output=True, text=True, timeout=limit, env=environment, cwd=cwd)


def record(case: int) -> dict[str, Any]:
    """Two rollouts of one process, and the step that it makes of them."""
    model, rollouts = make_model(case, N_ENVS, double=False), []
    finish = model._finish_rollout

    def keep(buffer: Any, last_values: th.Tensor, terminal_values: np.ndarray, dones: np.ndarray) -> None:
        names = ("observations", "actions", "values", "log_probs", "rewards", "episode_starts", "timesteps", "mask")
        rows = {name: map_obs(np.array, getattr(buffer, name)) for name in names}
        rows["context"] = {name: np.array(x) for name, x in buffer.context.items()}
        rollouts.append({"rows": rows, "rewards": rows["rewards"], "last_values": last_values.flatten().clone(),
                         "terminal_values": terminal_values, "dones": np.array(dones)})  # fmt: skip
        finish(buffer, last_values, terminal_values, dones)

    model._finish_rollout = keep  # type: ignore[method-assign]
    collect(model)
    collect(model)
    double = "Lstm" not in CASES[case][0]  # contrib's memory is of single precision
    whole = {"rollouts": rollouts, "double": double, "tolerance": 1e-6 if double else 2e-4}
    return {**whole, "step": learn_from(make_model(case, N_ENVS, double), whole, slice(None))}


@pytest.mark.parametrize("n", [2, 3])
def test_ranks_train_as_one_process(n: int, tmp_path: Path) -> None:
    (tmp_path / "records.pkl").write_bytes(pickle.dumps([record(case) for case in range(len(CASES))]))
    (tmp_path / "variance").write_text(str(np.trace(np.cov(tabular_updates(24).T))))
    result = torchrun(n, "checks", str(tmp_path), limit=1200)
    assert result.returncode == 0, result.stdout + result.stderr
    assert sorted(path.name for path in tmp_path.glob("done_*")) == [f"done_{i}" for i in range(n)]
    # Rank 0 alone has written, and what it wrote is a model like any other
    assert [path.name for path in tmp_path.glob("model_of_*")] == ["model_of_0.zip"]
    assert len(list((tmp_path / "logs").glob("*/*tfevents*"))) == 1
    VanillaPG.load(tmp_path / "model_of_0", env=make_vec_env("CartPole-v1")).learn(100)
    names = [f"{i}.monitor.csv" for i in range(2)]
    names += [f"rank{rank}.{name}" for rank in range(1, n) for name in names]
    assert sorted(path.name for path in (tmp_path / "monitor").iterdir()) == sorted(names)
    assert all(len(pd.read_csv(tmp_path / "monitor" / name, comment="#")) > 0 for name in names)
    if n == 2:
        result = torchrun(4, "load", str(tmp_path), limit=600)
        assert result.returncode == 0 and len(list(tmp_path.glob("went_on_*"))) == 4, result.stderr


@pytest.mark.parametrize(
    "name, on_0, on_1",
    [
        (
            "nan",
            "EndedError: Rank 1 has ended with ValueError: Found NaN or infinity in the reward",
            "ValueError: Found NaN",
        ),
        ("interrupt", "EndedError: Rank 1 has ended with KeyboardInterrupt", "KeyboardInterrupt"),
        ("drift", "RuntimeError: The ranks have drifted apart", "RuntimeError: The ranks have drifted apart"),
    ],
)
def test_a_fault_of_one_rank_ends_all(name: str, on_0: str, on_1: str, tmp_path: Path) -> None:
    result = torchrun(2, name, str(tmp_path))
    assert result.returncode != 0
    for rank, expected in enumerate((on_0, on_1)):
        assert (tmp_path / f"{name}_{rank}").read_text().startswith(expected), result.stderr


def test_ranks_end_when_one_is_killed(tmp_path: Path) -> None:
    result = torchrun(2, "kill", str(tmp_path))
    assert result.returncode != 0 and not (tmp_path / "kill_1").exists()


def test_nothing_of_the_group_is_left_at_the_end() -> None:
    result = torchrun(2, "leave")
    assert result.returncode == 0, result.stderr


def test_the_example_trains_with_several_processes() -> None:
    result = torchrun(2, "600", script=TESTS.parent / "examples" / "12_many_processes.py", limit=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("return") == 1 and "steps of 2 processes" in result.stdout


def test_other_commands_refuse_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in dict(RANK="0", WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="1").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="it runs in one process"):
        main(["enjoy"])


def test_the_zoo_trains_one_run_of_several_processes_and_resumes_it(tmp_path: Path) -> None:
    options = ["-n", "3000", "--eval-freq", "800", "--eval-episodes", "2", "--save-freq", "900", "--num-threads", "1"]
    options += ["--algo", "vpg", "--env", "CartPole-v1", "-params", "normalize:True", "--tensorboard-log", "tb"]
    result = torchrun(2, "-m", "sb3_pg", "train", *options, cwd=tmp_path, limit=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Log path") == 1
    run = tmp_path / "logs/vpg/CartPole-v1_1"
    assert [path.name for path in run.parent.iterdir()] == ["CartPole-v1_1"]
    # As one process has them: eight environments, the counts of all
    assert len(list(run.glob("*.monitor.csv"))) == 8 and len(list(tmp_path.glob("tb/*/*/*tfevents*"))) == 1
    evaluations = np.load(run / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [800, 1600, 2400]
    rows = {path.name: pd.read_csv(path, comment="#").r.tolist() for path in run.glob("*.monitor.csv")}
    assert all(rows.values()) and len(set(map(tuple, rows.values()))) == 8
    checkpoints = sorted(int(path.name.split("_")[2]) for path in run.glob("rl_model_*"))
    assert checkpoints == [1024, 2048]
    end = VanillaPG.load(run / "CartPole-v1.zip")
    # Killed after the first checkpoint
    (run / "CartPole-v1.zip").unlink()
    (run / f"rl_model_{checkpoints[1]}_steps.zip").unlink()
    with pytest.raises(SystemExit, match="written by 2 processes"):
        main(["train", "--resume", str(run)])
    result = torchrun(2, "-m", "sb3_pg", "train", "--resume", str(run), cwd=tmp_path, limit=600)
    assert result.returncode == 0, result.stderr
    resumed = VanillaPG.load(run / "CartPole-v1.zip")
    for name, tensor in end.policy.state_dict().items():
        assert th.equal(tensor, resumed.policy.state_dict()[name]), name
    assert (
        end.num_timesteps == resumed.num_timesteps
        and list(end.ep_info_buffer)[-1]["r"] == list(resumed.ep_info_buffer)[-1]["r"]
    )  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.load(run / "evaluations.npz")["results"], evaluations["results"])
    assert rows == {path.name: pd.read_csv(path, comment="#").r.tolist() for path in run.glob("*.monitor.csv")}
