"""Tables and figures of the finished runs: interquartile means with bootstrap intervals (Agarwal et al. 2021)."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
import pandas as pd
from rich.progress import track
from rliable import metrics

from sb3_pg.benchmark import BUDGETS, LABELS
from sb3_pg.benchmark.figures import draw_curves, draw_profiles, save_figure
from sb3_pg.benchmark.scores import (
    N_FINAL,
    improvement,
    interval,
    load_runs,
    score_matrix,
    scores_after,
    steps_to_threshold,
    summarise_runs,
)
from sb3_pg.zoo import ALGORITHMS

PEERS = ("a2c", "ppo", "trpo")
#: Share of the way from a random policy (0) to the best algorithm (1) that counts as learnt
THRESHOLD = 0.8
#: Of a peer's training time, at which ours are compared with it
SHARES = (0.25, 0.5, 1.0)
_RANDOM_EPISODES = 50


def random_return(env_id: str) -> float:
    """Mean return of the uniformly random policy over episodes from seed 0."""
    env = gym.make(env_id)
    env.action_space.seed(0)
    total = 0.0
    for episode in range(_RANDOM_EPISODES):
        env.reset(seed=episode)
        ended = False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, ended = total + float(reward), terminated or truncated
    env.close()
    return total / _RANDOM_EPISODES


def write_report(folder: Path, throughput_file: Path, output: Path) -> None:
    """Write REPORT.md, CSV files and figures.

    :param folder: folder of finished runs
    :param throughput_file: CSV of ``sb3-pg benchmark throughput``; the report has no seconds without it
    :param output: folder to write to
    """
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "sb3_pg"  # the same figure is the same file
    np.random.seed(0)  # rliable's bootstrap draws from the global generator
    evaluations = load_runs(folder)
    runs = summarise_runs(evaluations)
    algos = [algo for algo in LABELS if algo in set(runs.algo)] + sorted(set(runs.algo) - LABELS.keys())
    envs = list(dict.fromkeys(runs.env))
    iqm = {
        (algo, env): interval(score_matrix(runs, algo, [env]))
        for algo, env in track(list(dict.fromkeys(zip(runs.algo, runs.env, strict=True))), description="interquartile means")
    }
    best = {env: max(iqm[algo, env][0] for algo in algos if (algo, env) in iqm) for env in envs}
    lowest = {env: random_return(env) for env in envs}
    # NaN, which no score reaches, where nothing was learnt
    thresholds = {
        env: lowest[env] + THRESHOLD * (best[env] - lowest[env]) if best[env] > lowest[env] else np.nan for env in envs
    }
    rates = _load_rates(throughput_file)

    output.mkdir(parents=True, exist_ok=True)
    runs.to_csv(output / "final.csv", index=False, float_format="%.2f")
    save_figure(draw_curves(evaluations, algos, envs, lowest, None), output / "curves_steps")
    sections = [
        _introduction(runs, evaluations, folder, throughput_file, output),
        "## Final return\n\n"
        f"Interquartile mean over runs of the mean of the last {N_FINAL} evaluations [95% stratified bootstrap interval], "
        "(runs).\n\n" + _markdown(_final_table(runs, iqm, algos, envs)),
        "![Learning curves over steps](curves_steps.png)\n\nMean over runs, with its 95% bootstrap interval; dotted: the "
        "random policy.",
        "## Area under the learning curve\n\nMean return over the budget, interquartile mean over runs. It rewards learning "
        "early.\n\n"
        + _markdown(
            _table(
                algos,
                envs,
                lambda a, e: _number(metrics.aggregate_iqm(score_matrix(runs, a, [e], "area"))) if (a, e) in iqm else "–",
            )
        ),
        "## Probability of improvement\n\nThat a run of the row's algorithm ends higher than one of the column's, ties "
        "counting half [95% interval]. `all`: mean over the environments that both have.\n\n"
        + _markdown(_improvement_table(runs, algos, envs)),
        f"## Steps to {THRESHOLD:.0%} of the way from the random policy to the best algorithm\n\nMedian over runs of the "
        "first evaluation that gets there, (runs that do); thresholds: "
        + ", ".join(f"{env} {_number(value)}" for env, value in thresholds.items())
        + ".\n\n"
        + _markdown(_table(algos, envs, lambda a, e: _to_threshold(evaluations, a, e, thresholds[e]))),
    ]
    profiles = draw_profiles(runs, algos, envs, lowest, best)
    if profiles is not None:
        save_figure(profiles, output / "profiles")
        sections.append(
            "## Performance profiles\n\nShare of runs above a normalised final return (0: random policy, 1: best "
            "interquartile mean), over the environments where something was learnt and that all the algorithms shown have "
            "(and as many runs of an algorithm as it has in each of them), with 95% intervals.\n\n"
            "![Performance profiles](profiles.png)"
        )
    if rates is not None:
        save_figure(draw_curves(evaluations, algos, envs, lowest, rates), output / "curves_seconds")
        sections.append(
            "## Wall-clock time\n\nTraining steps a second of every algorithm with its hyperparameter file, measured in one "
            f"process, interleaved (`{throughput_file}`, medians), turn steps into seconds: the "
            "noise of the machines that made the runs does not enter. Seconds to the thresholds above:\n\n"
            + _markdown(_table(algos, envs, lambda a, e: _to_threshold(evaluations, a, e, thresholds[e], rates.get((a, e)))))
            + "\n\nWhat a run costs, in seconds of one core (steps a second):\n\n"
            + _markdown(_table(algos, envs, lambda a, e: _cost(evaluations, a, e, rates)))
            + "\n\n![Learning curves over seconds](curves_seconds.png)"
        )
        sections.append(_at_equal_time(evaluations, algos, envs, lowest, rates))
    (output / "REPORT.md").write_text("\n\n".join(sections) + "\n")
    print(f"Report of {len(runs)} runs written to {output / 'REPORT.md'}")


def _introduction(runs: pd.DataFrame, evaluations: pd.DataFrame, folder: Path, throughput_file: Path, output: Path) -> str:
    infos = [json.loads(path.read_text()) for path in sorted(folder.glob("*/*/run.json"))]
    own = [info for info in infos if not info.get("imported")]
    imported = sorted({LABELS.get(info["algo"], info["algo"]) for info in infos if info.get("imported")})
    versions = sorted({f"{name} {value}" for info in own for name, value in info["versions"].items()})
    dates = sorted({info["date"] for info in own})
    seeds = sorted(set(runs.seed))
    budgets = evaluations.groupby("env").n_timesteps.first()
    with_budgets = [env if BUDGETS.get(env, (0, 0))[0] == steps else f"{env}:{steps}" for env, steps in budgets.items()]
    algos = list(dict.fromkeys(runs.algo))
    names = [LABELS.get(algo, algo) for algo in LABELS if algo in algos] + [algo for algo in algos if algo not in LABELS]
    lines = [
        f"# {', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else f"# {names[0]}",
        f"{len(runs)} training runs through rl-zoo3, every algorithm with its hyperparameter file (ours: `hyperparams/`, "
        "which says how they were tuned; A2C, PPO, TRPO and others: rl-zoo3's, whose MuJoCo entries for v4 are used for v5), "
        "all with one budget an environment: "
        + ", ".join(f"{env} {steps:,}" for env, steps in budgets.items())
        + f" steps. Seeds {', '.join(map(str, seeds))}; the number of runs is given with each figure. An evaluation is the "
        "mean of 10 episodes with deterministic actions on a separate environment.",
        f"Report of {datetime.date.today().isoformat()}; made by\n\n```bash\nsb3-pg benchmark run --algos {' '.join(algos)} "
        f"--envs {' '.join(with_budgets)} --seeds {' '.join(map(str, seeds))} --folder {folder}\n"
        f"sb3-pg benchmark throughput --algos {' '.join(algos)} --envs {' '.join(budgets.index)} --output {throughput_file}\n"
        f"sb3-pg benchmark report --folder {folder} --throughput {throughput_file} --output {output}\n```",
    ]
    if own:
        lines.append(
            f"Runs of {dates[0]}{'' if len(dates) == 1 else ' to ' + dates[-1]} on the CPU with {', '.join(versions)}."
        )
    if imported:
        n = sum(bool(info.get("imported")) for info in infos)
        versions = sorted({f"{k} {v}" for i in infos if i.get("imported") for k, v in i["versions"].items()})
        lines.append(
            f"{n} runs of {', '.join(imported)} were not made by this command but imported: same seeds, budgets, evaluation "
            f"and hyperparameters, {', '.join(versions)}."
        )
    return "\n\n".join(lines)


def _number(value: float) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"


def _markdown(table: pd.DataFrame) -> str:
    header = "| |" + "|".join(map(str, table.columns)) + "|"
    rule = "|---|" + "---|" * len(table.columns)
    return "\n".join(
        [header, rule, *(f"|{index}|" + "|".join(row) + "|" for index, row in zip(table.index, table.to_numpy(), strict=True))]
    )


def _table(algos: list[str], envs: list[str], cell: Callable[[str, str], str]) -> pd.DataFrame:
    rows = [[cell(algo, env) for algo in algos] for env in envs]
    return pd.DataFrame(rows, index=envs, columns=[LABELS.get(algo, algo) for algo in algos])


def _final_table(
    runs: pd.DataFrame, iqm: dict[tuple[str, str], tuple[float, float, float]], algos: list[str], envs: list[str]
) -> pd.DataFrame:
    def cell(algo: str, env: str) -> str:
        if (algo, env) not in iqm:
            return "–"
        estimate, low, high = map(_number, iqm[algo, env])
        return f"{estimate} [{low}, {high}] ({((runs.algo == algo) & (runs.env == env)).sum()})"

    return _table(algos, envs, cell)


def _improvement_table(runs: pd.DataFrame, algos: list[str], envs: list[str]) -> pd.DataFrame:
    has = set(zip(runs.algo, runs.env, strict=True))
    peers = [algo for algo in algos if algo in PEERS]
    pairs = [(ours, peer) for ours in algos if ours in ALGORITHMS for peer in peers]
    rows: dict[str, list[str]] = {}
    for ours, peer in track(pairs, description="probabilities of improvement"):
        cells, estimates = [], []
        for env in envs:
            if not {(ours, env), (peer, env)} <= has:
                cells.append("–")
                continue
            p, low, high = improvement(score_matrix(runs, ours, [env]), score_matrix(runs, peer, [env]))
            cells.append(f"{p:.2f} [{low:.2f}, {high:.2f}]")
            estimates.append(p)
        # Every environment with all of its runs: a matrix over environments would have as few as the poorest of them
        cells.insert(0, f"{np.mean(estimates):.2f}" if estimates else "–")
        rows[f"{LABELS[ours]} over {LABELS[peer]}"] = cells
    return pd.DataFrame.from_dict(rows, orient="index", columns=["all", *envs])


def _to_threshold(evaluations: pd.DataFrame, algo: str, env: str, threshold: float, rate: float | None = 1.0) -> str:
    chosen = evaluations[(evaluations.algo == algo) & (evaluations.env == env)]
    if chosen.empty or rate is None:
        return "–"
    steps = steps_to_threshold(chosen, threshold)
    median = float(np.median(steps))
    text = _number(median / rate) if np.isfinite(median) else "not"
    return f"{text} ({np.isfinite(steps).sum()}/{len(steps)})"


def _cost(evaluations: pd.DataFrame, algo: str, env: str, rates: dict[tuple[str, str], float]) -> str:
    if (algo, env) not in rates:
        return "–"
    budget = evaluations[evaluations.env == env].n_timesteps.iloc[0]
    return f"{_number(budget / rates[algo, env])} ({rates[algo, env]:,.0f})"


def _at_equal_time(
    evaluations: pd.DataFrame, algos: list[str], envs: list[str], lowest: dict[str, float], rates: dict[tuple[str, str], float]
) -> str:
    """Section: the best of ours against each peer after shares of the peer's training time."""

    def score(algo: str, env: str, seconds: float) -> float:
        runs = evaluations[(evaluations.algo == algo) & (evaluations.env == env)]
        return float(metrics.aggregate_iqm(scores_after(runs, seconds * rates[algo, env], lowest[env])[:, None]))

    has = set(zip(evaluations.algo, evaluations.env, strict=True)) & rates.keys()
    rows: dict[str, list[str]] = {}
    n_ahead = n_level = 0
    for env in envs:
        budget = evaluations[evaluations.env == env].n_timesteps.iloc[0]
        ours = [algo for algo in algos if algo in ALGORITHMS and (algo, env) in has]
        for peer in (algo for algo in algos if algo in PEERS and (algo, env) in has and ours):
            seconds = budget / rates[peer, env]
            cells = rows[f"{env}, {LABELS[peer]}"] = [_number(seconds)]
            for at in (share * seconds for share in SHARES):
                highest, best = max((score(algo, env, at), algo) for algo in ours)
                theirs = score(peer, env, at)
                n_ahead, n_level = n_ahead + (highest > theirs), n_level + (highest == theirs)
                cells.append(f"{_number(highest)} ({LABELS[best]}) : {_number(theirs)}")
    if not rows:
        return "## At equal training time\n\nNo algorithm of ours has a speed beside a peer's."
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["seconds of the peer", *(f"{x:.0%}" for x in SHARES)])
    return (
        "## At equal training time\n\nInterquartile mean over runs after shares of the time that the peer takes for its "
        f"budget, the best of ours : the peer. A run's return is the mean of its last {N_FINAL} evaluations by then, and the "
        "random policy's before the first; ours have not trained beyond the budget. Ours is higher in "
        f"{n_ahead} and level in {n_level} of {len(SHARES) * len(rows)}.\n\n" + _markdown(table)
    )


def _load_rates(path: Path) -> dict[tuple[str, str], float] | None:
    """Median steps a second by algorithm and environment."""
    if not path.is_file():
        return None
    measured = pd.read_csv(path).groupby(["algorithm", "env"]).steps_per_second.median()
    return {(str(algo), str(env)): float(rate) for (algo, env), rate in measured.items()}
