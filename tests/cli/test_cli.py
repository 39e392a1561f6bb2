"""The command sb3-pg, as a user types it."""

import argparse
import subprocess
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from helpers import ENVIRONMENT, HANGS, command_of, finish, running, sb3_pg

from sb3_pg import VanillaPG
from sb3_pg.cli import main
from sb3_pg.cli.estimators import load_agent


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of each of our algorithms on CartPole-v1."""
    folder = tmp_path_factory.mktemp("zoo")
    for algo in ("vpg", "reinforce"):
        for seed in (2, 4):  # of which both end after two evaluations
            sb3_pg(folder, f"train --algo {algo} --env CartPole-v1 -n 800 --eval-freq 400 --seed {seed} --save-freq 400")
    return folder


@pytest.mark.parametrize("algo", ["vpg", "reinforce"])
def test_train_enjoy_continue_and_record(algo: str, trained: Path) -> None:
    run = trained / f"logs/{algo}/CartPole-v1_1"
    for name in ("CartPole-v1.zip", "best_model.zip", "CartPole-v1/args.yml", "0.monitor.csv"):
        assert (run / name).is_file(), name
    assert len(list(run.glob("rl_model_*_steps.zip"))) == 1  # at the end of a rollout
    evaluated_at = np.load(run / "evaluations.npz")["timesteps"].tolist()
    assert evaluated_at == [400, 800]
    # The zoo writes an OrderedDict, a tag only the full loader knows
    assert yaml.load((run / "CartPole-v1/config.yml").read_text(), yaml.UnsafeLoader)["n_envs"] == 8

    out = sb3_pg(trained, f"enjoy --algo {algo} --env CartPole-v1 --no-render -n 600 --load-best --exp-id 1")
    assert "Mean reward" in out
    out = sb3_pg(
        trained, f"train --algo {algo} --env CartPole-v1 -i {run}/CartPole-v1.zip -n 300 --log-folder more -params n_steps:8"
    )
    assert "Loading pretrained agent" in out
    assert (trained / f"more/{algo}/CartPole-v1_1/CartPole-v1.zip").is_file()
    sb3_pg(trained, f"record_video --algo {algo} --env CartPole-v1 -n 20 -o videos --exp-id 1 --no-render")
    (video,) = (trained / "videos").glob(f"*{algo}*.mp4")
    assert video.stat().st_size > 1000


def test_what_a_run_has_is_named_where_it_has_not_what_was_asked_for(trained: Path) -> None:
    run = Path("logs/vpg/CartPole-v1_1")
    (checkpoint,) = (trained / run).glob("rl_model_*_steps.zip")
    steps = checkpoint.name.split("_")[2]
    for command, message in (
        ("enjoy --env CartPole-v1 --exp-id 1 --no-render --load-checkpoint 7", f"There are checkpoints of {steps} steps"),
        (f"train --env CartPole-v1 -conf {run}/CartPole-v1/config.yml", "the config.yml of a run is no hyperparameter file"),
    ):
        code, _, err = finish(trained, *command.split())
        assert code == 1 and message in err.splitlines()[-1]


def test_plots_are_written_without_a_display(trained: Path) -> None:
    sb3_pg(trained, "plot_train -a vpg -e CartPole-v1 -f logs -w 5")
    out = sb3_pg(trained, "all_plots -a vpg reinforce -e CartPole-v1 -f logs --no-million -o all")
    assert "REINFORCE" in out
    sb3_pg(trained, "plot_from_file -i all.pkl -o bars.png --format png")
    for name in ("plot_train-1.png", "all_plots-1.png", "bars.png"):
        assert (trained / name).stat().st_size > 5000, name


def test_estimators(trained: Path) -> None:
    out = sb3_pg(trained, "estimators --algo vpg --env CartPole-v1 --exp-id 1 --episodes 16")
    assert out.strip().splitlines()[-1] and "Recommended: " in out
    assert (trained / "estimators.png").stat().st_size > 10_000 and "gae_lambda" in (trained / "estimators.csv").read_text()
    run = trained / "logs/reinforce/CartPole-v1_1/CartPole-v1.zip"
    sb3_pg(trained, f"estimators --algo reinforce --env CartPole-v1 --model {run} --episodes 8 --output own/table")
    code, _, err = finish(trained, *f"estimators --algo ppo --env CartPole-v1 --model {run}".split())
    assert code == 1 and "does not open as a model of ppo: name the algorithm that wrote it with --algo" in err
    assert (trained / "own/table.png").is_file()
    code, _, err = finish(trained, "estimators", "--algo", "vpg", "--env", "Acrobot-v1")
    assert code == 1 and "Train an agent first" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("train --algo vpg --env CartPole-v1 -n 64 -params vf_coef:0.5", "critic_learning_rate"),
        ("train --algo vpg --env CartPole-v1 -n 64 -params gamma=0.9", "NAME:VALUE"),
        ("train --env CartPole-v1 -n 64 --storage new.log --study-name nope --trial-id 3", "no such study"),
        ("estimators --model nope.zip", "no file nope.zip"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, arguments: str, message: str) -> None:
    code, _, err = finish(tmp_path, *arguments.split())
    assert code == 1 and message in err, err


def test_peers_are_trained_and_found_in_the_same_place(tmp_path: Path) -> None:
    sb3_pg(tmp_path, "train --algo a2c --env CartPole-v1 -n 64 --eval-freq -1")
    assert "Mean reward" in sb3_pg(tmp_path, "enjoy --algo a2c --env CartPole-v1 --no-render -n 200")


def test_two_processes_search_together_and_a_trial_is_trained(tmp_path: Path) -> None:
    study = "--storage search.log --study-name demo"
    search = (
        f"train --algo vpg --env CartPole-v1 -n 256 {study} --optimize-hyperparameters --n-trials 2 --n-evaluations 1 "
        "--no-optim-plots --eval-episodes 1 --seed"
    )
    with ExitStack() as stack:
        pipes: dict[str, Any] = dict(cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        processes = [stack.enter_context(running(command_of(*search.split(), seed), **pipes)) for seed in ("1", "2")]
        for process in processes:
            out, _ = process.communicate(timeout=HANGS)
            assert process.returncode == 0, out
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "search.log")))
    trials = optuna.load_study(study_name="demo", storage=storage).get_trials()
    assert len(trials) == 4 and all(trial.state.is_finished() for trial in trials)
    out = sb3_pg(tmp_path, f"train --algo vpg --env CartPole-v1 -n 256 {study} --trial-id 3 --eval-freq -1")
    assert f"'critic_learning_rate', {trials[3].params['critic_learning_rate']}" in out


def test_reinforce_searches_too(tmp_path: Path) -> None:
    sb3_pg(
        tmp_path,
        "train --algo reinforce --env Pendulum-v1 -n 400 -optimize --n-trials 2 --n-evaluations 1 --no-optim-plots "
        "--eval-episodes 1 -params n_envs:2",
    )
    assert list((tmp_path / "logs/reinforce").glob("report_*.csv"))


def test_vec_normalize_in_subprocesses(tmp_path: Path) -> None:
    sb3_pg(tmp_path, "train --algo vpg --env Pendulum-v1 -n 400 --vec-env subproc --eval-freq 200 -params n_envs:2")
    assert (tmp_path / "logs/vpg/Pendulum-v1_1/Pendulum-v1/vecnormalize.pkl").is_file()
    assert "Mean reward" in sb3_pg(tmp_path, "enjoy --algo vpg --env Pendulum-v1 --no-render -n 200")
    # The critic was fitted to normalised rewards: on others it would be no baseline at all
    arguments = argparse.Namespace(algo="vpg", env="Pendulum-v1", folder=str(tmp_path / "logs"), exp_id=0, load_best=False,
                                   model=None, n_envs=2, seed=0, device="cpu", gym_packages=[], trust=True)  # fmt: skip
    model, env = load_agent(arguments)
    with closing(env):
        assert env.norm_reward and not env.training and env.ret_rms.count > 100
        assert isinstance(model, VanillaPG)


def test_dict_observations(tmp_path: Path) -> None:
    policy = "-params policy:'MultiInputPolicy' n_steps:64"
    sb3_pg(tmp_path, f"train --algo vpg --env Goal-v0 --gym-packages goal_env -n 300 --eval-freq 150 {policy}")
    assert "Mean reward" in sb3_pg(tmp_path, "enjoy --algo vpg --env Goal-v0 --gym-packages goal_env --no-render -n 50")


def test_the_zoos_own_algorithms(tmp_path: Path) -> None:
    sb3_pg(tmp_path, "train --algo a2c --env CartPole-v1 -n 200 --eval-freq -1")
    assert "Mean reward" in sb3_pg(tmp_path, "enjoy --algo a2c --env CartPole-v1 -f logs --no-render -n 600")


def test_plain_rl_zoo3_with_custom_envs(tmp_path: Path) -> None:
    (tmp_path / "custom_envs.py").write_text("import sb3_pg.zoo\n\nsb3_pg.zoo.register()\n")
    out = sb3_pg(tmp_path, "--algo vpg --env CartPole-v1 -n 200 --eval-freq -1", program=("-m", "rl_zoo3.train"))
    assert "Saving to logs/vpg/CartPole-v1_1" in out


@pytest.mark.parametrize(
    "command, code, message",
    [
        ("trian", 2, "invalid choice: 'trian'"),
        ("", 2, "COMMAND"),
        ("enjoy --exp-id one", 2, "argument --exp-id: invalid int value: 'one'"),
        ("plot_train -a vpg -e CartPole-v1 -f logs -w few", 2, "invalid int value: 'few'"),
        ("plot_train -a vpg -e CartPole-v1 -f logs", 1, "There is no episode of CartPole-v1 by vpg in logs"),
        ("train --algo nonsense", 1, "There is no algorithm 'nonsense': there are"),
        ("train --algo vgp", 1, "There is no algorithm 'vgp': did you mean vpg?"),
        ("plot_from_file -i nothere.pkl", 1, "There is no file nothere.pkl"),
        ("train --algo vpg --env CartPol-v1", 1, "maybe meant CartPole-v1"),
        ("train --algo vpg -params n_step:1", 1, "VanillaPG does not take 'n_step': did you mean 'n_steps'?"),
        ("train --algo vpg --eval-frequency 100", 2, "--eval-frequency 100 (did you mean --eval-freq?)"),
        ("benchmark run --envs CartPole-v1 --sedes 1", 2, "--sedes 1 (did you mean --seeds?)"),
        ("train --algo vpg -params weights:return", 1, "with text in quotes"),
        ("train --algo vpg -params gamma:2.0", 1, "gamma must be a finite number in [0, 1], not 2.0"),
        ("train --algo vpg --vec-env enpool", 1, "--vec-env must be one of dummy, subproc, gymnasium, envpool, not 'enpool'"),
        ("train --algo vpg -conf broken.yml", 1, "broken.yml"),
        ("train --algo vpg -conf text.yml", 1, "write 1.0e-3"),
        ("train --algo vpg -conf nosuch.yml", 1, "there is no file nosuch.yml"),
        ("train --algo vpg -conf incomplete.yml", 1, "'n_timesteps' is missing"),
        ("train --algo vpg -conf no_policy.yml", 1, "'policy' is missing"),
        ("train --algo vpg -params n_envs:0", 1, "n_envs must be at least 1"),
        ("train --algo vpg --trial-id 1", 1, "--trial-id needs --storage and --study-name"),
        ("train --algo vpg --storage a --study-name b --trial-id 0", 1, "rl-zoo3 ignores --trial-id 0"),
        ("enjoy --algo vpg --env Acrobot-v1", 1, "Train an agent first"),
        ("benchmark speed --envs Nope-v0:1", 1, "Nope"),
    ],
)
def test_a_users_error_is_one_line(command: str, code: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "broken.yml").write_text("CartPole-v1:\n  n_envs: [1\n")
    (tmp_path / "text.yml").write_text("CartPole-v1:\n  n_timesteps: 100\n  learning_rate: 1e-3\n")
    (tmp_path / "incomplete.yml").write_text("CartPole-v1:\n  policy: MlpPolicy\n")
    (tmp_path / "no_policy.yml").write_text("CartPole-v1:\n  n_timesteps: 100\n")
    returned, _, err = finish(tmp_path, *command.split())
    last_line = err.strip().splitlines()[-1]
    assert returned == code and message in last_line and "Traceback" not in err


def test_an_error_of_the_environment_is_not_blamed_on_hyperparameters(tmp_path: Path) -> None:
    (tmp_path / "broken_env.py").write_text(
        "import gymnasium as gym\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Broken(CartPoleEnv):\n"
        "    def step(self, action):\n"
        "        return {}['velocity']\n"
        "gym.register('Broken-v0', Broken)\n"
    )
    (tmp_path / "broken.yml").write_text("Broken-v0:\n  n_timesteps: 100\n  policy: MlpPolicy\n")
    command = "train --env Broken-v0 --gym-packages broken_env --conf-file broken.yml"
    code, _, err = finish(tmp_path, *command.split())
    assert code == 1 and err.strip().splitlines()[-1] == "sb3-pg train: error: KeyError: 'velocity'"


def test_a_traceback_on_demand(tmp_path: Path) -> None:
    code, _, err = finish(tmp_path, "--traceback", "train", "--env", "CartPol-v1")
    assert code == 1 and "Traceback" in err and "maybe meant CartPole-v1" in err


def test_without_the_extra(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['rl_zoo3'] = None; sys.argv[0] = 'sb3-pg'; from sb3_pg.cli import main; main()"
    code, _, err = finish(tmp_path, "train", program=("-c", hide))
    assert code == 1 and err == "sb3-pg train: error: rl-zoo3 is missing: pip install '.[zoo]' in a checkout of sb3_pg\n"


@pytest.mark.parametrize("command", ["train", "enjoy", "all_plots", "estimators", "benchmark"])
def test_help_has_examples(command: str, tmp_path: Path) -> None:
    _, out, _ = finish(tmp_path, command, "--help")
    assert f"examples:\n  sb3-pg {command}" in out and "guide: docs/guides/" in out
    assert ("--resume FOLDER" in out) == (command == "train") and ("--trust" in out) == (command != "benchmark")


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    for command in ("train", "enjoy", "record_video", "plot_train", "plot_from_file", "all_plots", "benchmark"):
        assert command in out
