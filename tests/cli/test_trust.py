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


COMMANDS = {
    "enjoy": "enjoy --algo {algo} --env Pendulum-v1 --no-render -n 10",
    "record_video": "record_video --algo {algo} --env Pendulum-v1 -f logs -n 10 -o videos",
    "estimators": "estimators --algo {algo} --env Pendulum-v1 --episodes 4 --n-envs 2",
    "train": "train --algo {algo} --env Pendulum-v1 -n 20 -i logs/{algo}/Pendulum-v1_1/Pendulum-v1.zip --eval-freq -1 -f more",
}


TRAINING = [
    "train --env Pendulum-v1 -n 100 --eval-freq 50 -params n_envs:2",
    "train --algo a2c --env Pendulum-v1 -n 100 --eval-freq 50 -params n_envs:2",
    "all_plots -a vpg a2c -e Pendulum -f logs --no-million -o all",
]
OWN = [command.format(algo="vpg") for command in COMMANDS.values()] + [COMMANDS["enjoy"].format(algo="a2c")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str]]]:
    """A folder with runs, and what came of commands on them."""
    folder = tmp_path_factory.mktemp("trust")
    outcomes = run(folder, *TRAINING, *OWN, "plot_from_file -i all.pkl -o bars.png --format png")
    assert [status for status, _ in outcomes[:3]] == ["0"] * 3, outcomes[:3]
    return folder, outcomes[3:]


def test_own_runs_need_no_flag(trained: tuple[Path, list[tuple[str, str]]]) -> None:
    folder, (*outcomes, (plots, _)) = trained
    for command, (status, out) in zip(OWN, outcomes, strict=True):
        assert status == "0", (command, status, out)
    assert list((folder / "videos").glob("*.mp4"))
    assert "fewer than two complete runs" in plots  # it was read


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


@pytest.mark.parametrize("command", COMMANDS)
def test_the_first_command_of_a_process_trusts_no_more_than_later_ones(
    command: str, trained: tuple[Path, list[tuple[str, str]]], tmp_path: Path
) -> None:
    shutil.copytree(trained[0] / "logs", tmp_path / "logs")
    evil_model(tmp_path / "logs/vpg/Pendulum-v1_1", tmp_path)
    [(status, out)] = run(tmp_path, COMMANDS[command].format(algo="vpg"))
    assert EVILS["model"][1] in status and list(tmp_path.rglob(MARKER)) == [], (status, out)


def test_runs_of_strangers(trained: tuple[Path, list[tuple[str, str]]], tmp_path: Path) -> None:
    for evil, (write, _) in EVILS.items():
        shutil.copytree(trained[0] / "logs", tmp_path / evil / "logs")
        for algo in ("vpg", "a2c"):
            write(tmp_path / evil / f"logs/{algo}/Pendulum-v1_1", tmp_path / evil)
    # Of training, rl-zoo3 reads the model, its statistics and its options only
    cases = [
        (command.format(algo=algo), evil)
        for name, command in COMMANDS.items()
        for algo in (("vpg", "a2c") if name == "enjoy" else ("vpg",))
        for evil in EVILS
        if name != "train" or evil in ("model", "statistics", "args")
    ]
    (tmp_path / "all.pkl").write_bytes(payloads(tmp_path)["os.system"])
    plot = (tmp_path, "plot_from_file -i all.pkl -o bars.png --format png")
    *outcomes, (of_plot, _) = run_in(*((tmp_path / evil, command) for command, evil in cases), plot)
    for case, (status, out) in zip(cases, outcomes, strict=True):
        assert EVILS[case[1]][1] in status and "--trust runs whatever it holds" in status, (case, status, out)
    assert "asks for posix.system" in of_plot and list(tmp_path.rglob(MARKER)) == []
