"""The report: statistics by hand, tables of partial results."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sb3_pg.benchmark.scores import improvement, interval, load_runs, scores_after, steps_to_threshold, summarise_runs
from sb3_pg.cli.benchmark import main


def make_run(folder: Path, algo: str, env: str, seed: int, scores: list[float], imported: bool = False) -> None:
    run = folder / algo / f"{env}_{seed}"
    run.mkdir(parents=True)
    steps = 100 * np.arange(1, len(scores) + 1)
    np.savez(run / "evaluations.npz", timesteps=steps, results=np.array(scores)[:, None] + np.array([[-1.0, 1.0]]))
    info = dict(algo=algo, env=env, seed=seed, n_timesteps=int(steps[-1]), date="2026-01-01", versions={"torch": "2"})
    (run / "run.json").write_text(json.dumps(info | {"imported": imported}))


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
    np.testing.assert_array_equal(scores_after(evaluations, 450.0, 0.0), [30.0, 10.0])  # of 20, 30 and 40
    np.testing.assert_array_equal(scores_after(evaluations, 99.0, -1.0), [-1.0, -1.0])


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


def test_equal_training_time_by_hand(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for seed in (1, 2, 3):
        make_run(folder, "vpg", "CartPole-v1", seed, [40.0, 50.0, 60.0, 70.0])
        make_run(folder, "npg", "CartPole-v1", seed, [200.0, 200.0, 200.0, 200.0])
        make_run(folder, "a2c", "CartPole-v1", seed, [90.0, 60.0, 60.0, 60.0])
    throughput = tmp_path / "throughput.csv"
    rates = "".join(f"CartPole-v1,{algo},0,{rate}\n" for algo, rate in dict(vpg=40, npg=15, a2c=20).items())
    throughput.write_text("env,algorithm,repetition,steps_per_second\n" + rates)
    main(["report", "--folder", str(folder), "--output", str(tmp_path), "--throughput", str(throughput)])
    text = (tmp_path / "REPORT.md").read_text()
    # A2C takes 20 seconds for its 400 steps. After 5 of them VanillaPG has made 200 and NaturalPG 75, after 10 NaturalPG 150
    row = "|CartPole-v1, A2C|20.0|45.0 (VanillaPG) : 90.0|200.0 (NaturalPG) : 75.0|200.0 (NaturalPG) : 60.0|"
    assert row in text and "Ours is higher in 2 and level in 0 of 3" in text
    assert "|CartPole-v1|10.0 (40)|26.7 (15)|20.0 (20)|" in text


def test_an_evaluation_at_the_end_of_the_time_counts() -> None:
    runs = pd.DataFrame({"seed": [1, 1], "steps": [500_000, 1_000_000], "score": [10.0, 20.0]})
    rate = next(rate for rate in range(1, 1000) if 1_000_000 / rate * rate < 1_000_000)
    assert scores_after(runs, 1_000_000 / rate * rate, before=0.0) == [15.0]
    assert scores_after(runs, 999_999, before=0.0) == [10.0]


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
