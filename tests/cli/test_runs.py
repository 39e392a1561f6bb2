"""Agents whose environment is registered by a package and made with arguments: what the run's folder knows of them."""

import argparse
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th
import yaml
from helpers import finish, sb3_pg

from sb3_pg import NaturalPG, VanillaPG
from sb3_pg.cli.help import next_steps
from sb3_pg.cli.runs import read_args
from sb3_pg.zoo import register


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an environment that cannot be made without its package and the ``env_kwargs`` of the file."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.yml").write_text(
        "Toy-v0:\n  n_timesteps: 64\n  policy: MlpPolicy\n  n_steps: 16\n  env_kwargs:\n    length: 7\n"
    )
    sb3_pg(folder, "train --env Toy-v0 --gym-packages toy_env --conf-file toy.yml --eval-freq 32")
    return folder


def test_enjoy_knows_the_packages_of_the_run(trained: Path) -> None:
    out = sb3_pg(trained, "enjoy --env Toy-v0 --no-render -n 20 --exp-id 1")
    assert "Episode Reward: 7.00" in out
    # Arguments of the command line come before those of the file
    assert "Episode Reward: 5.00" in sb3_pg(trained, "enjoy --env Toy-v0 --no-render -n 20 --exp-id 1 --env-kwargs length:5")
    assert "Episode Reward: 7.00" in sb3_pg(trained, "enjoy --env Toy-v0 --gym-packages toy_env --no-render -n 20 --exp-id 1")


@pytest.mark.parametrize("packages", ["", "--gym-packages toy_env"])
def test_record_video_knows_them_too(packages: str, trained: Path) -> None:
    name = f"videos{len(packages)}"
    sb3_pg(trained, f"record_video --env Toy-v0 -n 10 -o {name} --exp-id 1 {packages}")
    assert list((trained / name).glob("*.mp4"))


def test_estimators_know_them_too(trained: Path) -> None:
    sb3_pg(trained, "estimators --env Toy-v0 --exp-id 1 --episodes 8")
    assert (trained / "estimators.csv").is_file()


def test_training_goes_on_with_them(trained: Path) -> None:
    sb3_pg(trained, "train --env Toy-v0 -i logs/vpg/Toy-v0_1/Toy-v0.zip -n 32 --conf-file toy.yml --eval-freq -1")
    assert "Episode Reward: 7.00" in sb3_pg(trained, "enjoy --env Toy-v0 --no-render -n 20 --exp-id 2")


def test_packages_that_are_not_there(trained: Path, tmp_path: Path) -> None:
    settings = tmp_path / "logs/vpg/Toy-v0_1/Toy-v0"
    settings.mkdir(parents=True)
    (settings / "args.yml").write_text("gym_packages: [no_such_package]\n")
    code, _, err = finish(tmp_path, "enjoy", "--env", "Toy-v0")
    assert code == 1 and "--gym-packages no_such_package, which cannot be found from here" in err
    (settings / "args.yml").unlink()
    code, _, err = finish(tmp_path, "enjoy", "--env", "Toy-v0")
    assert code == 1 and "Toy-v0 is not registered: name the package that does it with --gym-packages." in err


def test_args_are_read_and_nothing_is_made(trained: Path, tmp_path: Path) -> None:
    settings = trained / "logs/vpg/Toy-v0_1/Toy-v0"
    args = read_args(settings, trusted=False)
    assert args == dict(yaml.unsafe_load((settings / "args.yml").read_text())) and args["gym_packages"] == ["toy_env"]
    assert read_args(tmp_path, trusted=False) == {}
    (tmp_path / "args.yml").write_text(f"a: 1\nb: !!python/object/apply:os.mkdir ['{tmp_path / 'touched'}']\n")
    with pytest.raises(ValueError, match="it asks for Python's"):
        read_args(tmp_path, trusted=False)
    assert not (tmp_path / "touched").exists()
    read_args(tmp_path, trusted=True)
    assert (tmp_path / "touched").exists()


def test_training_in_vector_environments(tmp_path: Path) -> None:
    common = "-n 2000 --eval-freq 1000 -params n_envs:16 n_steps:16"
    sb3_pg(tmp_path, f"train --env CartPole-v1 --vec-env gymnasium {common}")
    run = tmp_path / "logs/vpg/CartPole-v1_1"
    assert read_args(run / "CartPole-v1", trusted=False)["vec_env"] == "gymnasium"
    assert len((run / "0.monitor.csv").read_text().splitlines()) > 20 and (run / "evaluations.npz").is_file()
    sb3_pg(tmp_path, f"train --env Pendulum-v1 --vec-env gymnasium {common}")
    assert (tmp_path / "logs/vpg/Pendulum-v1_1/15.monitor.csv").is_file()
    entries = Path(__file__).parents[2] / "hyperparams/vpg_many_environments.yml"
    out = sb3_pg(tmp_path, f"train --env CartPole-v1 --vec-env gymnasium --conf-file {entries} -n 2048 --eval-freq -1")
    assert "Using 64 environments" in out
    command = "train --env Toy-v0 --gym-packages toy_env --vec-env envpool -n 100 --env-kwargs length:7"
    code, _, err = finish(tmp_path, *command.split())
    assert code == 1 and err.splitlines()[-1].startswith("sb3-pg train: error:") and "EnvPool" in err.splitlines()[-1]


def test_a_run_that_was_killed_is_resumed(tmp_path: Path) -> None:
    options = "--algo npg --env Pendulum-v1 -n 2000 --save-freq 700 --eval-freq 500 --seed 4"
    options += " -params n_envs:2 n_steps:64 normalize:True"
    sb3_pg(tmp_path, f"train {options} -f whole")
    sb3_pg(tmp_path, f"train {options} -f killed")
    whole, killed = (tmp_path / folder / "npg/Pendulum-v1_1" for folder in ("whole", "killed"))
    steps = sorted(int(re.findall(r"\d+", path.name)[0]) for path in whole.glob("rl_model_*"))
    for n in steps[1:]:  # as if it had been killed before the second checkpoint
        (killed / f"rl_model_{n}_steps.zip").unlink()
    (killed / "Pendulum-v1.zip").unlink()
    sb3_pg(tmp_path, f"train --resume {killed}")
    assert [path.name for path in killed.parent.iterdir()] == ["Pendulum-v1_1"]
    code, _, err = finish(tmp_path, "train", "--resume", str(killed), "-n", "9000")
    assert code == 1 and "to the number of steps that it was started with; -n is not taken" in err
    th.testing.assert_close(
        *(NaturalPG.load(run / "Pendulum-v1.zip").get_parameters() for run in (whole, killed)), rtol=0, atol=0
    )
    evaluations = [dict(np.load(run / "evaluations.npz")) for run in (whole, killed)]
    assert all(np.array_equal(evaluations[0][key], evaluations[1][key]) for key in evaluations[0])
    for name in ("0.monitor.csv", "1.monitor.csv"):
        rows = [[line.split(",")[i] for i in (0, 1, 3)] for run in (whole, killed)
                for line in (run / name).read_text().splitlines()[1:]]  # fmt: skip
        assert rows[: len(rows) // 2] == rows[len(rows) // 2 :] and len(rows) > 6
    assert "Mean reward" in sb3_pg(
        tmp_path, f"enjoy --algo npg --env Pendulum-v1 -f whole --no-render -n 201 --load-checkpoint {steps[0]}"
    )
    assert f"rl_model_{steps[-1]}_steps.zip: the run has ended already" in sb3_pg(
        tmp_path, f"train --resume {killed} --verbose 1 --num-threads=1"
    )
    config = killed / "Pendulum-v1/config.yml"
    for evil, message in (("callback: os.system", "the callback"), ("env_wrapper: os.system", "the wrapper 'os.system'")):
        config.write_text(f"{evil}\npolicy: MlpPolicy\npolicy_kwargs: open('{tmp_path / 'touched'}', 'w')\n")
        code, _, err = finish(tmp_path, "train", "--resume", str(killed))
        assert code == 1 and message in err and not (tmp_path / "touched").exists()
    code, _, err = finish(tmp_path, "train", "--resume", "nowhere")
    assert code == 1 and "nowhere has no checkpoint to go on from: there is no such folder" in err


def test_what_to_type_next(tmp_path: Path) -> None:
    steps = next_steps("vpg", "CartPole-v1", Path("logs/vpg/CartPole-v1_12"))
    assert "enjoy --algo vpg --env CartPole-v1 -f logs --exp-id 12" in steps and "plot_train -a vpg" in steps
    assert "enjoy" not in next_steps("vpg", "CartPole-v1", Path("logs/vpg/CartPole-v1_1_0f6d-11ee"))  # of -uuid


def test_a_run_of_a_package_is_resumed_with_its_arguments(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[1] / "toy_env.py", tmp_path / "own_env.py")
    sb3_pg(
        tmp_path,
        "train --env Toy-v0 --gym-packages own_env --env-kwargs length:7 --eval-env-kwargs length:5 -n 200 --save-freq 64 "
        "--eval-freq 64 -tb tb -params n_steps:16 n_envs:1",
    )
    run = tmp_path / "logs/vpg/Toy-v0_1"
    (run / "Toy-v0.zip").unlink()
    code, _, err = finish(tmp_path, "train", "--resume", str(run))
    assert code == 1 and "name it yourself with --gym-packages" in err
    n_events = len(list((tmp_path / "tb").rglob("*.tfevents.*")))
    shutil.copy(tmp_path / "own_env.py", run)
    out = sb3_pg(run, "train --resume . --gym-packages own_env")
    assert "The run logged for TensorBoard; to go on with that: --tensorboard-log 'tb" in out
    assert f"enjoy --algo vpg --env Toy-v0 -f {tmp_path / 'logs'} --exp-id 1" in out
    assert {float(line.split(",")[0]) for line in (run / "0.monitor.csv").read_text().splitlines()[2:]} == {7.0}
    assert set(np.load(run / "evaluations.npz")["results"].ravel()) == {5.0}
    assert len(list((tmp_path / "tb").rglob("*.tfevents.*"))) == n_events
    sb3_pg(tmp_path, f"train --resume {run} --gym-packages own_env --tensorboard-log tb")
    assert len(list((tmp_path / "tb").rglob("*.tfevents.*"))) > n_events
    code, _, err = finish(tmp_path, "train", "--resume", str(run / "Toy-v0.zip"))
    assert code == 1 and f"--resume takes the folder of a run, {run}, and goes on from its newest checkpoint." in err
    args, config = run / "Toy-v0/args.yml", run / "Toy-v0/config.yml"
    honest = config.read_text()
    for entry in ("frame_stack: 1000000000", "env_wrapper: [{gymnasium.wrappers.ResizeObservation: {shape: [99999, 99999]}}]"):
        config.write_text(f"{entry}\npolicy: MlpPolicy\n")
        code, _, err = finish(tmp_path, "train", "--resume", str(run), "--gym-packages", "own_env")
        assert code == 1 and "which is too much" in err
    config.write_text(honest)
    evil = f"a:open({str(tmp_path / 'touched')!r}, 'w')#"
    for name in ("env_kwargs", "eval_env_kwargs"):
        args.write_text(yaml.safe_dump({**read_args(args.parent, trusted=False), name: {evil: 1}}))
        code, _, err = finish(tmp_path, "train", "--resume", str(run), "--gym-packages", "own_env")
        assert code == 1 and f"does not say which {name} the environment was made with" in err
        args.write_text(yaml.safe_dump({**read_args(args.parent, trusted=False), name: None}))
    assert not (tmp_path / "touched").exists()


def test_runs_that_begin_together_have_folders_of_their_own(tmp_path: Path) -> None:
    from rl_zoo3.exp_manager import ExperimentManager

    register()
    managers = [ExperimentManager(argparse.Namespace(), "vpg", "CartPole-v1", str(tmp_path), n_timesteps=10) for _ in range(3)]
    for manager in managers:
        manager.create_log_folder()
    assert len({manager.save_path for manager in managers}) == 3 == len(list((tmp_path / "vpg").iterdir()))


BROKEN = """
from gymnasium.envs.classic_control import PendulumEnv
from sb3_pg.cli import main
step = PendulumEnv.step
calls = 0
def broken(self, action):
    global calls
    calls += 1
    observation, reward, *rest = step(self, action)
    return observation, float("nan") if calls == 700 else reward, *rest
PendulumEnv.step = broken
main("train --env Pendulum-v1 -n 5000 --eval-freq -1 --seed 1 -params normalize:True n_envs:1 n_steps:64".split())
"""


def test_the_agent_of_a_run_that_fails_is_saved(tmp_path: Path) -> None:
    code, out, err = finish(tmp_path, program=("-c", BROKEN))
    assert code == 1 and "a reward of nan in environment 0" in err.splitlines()[-1]
    assert "Saving to logs/vpg/Pendulum-v1_1" in out
    model = VanillaPG.load(tmp_path / "logs/vpg/Pendulum-v1_1/Pendulum-v1.zip")
    assert model._n_updates == 10 and all(bool(p.isfinite().all()) for p in model.policy.parameters())
    with (tmp_path / "logs/vpg/Pendulum-v1_1/Pendulum-v1/vecnormalize.pkl").open("rb") as file:
        assert np.isfinite(pickle.load(file).ret_rms.var)


def test_a_run_that_is_terminated_saves_its_agent(tmp_path: Path) -> None:
    options = "--env CartPole-v1 -n 10000000 --eval-freq -1 --save-freq 1000"
    command = [sys.executable, "-m", "sb3_pg", "train", *options.split()]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "total_timesteps" in line and list(tmp_path.rglob("*_steps.zip")):
                process.terminate()
                break
        out = process.stdout.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert "of 10,000,000 steps. Go on: sb3-pg train --resume logs/vpg/CartPole-v1_1" in out
    assert (tmp_path / "logs/vpg/CartPole-v1_1/CartPole-v1.zip").is_file()
