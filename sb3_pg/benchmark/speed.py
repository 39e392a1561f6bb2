"""Environment steps per second, training included, beside the peers in one run."""

import argparse
import io
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import torch as th
import yaml
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg.benchmark.ranks import CLASSES, make_ranks
from sb3_pg.benchmark.run import read_entry
from sb3_pg.vec_env import GymnasiumVecEnv

# Runs at least so many environment steps and returns how many it ran
Contender = Callable[[int], int]

_OURS = {"VanillaPG": VanillaPG, "ReinforceBaseline": ReinforceBaseline, "NaturalPG": NaturalPG}
_PEERS = {"A2C": A2C, "PPO": PPO}
_CONTRIBS = ("RecurrentPPO", "MaskablePPO")
_BARE = "bare VecEnv"
# Of Gymnasium's vector environments: without an adapter; one pass of actor and critic over a rollout, and back
_VECTOR, _PASS = "bare VectorEnv", "one pass"
_VECTORISED = ("native", "envpool")
_ONE_PROCESS = tuple(f"{name}, 1 process" for name in CLASSES)


def _learn(model: OnPolicyAlgorithm, steps: int) -> int:
    model.learn(steps)
    return model.num_timesteps


def _step(env: VecEnv, actions: list[np.ndarray], steps: int) -> int:
    n_calls = -(-steps // env.num_envs)
    for call in range(n_calls):
        env.step(actions[call % len(actions)])
    return n_calls * env.num_envs


def make_contenders(env_id: str, n_envs: int, policy: str, seed: int) -> dict[str, Contender]:
    """The bare vector environment with random actions, every algorithm at its defaults, the peers at our ``n_steps``.

    :param env_id: registered environment
    :param n_envs: parallel copies in a DummyVecEnv
    :param policy: ``""``; ``"lstm64"`` for a memory of so many units, in rollouts of 128 steps, beside a RecurrentPPO of one
        epoch and one minibatch; ``"masked"`` for masks that forbid nothing, beside MaskablePPO; ``"native"`` or ``"envpool"``
        for the environment's own vectorisation or EnvPool's, all in rollouts of 8,192 steps, but of 16 to 256 each;
        ``"ranks4"`` for one, two and four processes, each with its ``n_envs`` and on one thread
    :param seed: seed of models and environments
    :return: by name, what to run
    """
    if policy.startswith("ranks"):
        return dict(make_ranks(env_id, n_envs, int(policy[5:]), seed))
    if policy in _VECTORISED:
        return _make_vectorised(env_id, n_envs, policy, seed)
    wrapper = partial(ActionMasker, action_mask_fn=_all_legal) if policy == "masked" else None
    make_env = partial(make_vec_env, env_id, n_envs, seed=seed, wrapper_class=wrapper)  # type: ignore[arg-type]
    env = make_env()
    env.reset()
    actions = [np.stack([env.action_space.sample() for _ in range(n_envs)]) for _ in range(256)]
    contenders: dict[str, Contender] = {_BARE: partial(_step, env, actions)}
    if policy:
        models = _make_masked(make_env, seed) if policy == "masked" else _make_recurrent(make_env, int(policy[4:]), seed)
        return contenders | {name: partial(_learn, model) for name, model in models.items()}
    n_steps = None
    for name, cls in {**_OURS, **_PEERS}.items():
        model: Any = cls("MlpPolicy", make_vec_env(env_id, n_envs, seed=seed), seed=seed, device="cpu")
        contenders[name] = partial(_learn, model)
        n_steps = n_steps or model.n_steps
    for name, peer in _PEERS.items():
        model = peer("MlpPolicy", make_vec_env(env_id, n_envs, seed=seed), seed=seed, device="cpu", n_steps=n_steps)
        contenders[f"{name}, n_steps={n_steps}"] = partial(_learn, model)
    return contenders


def _all_legal(env: Any) -> np.ndarray:
    return np.ones(env.action_space.n, dtype=bool)


def _make_recurrent(make_env: Callable[[], VecEnv], n_units: int, seed: int) -> dict[str, Any]:
    kwargs: dict[str, Any] = dict(n_steps=128, seed=seed, device="cpu", policy_kwargs=dict(lstm_hidden_size=n_units))
    models: dict[str, Any] = {name: cls("MlpLstmPolicy", make_env(), **kwargs) for name, cls in _OURS.items()}
    env = make_env()
    models["RecurrentPPO"] = RecurrentPPO("MlpLstmPolicy", env, n_epochs=1, batch_size=128 * env.num_envs, **kwargs)
    return models


def _make_vectorised(env_id: str, n_envs: int, kind: str, seed: int) -> dict[str, Contender]:
    def make_vector() -> Any:
        if kind == "native":
            return gym.make_vec(env_id, n_envs, vectorization_mode="vector_entry_point")
        import envpool

        return envpool.make(env_id, env_type="gymnasium", num_envs=n_envs, num_threads=th.get_num_threads(), seed=seed)

    def step_vector(steps: int) -> int:
        for call in range(-(-steps // n_envs)):
            vector.step(actions[call % len(actions)])
        return -(-steps // n_envs) * n_envs

    kwargs: dict[str, Any] = dict(n_steps=min(256, max(16, 8192 // n_envs)), seed=seed, device="cpu")
    # The peers know no reset rows: they train on them
    vector, env = make_vector(), GymnasiumVecEnv(make_vector(), reset_rows="keep")
    vector.reset()
    env.reset()
    actions = [np.stack([env.action_space.sample() for _ in range(n_envs)]) for _ in range(64)]
    models: dict[str, Any] = {name: cls("MlpPolicy", make_vector(), **kwargs) for name, cls in _OURS.items()}
    for name, peer in _PEERS.items():
        models[name] = peer("MlpPolicy", GymnasiumVecEnv(make_vector(), reset_rows="keep"), **kwargs)
    policy: Any = models["VanillaPG"].policy
    n: int = n_envs * kwargs["n_steps"]
    obs, taken = (
        th.as_tensor(np.stack([space.sample() for _ in range(n)])) for space in (env.observation_space, env.action_space)
    )

    def pass_once(steps: int) -> int:
        for _ in range(-(-steps // n)):
            values, log_probs, _ = policy.evaluate_actions(obs, taken)
            (values.mean() + log_probs.mean()).backward()
            policy.zero_grad()
        return -(-steps // n) * n

    contenders: dict[str, Contender] = {_VECTOR: step_vector, _BARE: partial(_step, env, actions), _PASS: pass_once}
    return contenders | {name: partial(_learn, model) for name, model in models.items()}


def _make_masked(make_env: Callable[[], VecEnv], seed: int) -> dict[str, Any]:
    models: dict[str, Any] = {
        name: cls("MaskableMlpPolicy", make_env(), seed=seed, device="cpu") for name, cls in _OURS.items()
    }
    return models | {"MaskablePPO": MaskablePPO("MlpPolicy", make_env(), seed=seed, device="cpu")}


def measure(envs: list[tuple[str, int, str]], steps: int, repetitions: int, seed: int) -> Iterator[dict[str, Any]]:
    """Measure all contenders in turn, repetition by repetition, so that a busy machine hits all of them alike.

    :param envs: environments, each with its number of copies and the kind of policy
    :param steps: environment steps of one measurement, at least
    :param repetitions: measurements of each contender
    :param seed: seed of models and environments
    :return: one row a measurement; ``steps_per_second`` counts the steps of all copies
    """
    for env_id, n_envs, policy in envs:
        for row in interleave(make_contenders(env_id, n_envs, policy, seed), steps, repetitions):
            yield {"env": f"{env_id} {policy}".strip(), "n_envs": n_envs, **row}


def interleave(contenders: dict[str, Contender], steps: int, repetitions: int) -> Iterator[dict[str, Any]]:
    """Run all contenders in turn, repetition by repetition, after a warm-up of each.

    :param contenders: by name, what to run
    :param steps: steps of one measurement, at least
    :param repetitions: measurements of each contender
    :return: one row a measurement
    """
    for run in contenders.values():
        run(1)  # warm up
    for repetition in range(repetitions):
        for name, run in contenders.items():
            start = time.perf_counter()
            steps_run = run(steps)
            yield dict(algorithm=name, repetition=repetition, steps_per_second=steps_run / (time.perf_counter() - start))


def summarise(measurements: pd.DataFrame) -> pd.DataFrame:
    """Medians, and ratios to the peers within a repetition.

    :param measurements: rows of :func:`measure`
    :return: a row for each environment and algorithm: median ``steps_per_second``, and for each peer (and the bare
        environment) the median ratio ``÷ peer``, with its least and greatest value over the repetitions beside it
    """
    wide = measurements.pivot_table(index=["env", "n_envs", "repetition"], columns="algorithm", values="steps_per_second")
    summaries = []
    for env_id, n_envs in measurements[["env", "n_envs"]].drop_duplicates().itertuples(index=False):
        rates = wide.loc[env_id, n_envs]
        for algorithm in rates.columns[rates.notna().all()]:
            row: dict[str, Any] = dict(env=env_id, n_envs=n_envs, algorithm=algorithm)
            row["steps_per_second"] = rates[algorithm].median()
            for peer in [
                name
                for name in rates.columns
                if (name.split(",")[0] in (*_PEERS, *_CONTRIBS, _BARE, _VECTOR, _PASS) or name in _ONE_PROCESS)
                and rates[name].notna().all()
            ]:
                ratio = rates[algorithm] / rates[peer]
                row |= {f"÷ {peer}": ratio.median(), f"÷ {peer} min": ratio.min(), f"÷ {peer} max": ratio.max()}
            summaries.append(row)
    return pd.DataFrame(summaries)


def _tables(summary: pd.DataFrame) -> Iterator[Table]:
    """One for the environments with the same peers."""
    columns = [column for column in summary.columns if column.startswith("÷") and not column.endswith((" min", " max"))]
    ratios_of = summary.groupby("env")[columns].apply(lambda rows: tuple(rows.columns[rows.notna().all()]))
    for ratios in dict.fromkeys(ratios_of[env] for env in summary.env):
        table = Table(
            "environment", "algorithm", "steps/s", *ratios, title="Median of interleaved repetitions [least–greatest]"
        )
        for _, row in summary[[ratios_of[env] == ratios for env in summary.env]].iterrows():
            cells = [f"{row[c]:.2f} [{row[c + ' min']:.2f}–{row[c + ' max']:.2f}]" for c in ratios]
            table.add_row(f"{row.env} × {row.n_envs}", row.algorithm, f"{row.steps_per_second:,.0f}", *cells)
        yield table


def run_speed(envs: list[tuple[str, int, str]], steps: int, repetitions: int, threads: int, seed: int, output: Path) -> None:
    """Measure, write the CSV after every measurement, and print the table.

    :param envs: environments, each with its number of copies and the kind of policy
    :param steps: environment steps of one measurement, at least
    :param repetitions: interleaved repetitions
    :param threads: threads of torch
    :param seed: seed of models and environments
    :param output: CSV file of the single measurements
    """
    th.set_num_threads(threads)
    output.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    n_contenders = {"": 1 + len(_OURS) + 2 * len(_PEERS)}
    n_contenders |= dict.fromkeys(_VECTORISED, 3 + len(_OURS) + len(_PEERS))
    n_contenders |= {kind: len(CLASSES) * int(kind[5:]).bit_length() for _, _, kind in envs if kind.startswith("ranks")}
    n_rows = sum(n_contenders.get(policy, 2 + len(_OURS)) for _, _, policy in envs)
    console = Console()
    with Progress(
        *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), console=console
    ) as progress:
        task = progress.add_task("measuring", total=repetitions * n_rows)
        for row in measure(envs, steps, repetitions, seed):
            rows.append(row)
            pd.DataFrame(rows).to_csv(output, index=False)
            progress.update(task, advance=1, description=f"{row['env']} × {row['n_envs']}")
    # As wide as it is: a narrow terminal would cut the intervals off
    for table in _tables(summarise(pd.DataFrame(rows))):
        console.print(table, width=max(console.width, 150), crop=False)
    console.print(f"torch {th.__version__}, {threads} thread(s), seed {seed}; single measurements in {output}")


def run_throughput(algos: list[str], env_ids: list[str], steps: int, repetitions: int, seed: int, output: Path) -> None:
    """Steps a second of every algorithm with the settings and number of environments of its hyperparameter file.

    :param algos: names as rl-zoo3 knows them
    :param env_ids: environments
    :param steps: environment steps of one measurement, at least
    :param repetitions: interleaved repetitions
    :param seed: seed of models and environments
    :param output: CSV file, written after every measurement: env, algorithm, repetition, steps_per_second
    """
    from sb3_pg.zoo import register

    register()
    th.set_num_threads(1)
    output.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task("measuring", total=len(algos) * len(env_ids) * repetitions)
        for env_id in env_ids:
            models = {algo: make_tuned_model(algo, env_id, seed) for algo in algos}
            contenders: dict[str, Contender] = {algo: partial(_learn, model) for algo, model in models.items()}
            for row in interleave(contenders, steps, repetitions):
                rows.append({"env": env_id, **row})
                pd.DataFrame(rows).to_csv(output, index=False)
                progress.update(task, advance=1, description=env_id)
            for model in models.values():
                env = model.get_env()
                assert env is not None
                env.close()
    rates = pd.DataFrame(rows).pivot_table(index="env", columns="algorithm", values="steps_per_second", aggfunc="median")
    table = Table(
        "environment", *rates.columns, title=f"Steps a second, medians of {repetitions}; torch {th.__version__}, 1 thread"
    )
    for env_id in rates.index:
        table.add_row(env_id, *(f"{rate:,.0f}" for rate in rates.loc[env_id]))
    Console().print(table)


def make_tuned_model(algo: str, env_id: str, seed: int) -> OnPolicyAlgorithm:
    """The model, with its environments, that rl-zoo3 makes of the hyperparameter file.

    :param algo: name as rl-zoo3 knows it, after :func:`sb3_pg.zoo.register`
    :param env_id: environment
    :param seed: of model and environments
    """
    from rl_zoo3.exp_manager import ExperimentManager

    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        config = Path(folder) / f"{algo}.yml"
        config.write_text(yaml.safe_dump({env_id: read_entry(algo, env_id)}))
        manager = ExperimentManager(
            argparse.Namespace(), algo, env_id, folder, eval_freq=-1, seed=seed, verbose=0, device="cpu", config=str(config)
        )
        experiment = manager.setup_experiment()
    assert experiment is not None
    model = experiment[0]
    assert isinstance(model, OnPolicyAlgorithm), f"{algo} is not on-policy"
    return model
