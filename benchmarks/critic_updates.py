"""Does a critic that fits better make a policy gradient of one step a rollout a peer of PPO?

Returns against `n_critic_updates`, in the settings of Wang, Zhang & Gao 2025 (arXiv 2505.19247), whose claim this is: 64
environments × 32 steps, γ 0.99, GAE(0.95), Adam at 7e-4, the critic's steps on the whole rollout, observations normalised and
rewards not. Mean return of 20 deterministic episodes after a million steps (theirs had five to ten), one row a run in
benchmarks/critic_updates.csv. Finished runs are kept: start it again to go on. The environments are EnvPool's.

python benchmarks/critic_updates.py --jobs 2    train what is missing, a seed of all settings before the next
python benchmarks/critic_updates.py --table     print the table
python benchmarks/critic_updates.py --figure    draw docs/figures/critic_updates.png
"""

import argparse
import multiprocessing
import time
from pathlib import Path

import torch as th
from matplotlib.figure import Figure
from rows import Rows
from scipy.stats import trim_mean
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

from sb3_pg import VanillaPG
from sb3_pg.vec_env import GymnasiumVecEnv

ROWS = Rows(Path(__file__).with_suffix(".csv"), "env", "n_critic_updates", "seed", "return", "seconds")
FIGURE = Path(__file__).parents[1] / "docs/figures/critic_updates.png"
ENVS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5")
PASSES = (1, 5, 20, 50)
SEEDS = range(900, 905)
STEPS = 1_000_000

Run = tuple[str, int, int]


def train(run: Run) -> tuple[Run, float, float]:
    """Mean return of 20 deterministic episodes after training, and the seconds that it took."""
    import envpool

    th.set_num_threads(1)
    env_id, passes, seed = run
    pool = envpool.make(env_id, env_type="gymnasium", num_envs=64, num_threads=1, seed=seed)
    env = VecNormalize(GymnasiumVecEnv(pool), norm_reward=False)
    model = VanillaPG(
        "MlpPolicy", env, learning_rate=7e-4, n_steps=32, batch_size=64 * 32, gae_lambda=0.95,
        max_grad_norm=1.0, n_critic_updates=passes, normalize_targets=False, seed=seed, device="cpu",
    )  # fmt: skip
    start = time.perf_counter()
    model.learn(STEPS)
    seconds = time.perf_counter() - start
    evaluation = VecNormalize(make_vec_env(env_id, 5, seed=1000 + seed), training=False, norm_reward=False)
    sync_envs_normalization(env, evaluation)
    return run, float(evaluate_policy(model, evaluation, n_eval_episodes=20)[0]), seconds


def read() -> dict[Run, float]:
    """Returns of the finished runs."""
    return {(r["env"], int(r["n_critic_updates"]), int(r["seed"])): float(r["return"]) for r in ROWS.read()}


def draw(done: dict[Run, float]) -> None:
    """Returns of all runs, with the interquartile means, an environment a panel."""
    envs = [env_id for env_id in ENVS if any(run[0] == env_id for run in done)]
    fig = Figure(figsize=(3.6 * len(envs), 3.2), layout="constrained")
    axes = fig.subplots(1, len(envs), squeeze=False)[0]
    for ax, env_id in zip(axes, envs, strict=True):
        returns = {n: [x for (e, passes, _), x in done.items() if (e, passes) == (env_id, n)] for n in PASSES}
        for n, each in returns.items():
            ax.plot([n] * len(each), each, "o", color="C0", alpha=0.4, ms=4)
        means = {n: trim_mean(each, 0.25) for n, each in returns.items() if each}
        ax.plot(list(means), list(means.values()), color="C0", lw=2)
        ax.set_xscale("log")
        ax.set_xticks(PASSES, [str(n) for n in PASSES])
        ax.minorticks_off()
        ax.set_title(env_id, fontsize=10)
        ax.set_xlabel("n_critic_updates")
    axes[0].set_ylabel("return after a million steps")
    fig.savefig(FIGURE, dpi=130)
    print(f"Figure written to {FIGURE}")


def main() -> None:
    """Train what is missing, print the table or draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--envs", nargs="+", choices=ENVS, default=ENVS, help="environments to train on")
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs")
    parser.add_argument("--figure", action="store_true", help="draw the finished runs")
    arguments = parser.parse_args()
    done = read()
    if arguments.table:
        for env_id in ENVS:
            for n in PASSES:
                returns = [done[env_id, n, seed] for seed in SEEDS if (env_id, n, seed) in done]
                if returns:
                    print(f"| {env_id} | {n} | {trim_mean(returns, 0.25):,.0f} | {', '.join(f'{x:,.0f}' for x in returns)} |")
        return
    if arguments.figure:
        draw(done)
        return
    missing = [(e, n, s) for s in SEEDS for e in arguments.envs for n in PASSES if (e, n, s) not in done]
    with multiprocessing.get_context("spawn").Pool(arguments.jobs, maxtasksperchild=1) as pool:
        for run, result, seconds in pool.imap_unordered(train, missing):
            ROWS.add(*run, result, round(seconds))


if __name__ == "__main__":
    main()
