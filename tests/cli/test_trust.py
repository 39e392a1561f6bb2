"""Commands on files of strangers: nothing of them runs unless the user says --trust."""

import base64
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from helpers import finish
from hostile import MARKER, payloads, rewrite

# Runs commands one after the other in one process, which takes as long as one of them
SEVERAL = """
import io, json, os, sys
from contextlib import redirect_stderr, redirect_stdout
from sb3_pg.cli import main
outcomes = []
for folder, command in json.loads(sys.argv[1]):
    os.chdir(folder)
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


def run_in(*commands: tuple[Path, str]) -> list[tuple[str, str]]:
    """Exit status, or message, and output of each command, with the folder it is given in."""
    pairs = json.dumps([(str(folder), command) for folder, command in commands])
    code, out, err = finish(commands[0][0], pairs, program=("-c", SEVERAL))
    assert code == 0, err
    return [(status, printed) for status, printed in json.loads(out.splitlines()[-1])]


def run(folder: Path, *commands: str) -> list[tuple[str, str]]:
    return run_in(*((folder, command) for command in commands))


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
    *outcomes, (plots, _) = run(trained, *commands, "plot_from_file -i all.pkl -o bars.png --format png")
    for command, (status, out) in zip(commands, outcomes, strict=True):
        assert status == "0", (command, status, out)
    assert list((trained / "videos").glob("*.mp4"))
    assert "fewer than two complete runs" in plots  # it was read


def test_results_of_strangers(tmp_path: Path) -> None:
    (tmp_path / "all.pkl").write_bytes(payloads(tmp_path)["os.system"])
    ((status, _),) = run(tmp_path, "plot_from_file -i all.pkl -o bars.png --format png")
    assert "asks for posix.system" in status and not (tmp_path / MARKER).exists()


def evil_model(run: Path, folder: Path) -> None:
    path = run / "Pendulum-v1.zip"
    item = {":serialized:": base64.b64encode(payloads(folder)["os.system"]).decode()}
    with zipfile.ZipFile(path) as archive:
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
    "args": (evil_args, "asks for Python's 'object/apply:os.system'"),
    "config": (evil_config, "asks for Python's 'object/apply:os.system'"),
    "normalize": (evil_normalize, "which is more than names and values"),
}


@pytest.mark.parametrize("algo", ["vpg", "a2c"])
def test_runs_of_strangers(algo: str, trained: Path, tmp_path: Path) -> None:
    for evil, (write, _) in EVILS.items():
        folder = tmp_path / evil
        shutil.copytree(trained / "logs", folder / "logs")
        write(folder / f"logs/{algo}/Pendulum-v1_1", folder)
    # Of training, rl-zoo3 reads the model, its statistics and its options only
    cases = [
        (command, evil)
        for command in COMMANDS
        for evil in EVILS
        if command != "train" or evil in ("model", "statistics", "args")
    ]
    outcomes = run_in(*((tmp_path / evil, COMMANDS[command].format(algo=algo)) for command, evil in cases))
    for case, (status, out) in zip(cases, outcomes, strict=True):
        assert EVILS[case[1]][1] in status and "--trust runs whatever it holds" in status, (case, status, out)
        assert not (tmp_path / case[1] / MARKER).exists(), case
