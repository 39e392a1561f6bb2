"""Figures of the report: learning curves and performance profiles, with their bands."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from rliable import library as rly

from sb3_pg.benchmark import LABELS
from sb3_pg.benchmark.scores import REPS, score_matrix
from sb3_pg.zoo import ALGORITHMS

COLORS = {"vpg": "C0", "reinforce": "C2", "npg": "C3", "a2c": "C1", "ppo": "C4", "trpo": "0.3"}


def draw_curves(
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


def draw_profiles(
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
    profiles, bands = rly.create_performance_profile(scores, taus, reps=REPS)
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


def save_figure(fig: Figure, path: Path) -> None:
    """Write a figure as PNG and SVG, and close it.

    :param path: without the ending
    """
    fig.savefig(path.with_suffix(".png"), dpi=130)
    fig.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(fig)
