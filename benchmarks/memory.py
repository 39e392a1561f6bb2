"""Train policies with a memory where velocities are hidden, and masked ones, beside sb3-contrib's; one row a run.

Mean return of 20 deterministic episodes after training, in benchmarks/memory.csv. Finished runs are kept: start it again to
go on. `python benchmarks/memory.py --jobs 2`, then `--table`.
"""

import argparse
import multiprocessing
from pathlib import Path
from typing import Any

import torch as th
from rows import Rows
from sb3_contrib import MaskablePPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked_policy
from scipy.stats import trim_mean
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pg import VanillaPG
from sb3_pg.benchmark.speed import make_tuned_model
from sb3_pg.evaluation import evaluate_policy

ROWS = Rows(Path(__file__).with_suffix(".csv"), "what", "env", "steps", "seed", "return")
DEFAULTS = {"VanillaPG MlpLstmPolicy, defaults": "MlpLstmPolicy", "VanillaPG MlpPolicy, defaults": "MlpPolicy"}
ENTRIES = {"VanillaPG, hyperparams/vpg.yml": "vpg", "RecurrentPPO, rl-zoo3's entry": "ppo_lstm"}
MASKED = {"VanillaPG MaskableMlpPolicy, defaults": VanillaPG, "MaskablePPO, defaults": MaskablePPO}
SEEDS = range(600, 603)
# What is trained, environment, steps, seeds
RUNS: list[tuple[str, str, int, range]] = [
    ("VanillaPG MlpLstmPolicy, defaults", "CartPoleNoVel-v1", 300_000, range(600, 610)),
    ("VanillaPG MlpPolicy, defaults", "CartPoleNoVel-v1", 300_000, SEEDS),
    *((name, "InvalidActionEnvDiscrete(80, 60)", 50_000, SEEDS) for name in MASKED),
    *((name, "CartPoleNoVel-v1", 300_000, SEEDS) for name in ENTRIES),
    *((name, "PendulumNoVel-v1", 300_000, SEEDS) for name in ENTRIES),
    *((name, "LunarLanderNoVel-v3", 500_000, SEEDS) for name in ENTRIES),
]


def train(run: tuple[str, str, int, int]) -> tuple[tuple[str, str, int, int], float]:
    """Mean return of 20 deterministic episodes after training."""
    from rl_zoo3 import import_envs  # noqa: F401  registers the environments without velocities

    from sb3_pg.zoo import register

    register()
    th.set_num_threads(1)
    name, env_id, steps, seed = run
    if name in MASKED:
        policy = "MaskableMlpPolicy" if name.startswith("VanillaPG") else "MlpPolicy"
        env, evaluation = (make_vec_env(_make_masked, 8, seed=s) for s in (seed, 1000 + seed))
        model = MASKED[name](policy, env, seed=seed, device="cpu").learn(steps)
        return run, float(evaluate_masked_policy(model, evaluation, n_eval_episodes=20)[0])
    evaluation = make_vec_env(env_id, 5, seed=1000 + seed)
    if name in DEFAULTS:
        model = VanillaPG(DEFAULTS[name], make_vec_env(env_id, 8, seed=seed), seed=seed, device="cpu")
    else:
        model = make_tuned_model(ENTRIES[name], env_id, seed)
    model.learn(steps)
    normalize: Any = model.get_vec_normalize_env()
    if normalize is not None:
        evaluation = VecNormalize(evaluation, training=False, norm_reward=False)
        evaluation.obs_rms = normalize.obs_rms
    return run, float(evaluate_policy(model, evaluation, n_eval_episodes=20)[0])


def _make_masked() -> InvalidActionEnvDiscrete:
    return InvalidActionEnvDiscrete(dim=80, n_invalid_actions=60)


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--only", nargs="+", choices=dict.fromkeys(run[0] for run in RUNS), help="what to train; all if not given"
    )
    arguments = parser.parse_args()
    done = {(r["what"], r["env"], int(r["steps"]), int(r["seed"])): float(r["return"]) for r in ROWS.read()}
    if arguments.table:
        for what, env_id, steps, seeds in RUNS:
            returns = [done[key] for key in ((what, env_id, steps, seed) for seed in seeds) if key in done]
            if returns:
                each = ", ".join(f"{x:.0f}" for x in returns)
                print(f"| {env_id} | {steps // 1000}k | {what} | {trim_mean(returns, 0.25):.0f} | {each} |")
        return
    missing = [(what, env_id, steps, seed) for what, env_id, steps, seeds in RUNS for seed in seeds]
    missing = [run for run in missing if run not in done and run[0] in (arguments.only or [run[0]])]
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        for run, result in pool.imap_unordered(train, missing):
            ROWS.add(*run, result)


if __name__ == "__main__":
    main()
