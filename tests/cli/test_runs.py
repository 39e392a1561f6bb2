"""Agents whose environment is registered by a package and made with arguments: what the run's folder knows of them."""

from pathlib import Path

import pytest
import yaml
from helpers import finish, sb3_pg

from sb3_pg.cli.runs import read_args


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
    code, _, err = finish(tmp_path, "train --env Toy-v0 --gym-packages toy_env --vec-env envpool -n 100 --env-kwargs length:7")
    assert code == 1 and err.splitlines()[-1].startswith("sb3-pg train: error:") and "EnvPool" in err.splitlines()[-1]
