"""Tables and figures of the finished runs: interquartile means with bootstrap intervals (Agarwal et al. 2021)."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from rich.progress import track
from rliable import library as rly
from rliable import metrics

from sb3_pg.benchmark import BUDGETS, LABELS
from sb3_pg.zoo import ALGORITHMS

PEERS = ("a2c", "ppo", "trpo")
COLORS = {"vpg": "C0", "reinforce": "C2", "npg": "C3", "a2c": "C1", "ppo": "C4", "trpo": "0.3"}
#: The final return of a run is the mean of so many evaluations at its end
N_FINAL = 3
#: Share of the way from a random policy (0) to the best algorithm (1) that counts as learnt
THRESHOLD = 0.8
_REPS = 2000
_RANDOM_EPISODES = 50


def load_runs(folder: Path) -> pd.DataFrame:
    """All evaluations of all finished runs.

    :param folder: folder of finished runs
    :return: a row an evaluation: algo, env, seed, steps (environment steps so far), score (mean return of the episodes),
        n_timesteps (the budget) and imported (whether the run was made elsewhere)
    :raises ValueError: if there is none, or an environment has runs of several budgets
    """
    frames = []
    for path in sorted(folder.glob("*/*/run.json")):
        info = json.loads(path.read_text())
        with np.load(path.parent / "evaluations.npz") as evaluations:
            steps, scores = evaluations["timesteps"], evaluations["results"].mean(axis=1)
        run = {key: info[key] for key in ("algo", "env", "seed", "n_timesteps")}
        frames.append(pd.DataFrame({**run, "imported": info.get("imported", False), "steps": steps, "score": scores}))
    if not frames:
        raise ValueError(f"There are no finished runs in {folder}: sb3-pg benchmark run makes them.")
    evaluations = pd.concat(frames, ignore_index=True)
    for env, budgets in evaluations.groupby("env").n_timesteps.unique().items():
        if len(budgets) > 1:
            raise ValueError(
                f"The runs of {env} in {folder} have several budgets ({', '.join(map(str, sorted(budgets)))} steps)."
            )
    return evaluations


def summarise_runs(evaluations: pd.DataFrame) -> pd.DataFrame:
    """One row a run.

    :param evaluations: rows of :func:`load_runs`
    :return: algo, env, seed, imported, final (mean score of the last evaluations) and area (mean score over the budget, the
        area under the learning curve divided by the steps it covers)
    """

    def summarise(run: pd.DataFrame) -> pd.Series:
        steps, scores = run.steps.to_numpy(float), run.score.to_numpy(float)
        covered = steps[-1] - steps[0]
        area = np.trapezoid(scores, steps) / covered if covered > 0 else scores[-1]
        return pd.Series({"final": scores[-N_FINAL:].mean(), "area": area})

    groups = evaluations.sort_values("steps").groupby(["algo", "env", "seed", "imported"])
    runs: pd.DataFrame = groups[["steps", "score"]].apply(summarise).reset_index()
    return runs


def interval(scores: np.ndarray) -> tuple[float, float, float]:
    """Interquartile mean over runs with its 95% stratified bootstrap interval.

    :param scores: ``(n_runs, n_environments)``
    :return: estimate, lower and upper bound
    """
    estimates, intervals = rly.get_interval_estimates({"": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=_REPS)
    return float(estimates[""][0]), float(intervals[""][0, 0]), float(intervals[""][1, 0])


def improvement(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Probability that a run of X beats one of Y, ties counting half, averaged over environments, with its 95% interval.

    :param x: final returns of X, ``(n_runs, n_environments)``
    :param y: final returns of Y, the same environments
    :return: estimate, lower and upper bound
    """
    statistic = lambda a, b: np.array([metrics.probability_of_improvement(a, b)])  # noqa: E731
    estimates, intervals = rly.get_interval_estimates({"": [x, y]}, statistic, reps=_REPS)
    return float(estimates[""][0]), float(intervals[""][0, 0]), float(intervals[""][1, 0])


def score_matrix(runs: pd.DataFrame, algo: str, envs: list[str], column: str = "final") -> np.ndarray:
    """Scores of an algorithm, ``(n_runs, n_environments)``, with as many runs as it has in all of them."""
    columns = [runs[(runs.algo == algo) & (runs.env == env)].sort_values("seed")[column].to_numpy() for env in envs]
    n_runs = min(map(len, columns))
    scores: np.ndarray = np.stack([column[:n_runs] for column in columns], axis=1)
    return scores


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


def steps_to_threshold(evaluations: pd.DataFrame, threshold: float) -> np.ndarray:
    """Steps of each run until its first evaluation at the threshold or above, infinite if there is none, ``(n_runs,)``."""
    reached = evaluations[evaluations.score >= threshold].groupby("seed").steps.min()
    return np.asarray(reached.reindex(evaluations.seed.unique(), fill_value=np.inf), dtype=float)


def write_report(folder: Path, throughput_file: Path, output: Path) -> None:
    """Write REPORT.md, CSV files and figures.

    :param folder: folder of finished runs
    :param throughput_file: CSV of ``sb3-pg benchmark throughput``; the report has no seconds without it
    :param output: folder to write to
    """
    matplotlib.use("Agg")
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
    _save(_draw_curves(evaluations, algos, envs, lowest, None), output / "curves_steps")
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
    profiles = _draw_profiles(runs, algos, envs, lowest, best)
    if profiles is not None:
        _save(profiles, output / "profiles")
        sections.append(
            "## Performance profiles\n\nShare of runs above a normalised final return (0: random policy, 1: best "
            "interquartile mean), over the environments where something was learnt and that all the algorithms shown have "
            "(and as many runs of an algorithm as it has in each of them), with 95% intervals.\n\n"
            "![Performance profiles](profiles.png)"
        )
    if rates is not None:
        _save(_draw_curves(evaluations, algos, envs, lowest, rates), output / "curves_seconds")
        sections.append(
            "## Wall-clock time\n\nTraining steps a second of every algorithm with its hyperparameter file, measured in one "
            f"process, interleaved (`{throughput_file}`, medians), turn steps into seconds: the "
            "noise of the machines that made the runs does not enter. Seconds to the thresholds above:\n\n"
            + _markdown(_table(algos, envs, lambda a, e: _to_threshold(evaluations, a, e, thresholds[e], rates.get((a, e)))))
            + "\n\nSteps a second:\n\n"
            + _markdown(_table(algos, envs, lambda a, e: f"{rates[a, e]:,.0f}" if (a, e) in rates else "–"))
            + "\n\n![Learning curves over seconds](curves_seconds.png)"
        )
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


def _load_rates(path: Path) -> dict[tuple[str, str], float] | None:
    """Median steps a second by algorithm and environment."""
    if not path.is_file():
        return None
    measured = pd.read_csv(path).groupby(["algorithm", "env"]).steps_per_second.median()
    return {(str(algo), str(env)): float(rate) for (algo, env), rate in measured.items()}


def _draw_curves(
    evaluations: pd.DataFrame,
    algos: list[str],
    envs: list[str],
    lowest: dict[str, float],
    rates: dict[tuple[str, str], float] | None,
) -> Figure:
    """Learning curves, an environment a panel, over steps or, with rates, over seconds."""
    n_columns = min(len(envs), 3)
    n_rows = -(-len(envs) // n_columns)
    fig, axes = plt.subplots(n_rows, n_columns, figsize=(4.6 * n_columns, 3.3 * n_rows), squeeze=False, layout="constrained")
    rng = np.random.default_rng(0)
    for ax, env in zip(axes.flat, envs, strict=False):
        for algo in algos:
            chosen = evaluations[(evaluations.algo == algo) & (evaluations.env == env)]
            if chosen.empty or (rates is not None and (algo, env) not in rates):
                continue
            curves = [run.sort_values("steps") for _, run in chosen.groupby("seed")]
            n = min(map(len, curves))
            scores = np.stack([curve.score.to_numpy()[:n] for curve in curves])
            x = curves[0].steps.to_numpy()[:n] / (1.0 if rates is None else rates[algo, env])
            resampled = scores[rng.integers(len(scores), size=(1000, len(scores)))].mean(axis=1)
            low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
            ours = algo in ALGORITHMS
            ax.plot(x, scores.mean(axis=0), color=COLORS.get(algo), lw=2 if ours else 1.3, label=LABELS.get(algo, algo))
            ax.fill_between(x, low, high, color=COLORS.get(algo), alpha=0.2 if ours else 0.12, lw=0)
        ax.axhline(lowest[env], color="0.7", ls=":", lw=1)
        ax.set_title(env, fontsize=10)
        ax.set_xlabel("environment steps" if rates is None else "seconds of training", fontsize=9)
        if rates is None:
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        else:
            ax.set_xscale("log")
        ax.set_ylabel("return", fontsize=9)
        ax.tick_params(labelsize=8)
    for ax in axes.flat[len(envs) :]:
        ax.set_visible(False)
    handles: dict[str, Any] = {}
    for ax in axes.flat:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    return fig


def _draw_profiles(
    runs: pd.DataFrame, algos: list[str], envs: list[str], lowest: dict[str, float], best: dict[str, float]
) -> Figure | None:
    """Performance profiles over the environments that all algorithms have."""
    has = set(zip(runs.algo, runs.env, strict=True))
    common = [env for env in envs if best[env] > lowest[env] and all((algo, env) in has for algo in algos)]
    if not common:
        return None
    low, scale = (np.array([values[env] for env in common]) for values in (lowest, best))
    scores = {algo: (score_matrix(runs, algo, common) - low) / (scale - low) for algo in algos}
    taus = np.linspace(0.0, 1.2, 61)
    profiles, bands = rly.create_performance_profile(scores, taus, reps=_REPS)
    fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for algo in algos:
        ax.plot(
            taus, profiles[algo], color=COLORS.get(algo), lw=2 if algo in ALGORITHMS else 1.3, label=LABELS.get(algo, algo)
        )
        ax.fill_between(taus, *bands[algo], color=COLORS.get(algo), alpha=0.15, lw=0)
    ax.set_xlabel("normalised final return τ")
    ax.set_ylabel("share of runs above τ")
    ax.set_title(", ".join(common), fontsize=8)
    ax.legend(fontsize=8, frameon=False)
    return fig


def _save(fig: Figure, path: Path) -> None:
    fig.savefig(path.with_suffix(".png"), dpi=130)
    fig.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(fig)
