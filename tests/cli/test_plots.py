"""Plots of nothing are refused in one sentence."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt

from sb3_pg.cli import main
from sb3_pg.cli.plots import check_plot


def make_run(folder: Path, name: str, n_episodes: int, n_evaluations: int) -> None:
    run = folder / name
    run.mkdir(parents=True)
    rows = "".join(f"1.0,10,{i}.0\n" for i in range(n_episodes))
    (run / "0.monitor.csv").write_text('#{"t_start": 0.0, "env_id": "x"}\nr,l,t\n' + rows)
    if n_evaluations:
        np.savez(run / "evaluations.npz", timesteps=np.arange(n_evaluations), results=np.ones((n_evaluations, 5)))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    plt.switch_backend("Agg")
    make_run(tmp_path / "logs/vpg", "CartPole-v1_1", 20, 2)
    make_run(tmp_path / "logs/vpg", "CartPole-v1_2", 30, 0)
    make_run(tmp_path / "logs/vpg", "Pendulum-v1_1", 0, 0)
    make_run(tmp_path / "logs/a2c", "Acrobot-v1_1", 5, 1)
    (tmp_path / "all.pkl").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "command, message",
    [
        ("plot_train -a vpg -e Acrobot-v1 -f logs", "There is no episode of Acrobot-v1 by vpg in logs: train an agent first"),
        ("plot_train -a vpg -e Pendulum-v1 -f logs", "There is no episode of Pendulum-v1 by vpg"),
        ("plot_train -a vpg -e CartPole-v1 Acrobot-v1 -f logs -w 5", "There is no episode of Acrobot-v1"),
        ("plot_train -a npg -e CartPole-v1 -f logs", "There is no episode of CartPole-v1 by npg"),
        ("plot_train -a vpg -e CartPole-v1 -f elsewhere", "in elsewhere"),
        ("plot_train -a vpg -e CartPole-v1 -f logs", "has the 100 episodes of a point of the curve: -w 30 would draw one"),
        ("all_plots -a VPG -e Pendulum-v1 -f logs", "There is no evaluation of Pendulum-v1 by vpg in logs"),
        ("all_plots -a vpg a2c -e CartPole-v1 Hopper-v5 -f logs", "There is no evaluation of Hopper-v5 by vpg, a2c in logs"),
        ("all_plots -a a2c -e Acrobot-v1 -f logs", "was evaluated once"),
    ],
)
def test_nothing_to_draw(command: str, message: str, runs: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert message in str(stop.value.code) and str(stop.value.code).startswith(f"sb3-pg {command.split()[0]}: error: ")
    assert not list(runs.glob("*.png"))


@pytest.mark.parametrize(
    "command",
    [
        "plot_train -a vpg -e CartPole-v1 -f logs -w 30",
        "plot_train -a vpg -e CartPole -f logs -w 30 --fontsize 8",  # parts of names, as the command takes them
        "all_plots --algos vpg a2c -e CartPole-v1 --exp-folders logs elsewhere",
        "plot_train -a vpg",  # left to the command
        "plot_from_file -i all",
    ],
)
def test_something_to_draw(command: str, runs: Path) -> None:
    name, *arguments = command.split()
    check_plot(name, arguments)


@pytest.mark.parametrize(
    "command, message",
    [
        ("plot_train -a vpg -e CartPole-v1 -f logs -w 25", "CartPole-v1_1: not drawn, having fewer than 25 episodes (-w).\n"),
        ("all_plots -a vpg a2c -e CartPole-v1 -f logs", "CartPole-v1 in logs/a2c: no results (0.0 in the table)"),
        ("all_plots -a vpg -e CartPole-v1 -f logs", ""),
    ],
)
def test_what_is_missing_is_said(command: str, message: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, *arguments = command.split()
    check_plot(name, arguments)
    err = capsys.readouterr().err
    assert err.startswith(message) and bool(err) == bool(message)


@pytest.mark.parametrize("limit", ["", "-max 100"])
def test_the_axis_of_plot_train_counts_abandoned_steps(limit: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs / "logs/reinforce/CartPole-v1_1"
    run.mkdir(parents=True)
    rows = [(1.0, 10, 1.0, 0), (2.0, 20, 2.0, 30), (3.0, 30, 3.0, 5), (4.0, 40, 4.0, 0)]
    lines = ['#{"t_start": 0.0, "env_id": "x"}', "r,l,t,abandoned", *(",".join(map(str, row)) for row in rows)]
    (run / "0.monitor.csv").write_text("\n".join(lines) + "\n")
    plt.close("all")
    main(f"plot_train -a reinforce -e CartPole-v1 -f logs -w 2 {limit}".split())
    (line,) = plt.gcf().axes[0].lines
    expected = [[60, 1.5], [95, 2.5], [135, 3.5]]
    assert np.column_stack([line.get_xdata(), line.get_ydata()]).tolist() == (expected[:2] if limit else expected)
    plt.close("all")
    # Files of other algorithms have no such column
    main(["plot_train", "-a", "vpg", "-e", "CartPole-v1_2", "-f", "logs", "-w", "20"])
    assert plt.gcf().axes[0].lines[0].get_xdata().tolist() == [*range(200, 301, 10)]
    plt.close("all")
