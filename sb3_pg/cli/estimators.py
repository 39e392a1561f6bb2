"""The command ``sb3-pg estimators``: which estimator is best on this problem."""

import argparse
import importlib
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd

from sb3_pg.cli.help import Formatter, epilog
from sb3_pg.cli.runs import check_packages, import_packages, read_args
from sb3_pg.cli.trust import distrusting
from sb3_pg.diagnostics import best_row, gradient_diagnostics, recommend
from sb3_pg.loading import NotTrustedError

_WIDTH_WITH_INTERVALS = 115


def main(argv: list[str] | None = None) -> None:
    """Measure the estimators on a trained agent, print the table and write CSV and figure.

    :param argv: arguments; those of the process if None
    """
    parser = argparse.ArgumentParser(
        prog="sb3-pg estimators",
        description="Variance, bias and noise scale of the policy-gradient estimators on an agent's own episodes: which "
        "weights, which baseline, how long a rollout. Takes agents of vpg, reinforce, npg, a2c and ppo.",
        formatter_class=Formatter,
        epilog=epilog("estimators"),
    )
    parser.add_argument("--algo", default="vpg", help="algorithm, as rl-zoo3 knows it")
    parser.add_argument("--env", default="CartPole-v1", help="environment ID")
    parser.add_argument("-f", "--folder", default="logs", help="log folder of sb3-pg train")
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run in the log folder; 0: the latest")
    parser.add_argument("--load-best", action="store_true", help="the best model of the run instead of the last")
    parser.add_argument("--model", type=Path, help="a saved model (.zip) instead of a run of the log folder")
    parser.add_argument("--episodes", type=int, default=200, help="whole episodes to play")
    parser.add_argument("--n-envs", type=int, default=8, help="parallel environments to play in")
    parser.add_argument("--seed", type=int, default=0, help="seed of environments and policy")
    parser.add_argument("--device", default="auto", help="device of the networks")
    parser.add_argument("--gym-packages", nargs="+", help="packages to import that register environments, if not the run's")
    parser.add_argument("--output", type=Path, default=Path("estimators"), help="name of the CSV file and the figure")
    parser.add_argument("--trust", action="store_true", help="run whatever code the files of the run or the model may hold")
    arguments = parser.parse_args(argv)

    from rich.console import Console
    from rich.progress import Progress

    with nullcontext() if arguments.trust else distrusting("estimators"):
        model, env = load_agent(arguments)
    with Progress() as progress:
        task = progress.add_task("episodes", total=None)
        table = gradient_diagnostics(
            model, env, arguments.episodes, on_progress=lambda n, total: progress.update(task, completed=n, total=total)
        )
    env.close()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.output.with_suffix(".csv"), index=False)
    _draw(table, f"{arguments.algo} on {arguments.env}").savefig(arguments.output.with_suffix(".png"), dpi=150)
    console = Console()
    console.print(_to_rich(table, console.width))
    console.print(f"Table in {arguments.output.with_suffix('.csv')}, figure in {arguments.output.with_suffix('.png')}")
    console.print(recommend(table), highlight=False)
    if table.snr.isna().any():
        console.print(
            "Where there is –, the gradient cannot be told from noise: play more episodes (--episodes). If all episodes have "
            "about the same return, as those of an agent that has solved its problem, no gradient is left: take one that "
            "still learns, such as a checkpoint (--model; train --save-freq writes them).",
            highlight=False,
        )


def load_agent(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The model and its environment, with the statistics of VecNormalize, found as rl-zoo3's enjoy finds them.

    :param arguments: those of the command
    :return: the model, and a vectorised environment that does not update its statistics
    """
    from huggingface_sb3 import EnvironmentName
    from rl_zoo3.utils import ALGOS, create_test_env, get_model_path, get_saved_hyperparams
    from stable_baselines3.common.utils import set_random_seed
    from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize

    from sb3_pg.zoo import register

    register()
    for package in arguments.gym_packages or []:
        importlib.import_module(package)
    if arguments.algo not in ALGOS:
        raise ValueError(f"--algo must be one of {', '.join(ALGOS)}, not {arguments.algo!r}.")
    env_name = EnvironmentName(arguments.env)
    if arguments.model is None:
        _, model_path, log_path = get_model_path(
            arguments.exp_id, arguments.folder, arguments.algo, env_name, arguments.load_best
        )
    else:
        if not arguments.model.is_file():
            raise ValueError(f"There is no file {arguments.model}.")
        model_path, log_path = str(arguments.model), str(arguments.model.parent)
    try:
        model = ALGOS[arguments.algo].load(model_path, device=arguments.device)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if arguments.model is None or isinstance(error, NotTrustedError):
            raise
        raise ValueError(
            f"{arguments.model} does not open as a model of {arguments.algo}: name the algorithm that wrote it with --algo "
            f"({' '.join(str(error).split())[:200]})"
        ) from error
    set_random_seed(arguments.seed)
    folder = Path(log_path) / env_name
    args = read_args(folder, arguments.trust)
    if not arguments.gym_packages:
        packages = args.get("gym_packages") or []
        if not arguments.trust:
            check_packages(packages, Path(log_path))
        import_packages(packages)
    hyperparams, stats_path = get_saved_hyperparams(str(folder), test_mode=True)
    if stats_path is None:
        print(f"{folder} is missing: playing without wrappers and VecNormalize. If the training had some, put it there.")
    env_kwargs = hyperparams.pop("env_kwargs", {})
    env_kwargs = args.get("env_kwargs") or env_kwargs
    env = create_test_env(
        env_name.gym_id,
        n_envs=arguments.n_envs,
        stats_path=stats_path,
        seed=arguments.seed,
        should_render=False,
        hyperparams=hyperparams,
        env_kwargs=env_kwargs,
    )
    normalize = unwrap_vec_normalize(env)
    if normalize is not None:  # the critic knows the rewards as they were in training
        normalize.norm_reward = VecNormalize.load(str(folder / "vecnormalize.pkl"), normalize.venv).norm_reward
    return model, env


def _rows(table: pd.DataFrame) -> Iterable[Any]:
    return table.itertuples()


def _name(row: Any) -> str:
    name = {"return": "R(τ)", "reward_to_go": "Gₜ", "gae": f"GAE({row.gae_lambda:g})"}.get(
        row.estimator, f"Gₜ − {row.estimator.replace('_', ' ')}"
    )
    return f"γᵗ ({name})" if row.discounted and row.estimator != "return" else name


def _to_rich(table: pd.DataFrame, width: int) -> Any:
    """The table as it fits the terminal: a narrow one is shown no intervals."""
    from rich.table import Table

    wide = width >= _WIDTH_WITH_INTERVALS
    of_interval = " [95%]" if wide else ""
    columns = ("estimator", f"variance{of_interval}", "SNR", f"bias{of_interval}", "cosine", "batch", "alignment")
    legend = (
        "variance of one episode; bias relative to Gₜ − V; batch worth having, in steps; alignment of one rollout with the "
        f"gradient; –: not told from noise{'' if wide else '; 95% intervals in the CSV file'}"
    )
    rich = Table(*columns, title=f"{table.episodes[0]} episodes, {table.steps[0]:,} steps", caption=legend)
    best = best_row(table)
    for row in _rows(table):
        cells = [
            _name(row),
            f"{row.variance:.3g}" + f" [{row.variance_low:.3g}, {row.variance_high:.3g}]" * wide,
            f"{row.snr:.3f}",
            (f"{row.bias:.2f}" if row.bias_low > 0 else "–") + f" [{row.bias_low:.2f}, {row.bias_high:.2f}]" * wide,
            f"{row.cosine:.2f}",
            f"{row.batch_steps:,.0f}",
            f"{row.alignment:.2f}",
        ]
        rich.add_row(*("–" if "nan" in cell else cell for cell in cells), style="bold" if row.Index == best else None)
    return rich


def _draw(table: pd.DataFrame, title: str) -> Any:
    """Variance and bias with their 95% intervals, and what both make of a rollout."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(11, 4.5), layout="constrained")
    panels = fig.subplots(1, 3, sharey=True)
    names = [_name(row) for row in _rows(table)]
    for ax, name in zip(panels, ("variance", "bias"), strict=False):
        errors = [table[name] - table[f"{name}_low"], table[f"{name}_high"] - table[name]]
        ax.errorbar(table[name], names, xerr=[error.clip(lower=0.0) for error in errors], fmt="o", color="C0", ms=5, capsize=3)
    panels[2].barh(names, table.alignment, color=["C1" if row == best_row(table) else "C0" for row in table.index])
    panels[0].set_xscale("log")
    panels[0].invert_yaxis()
    panels[0].set_xlabel("variance of one episode's gradient")
    panels[1].set_xlabel("bias, relative to the gradient's length")
    panels[2].set_xlabel("alignment of one rollout with the gradient")
    for ax in panels:
        ax.grid(axis="y", color="0.9")
        ax.set_axisbelow(True)
    fig.suptitle(title)
    return fig
