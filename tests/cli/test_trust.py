"""Commands on files of strangers: nothing of them runs unless the user says --trust."""

import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import finish, sb3_pg
from hostile import MARKER, Call, payloads, rewrite, watched
from rl_zoo3 import utils
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pg.cli.errors import explain
from sb3_pg.cli.runs import check_packages
from sb3_pg.cli.trust import check_settings, distrusting, take_trust
from sb3_pg.loading import NotTrustedError

# Runs commands one after the other in one process, which takes as long as one of them
SEVERAL = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from sb3_pg.cli import main
outcomes = []
for command in json.loads(sys.argv[1]):
    out = io.StringIO()
    code = 0
    with redirect_stdout(out), redirect_stderr(out):
        try:
            main(command.split())
        except SystemExit as stop:
            code = stop.code
    outcomes.append([str(code), out.getvalue()])
print(json.dumps(outcomes))
"""


def run(folder: Path, *commands: str) -> list[tuple[str, str]]:
    """Exit status, or message, and output of each command."""
    code, out, err = finish(folder, json.dumps(commands), program=("-c", SEVERAL))
    assert code == 0, err
    return [(status, printed) for status, printed in json.loads(out.splitlines()[-1])]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    (outcome, *others) = run(
        folder,
        "train --env Pendulum-v1 -n 100 --eval-freq 50 -params n_envs:2",
        "train --algo a2c --env Pendulum-v1 -n 100 --eval-freq 50 -params n_envs:2",
        "all_plots -a vpg a2c -e Pendulum -f logs --no-million -o all",
    )
    assert [outcome[0], *(status for status, _ in others)] == ["0"] * 3, (outcome, others)
    return folder


COMMANDS = {
    "enjoy": "enjoy --algo {algo} --env Pendulum-v1 --no-render -n 10",
    "record_video": "record_video --algo {algo} --env Pendulum-v1 -f logs -n 10 -o videos",
    "estimators": "estimators --algo {algo} --env Pendulum-v1 --episodes 4 --n-envs 2",
    "train": "train --algo {algo} --env Pendulum-v1 -n 20 -i logs/{algo}/Pendulum-v1_1/Pendulum-v1.zip --eval-freq -1 -f more",
}


def test_own_runs_need_no_flag(trained: Path) -> None:
    commands = [command.format(algo=algo) for command in COMMANDS.values() for algo in ("vpg", "a2c")]
    for command, (status, out) in zip(
        [*commands, "plots"], run(trained, *commands, "plot_from_file -i all.pkl -o bars.png --format png"), strict=True
    ):
        assert status == "0", (command, status, out)
    assert (trained / "bars.png").is_file() and list((trained / "videos").glob("*.mp4"))


def evil_model(run: Path, folder: Path) -> None:
    path = run / "Pendulum-v1.zip"
    item = {":serialized:": __import__("base64").b64encode(payloads(folder)["os.system"]).decode()}
    with __import__("zipfile").ZipFile(path) as archive:
        data = {**json.loads(archive.read("data")), "unknown": item}
    path.write_bytes(rewrite(path.read_bytes(), {"data": json.dumps(data).encode()}))


def evil_statistics(run: Path, folder: Path) -> None:
    (run / "Pendulum-v1/vecnormalize.pkl").write_bytes(payloads(folder)["subprocess"])


def evil_args(run: Path, folder: Path) -> None:
    path = run / "Pendulum-v1/args.yml"
    path.write_text(path.read_text().replace(
        "env_kwargs\n    - null", f"env_kwargs\n    - a: !!python/object/apply:os.system ['touch {folder / MARKER}']", 1
    ))  # fmt: skip


def evil_config(run: Path, folder: Path) -> None:
    path = run / "Pendulum-v1/config.yml"
    path.write_text(path.read_text() + f"- - - x\n    - !!python/object/apply:os.system ['touch {folder / MARKER}']\n")
    path.write_text(f"normalize: false\nx: !!python/object/apply:os.system ['touch {folder / MARKER}']\n")


def evil_normalize(run: Path, folder: Path) -> None:
    code = f"dict(norm_obs=open({str(folder / MARKER)!r}, 'w') and True)"
    (run / "Pendulum-v1/config.yml").write_text(json.dumps({"normalize": code}))


EVILS = {
    "model": (evil_model, "unknown asks for posix.system"),
    "statistics": (evil_statistics, "asks for subprocess.call"),
    "args": (evil_args, "asks for Python's 'tag:yaml.org,2002:python/object/apply:os.system'"),
    "config": (evil_config, "asks for Python's 'tag:yaml.org,2002:python/object/apply:os.system'"),
    "normalize": (evil_normalize, "which is more than names and values"),
}


@pytest.mark.parametrize("algo", ["vpg", "a2c"])
def test_runs_of_strangers(algo: str, trained: Path, tmp_path: Path) -> None:
    for evil, (write, message) in EVILS.items():
        folder = tmp_path / evil
        shutil.copytree(trained / "logs", folder / "logs")
        write(folder / f"logs/{algo}/Pendulum-v1_1", folder)
    # Of training, rl-zoo3 reads the model and its statistics only
    for command, template in COMMANDS.items():
        for evil, (_, message) in EVILS.items():
            if command == "train" and evil not in ("model", "statistics", "args"):
                continue
            folder = tmp_path / evil
            (status, out), = run(folder, template.format(algo=algo))[:1]
            assert message in status and "--trust runs whatever it holds" in status, (command, evil, status, out)
            assert not (folder / MARKER).exists(), (command, evil)
