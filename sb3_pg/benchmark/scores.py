"""Scores of finished runs, and statistics of them (Agarwal et al. 2021)."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from rliable import library as rly
from rliable import metrics

#: The final return of a run is the mean of so many evaluations at its end
N_FINAL = 3
#: Resamples of a bootstrap interval
REPS = 2000


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
    estimates, intervals = rly.get_interval_estimates({"": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=REPS)
    return float(estimates[""][0]), float(intervals[""][0, 0]), float(intervals[""][1, 0])


def improvement(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Probability that a run of X beats one of Y, ties counting half, averaged over environments, with its 95% interval.

    :param x: final returns of X, ``(n_runs, n_environments)``
    :param y: final returns of Y, the same environments
    :return: estimate, lower and upper bound
    """
    statistic = lambda a, b: np.array([metrics.probability_of_improvement(a, b)])  # noqa: E731
    estimates, intervals = rly.get_interval_estimates({"": [x, y]}, statistic, reps=REPS)
    return float(estimates[""][0]), float(intervals[""][0, 0]), float(intervals[""][1, 0])


def score_matrix(runs: pd.DataFrame, algo: str, envs: list[str], column: str = "final") -> np.ndarray:
    """Scores of an algorithm, ``(n_runs, n_environments)``, with as many runs as it has in all of them."""
    columns = [runs[(runs.algo == algo) & (runs.env == env)].sort_values("seed")[column].to_numpy() for env in envs]
    n_runs = min(map(len, columns))
    scores: np.ndarray = np.stack([column[:n_runs] for column in columns], axis=1)
    return scores


def steps_to_threshold(evaluations: pd.DataFrame, threshold: float) -> np.ndarray:
    """Steps of each run until its first evaluation at the threshold or above, infinite if there is none, ``(n_runs,)``."""
    reached = evaluations[evaluations.score >= threshold].groupby("seed").steps.min()
    return np.asarray(reached.reindex(evaluations.seed.unique(), fill_value=np.inf), dtype=float)


def scores_after(evaluations: pd.DataFrame, steps: float, before: float) -> np.ndarray:
    """Score of each run after so many steps, the mean of the last evaluations by then, ``(n_runs,)``.

    :param evaluations: rows of :func:`load_runs`, of one algorithm and environment
    :param steps: environment steps; what rounding takes of them does not matter
    :param before: score of a run that has not been evaluated by then
    """

    def score(run: pd.DataFrame) -> float:
        by_then = run[run.steps <= steps * (1 + 1e-9)].sort_values("steps").score
        return float(by_then.iloc[-N_FINAL:].mean()) if len(by_then) else before

    return np.array([score(run) for _, run in evaluations.groupby("seed")])
