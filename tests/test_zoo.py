"""Registration with rl-zoo3: samplers, converters and hyperparameter files."""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import optuna
import pytest
import rl_zoo3
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from stable_baselines3.common import env_util
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.utils import FloatSchedule

from sb3_pg import zoo

zoo.register()
optuna.logging.set_verbosity(optuna.logging.WARNING)

FILES = {algo: yaml.safe_load(zoo.hyperparams_file(algo).read_text()) for algo in zoo.ALGORITHMS}
STAND_INS = {"default": "FrozenLake-v1", "atari": "PongNoFrameskip-v4"}


def plain(value: Any) -> Any:
    """Schedules compare by identity: take their values instead."""
    if callable(value) and not isinstance(value, type):
        return [float(value(progress)) for progress in (1.0, 0.5, 0.0)]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def test_registering_twice_changes_nothing() -> None:
    before = ExperimentManager.__init__, ExperimentManager._preprocess_schedules, dict(ALGOS)
    zoo.register()
    assert (ExperimentManager.__init__, ExperimentManager._preprocess_schedules, dict(ALGOS)) == before
    assert zoo.ALGORITHMS.items() <= ALGOS.items()
    assert zoo.ALGORITHMS.keys() <= HYPERPARAMS_SAMPLER.keys() and zoo.ALGORITHMS.keys() <= HYPERPARAMS_CONVERTER.keys()


@pytest.mark.parametrize("env_id, n_envs", [("CartPole-v1", 1), ("Pendulum-v1", 2)])
@pytest.mark.parametrize("algo", zoo.ALGORITHMS)
def test_every_sampled_trial_makes_a_model_and_converts_back(algo: str, env_id: str, n_envs: int) -> None:
    env = make_vec_env(env_id, n_envs)
    n_actions = env.action_space.shape[0] if isinstance(env.action_space, gym.spaces.Box) else 0
    seen: dict[str, set[Any]] = {}

    def objective(trial: optuna.Trial) -> float:
        sampled = HYPERPARAMS_SAMPLER[algo](trial, n_actions, n_envs, {})
        # What a model is made of when the trial is loaded again
        reloaded = ExperimentManager._preprocess_schedules(HYPERPARAMS_CONVERTER[algo](trial.params))
        assert plain(reloaded) == plain(sampled)
        model = ALGOS[algo]("MlpPolicy", env, **sampled)
        for name in ("weights", "n_episodes", "normalize_advantage"):
            seen.setdefault(name, set()).add(getattr(model, name))
        seen.setdefault("baseline", set()).add(getattr(model, "baseline", None))
        schedule = model.target_kl_schedule if algo == "npg" else model.lr_schedule
        seen.setdefault("schedule", set()).add(schedule(0.0) == 0.0)
        assert ("log_std_init" in model.policy_kwargs) == (n_actions > 0)
        return 0.0

    optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).optimize(objective, n_trials=200)
    assert seen["schedule"] == {True, False} == seen["normalize_advantage"]
    if algo != "reinforce":
        assert seen["weights"] == {"gae", "reward_to_go", "return"} and seen["n_episodes"] == {None}
    else:
        expected = {"value", "running_mean", "optimal"} | ({"leave_one_out"} if n_envs > 1 else set())
        assert seen["baseline"] == expected and seen["n_episodes"] == {None, 1, 2, 4, 8, 16}


def test_schedules_of_the_critic() -> None:
    hyperparams = ExperimentManager._preprocess_schedules({"critic_learning_rate": "lin_0.01", "learning_rate": 0.1})
    assert FloatSchedule(hyperparams["critic_learning_rate"])(0.25) == pytest.approx(0.0025)
    assert FloatSchedule(hyperparams["learning_rate"])(0.25) == pytest.approx(0.1)
    assert FloatSchedule(ExperimentManager._preprocess_schedules({"target_kl": "lin_0.01"})["target_kl"])(0.5) == 0.005
    assert ExperimentManager._preprocess_schedules({"critic_learning_rate": 0.1}) == {"critic_learning_rate": 0.1}


@pytest.mark.parametrize("name", ["learning_rate", "critic_learning_rate", "target_kl", "ent_coef"])
@pytest.mark.parametrize("value", ["1e-3", "lin_", "linear", "lin_a_b"])
def test_a_malformed_schedule_is_named(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: '{value}' is neither a number nor a linear schedule"):
        ExperimentManager._preprocess_schedules({name: value})


@pytest.mark.parametrize("algo", zoo.ALGORITHMS)
def test_the_file_has_the_environments_that_the_zoo_tunes_for_a2c(algo: str) -> None:
    a2c = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams/a2c.yml").read_text())
    expected = {name.replace("-v4", "-v5") for name in a2c if "Bullet" not in name} - {"atari"}
    assert expected <= FILES[algo].keys()


@pytest.mark.parametrize("algo, entry", [(algo, entry) for algo, file in FILES.items() for entry in file])
def test_every_entry_trains_two_rollouts(algo: str, entry: str, tmp_path: Path) -> None:
    env_id = STAND_INS.get(entry, entry)
    if entry == "atari":
        pytest.importorskip("ale_py", reason="needs ale-py")
    try:
        gym.make(env_id).close()
    except gym.error.DependencyNotInstalled as error:
        pytest.skip(str(error))
    manager = ExperimentManager(
        argparse.Namespace(), algo, env_id, str(tmp_path), eval_freq=-1, verbose=0, device="cpu", hyperparams={}
    )
    experiment = manager.setup_experiment()
    assert experiment is not None
    model, hyperparams = experiment
    assert hyperparams == {**FILES[algo][entry]}
    model.learn(10**9, callback=lambda locals_, globals_: model._n_updates < 2)
    assert model._n_updates == 2
    model.env.close()


def make_manager(tmp_path: Path, algo: str, env_id: str, entry: dict[str, Any], **kwargs: Any) -> ExperimentManager:
    config = tmp_path / "own.yml"
    config.write_text(yaml.safe_dump({env_id: {"n_timesteps": 64, "policy": "MlpPolicy", **entry}}))
    settings: dict[str, Any] = dict(eval_freq=32, verbose=0, device="cpu", config=str(config), n_eval_episodes=1)
    return ExperimentManager(argparse.Namespace(), algo, env_id, str(tmp_path), **(settings | kwargs))


@pytest.mark.parametrize(
    "of_file, given, expected",
    [
        ({"g": 2.0}, {}, (2.0, 2.0)),
        ({"g": 2.0}, {"env_kwargs": {"g": 3.0}}, (3.0, 3.0)),
        ({"g": 2.0}, {"eval_env_kwargs": {"g": 4.0}}, (2.0, 4.0)),
        ({"g": 2.0}, {"env_kwargs": {"g": 3.0}, "eval_env_kwargs": {"g": 4.0}}, (3.0, 4.0)),
        (None, {"env_kwargs": {"g": 3.0}}, (3.0, 3.0)),
        (None, {}, (10.0, 10.0)),
    ],
)
@pytest.mark.parametrize("algo", ["vpg", "a2c"])
def test_env_kwargs_of_a_file_reach_the_evaluation(
    algo: str, of_file: dict[str, Any] | None, given: dict[str, Any], expected: tuple[float, float], tmp_path: Path
) -> None:
    manager = make_manager(tmp_path, algo, "Pendulum-v1", {"env_kwargs": of_file} if of_file else {}, **given)
    experiment = manager.setup_experiment()
    assert experiment is not None
    assert experiment[0].env.get_attr("g") == [expected[0]]
    (evaluation,) = (callback for callback in manager.callbacks if isinstance(callback, EvalCallback))
    assert evaluation.eval_env.get_attr("g") == [expected[1]]
    experiment[0].env.close()


def test_env_kwargs_of_a_file_reach_the_objective_of_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, Any]] = []
    create_envs = ExperimentManager.create_envs

    def look(self: Any, n_envs: int, eval_env: bool = False, no_log: bool = False) -> Any:
        env = create_envs(self, n_envs, eval_env, no_log)
        seen.append((eval_env, env.get_attr("g")))
        return env

    monkeypatch.setattr(ExperimentManager, "create_envs", look)
    manager = make_manager(tmp_path, "vpg", "Pendulum-v1", {"env_kwargs": {"g": 2.0}}, optimize_hyperparameters=True)
    assert manager.setup_experiment() is None
    manager.objective(optuna.create_study().ask())
    assert seen == [(False, [2.0])] * 2 + [(True, [2.0])]


@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy"])
def test_a_search_samples_the_size_of_a_memory(policy: str, tmp_path: Path) -> None:
    manager = make_manager(tmp_path, "vpg", "Pendulum-v1", {"policy": policy}, optimize_hyperparameters=True)
    assert manager.setup_experiment() is None
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    manager.objective(trial)
    assert ("lstm_hidden_size" in trial.params) == (policy == "MlpLstmPolicy")
    policy_kwargs = zoo.convert_params(trial.params)["policy_kwargs"]
    of_memory = {"lstm_hidden_size", "enable_critic_lstm"} & policy_kwargs.keys()
    assert len(of_memory) == (2 if policy == "MlpLstmPolicy" else 0)


def test_a_file_without_atari_is_named(tmp_path: Path) -> None:
    gym.register("FakePong-v0", entry_point="nowhere:AtariEnv")
    try:
        manager = ExperimentManager(argparse.Namespace(), "reinforce", "FakePong-v0", str(tmp_path), verbose=0)
        message = r"reinforce\.yml has no entry for FakePong-v0 and none for Atari, whose episodes are .*: take another algo"
        with pytest.raises(ValueError, match=message):
            manager.read_hyperparameters()
    finally:
        del gym.registry["FakePong-v0"]


@pytest.mark.parametrize("vec_env_type", ["dummy", "subproc"])
@pytest.mark.parametrize("algo", ["reinforce", "a2c"])
def test_files_of_monitor_account_for_abandoned_steps(algo: str, vec_env_type: str, tmp_path: Path) -> None:
    n_episodes = {"n_episodes": 1} if algo == "reinforce" else {}
    manager = make_manager(
        tmp_path, algo, "CartPole-v1", {"n_envs": 4, **n_episodes}, vec_env_type=vec_env_type, eval_freq=-1, n_timesteps=4000
    )
    experiment = manager.setup_experiment()
    assert experiment is not None
    model, _ = experiment
    model.learn(4000)
    model.env.close()
    assert env_util.Monitor is Monitor
    table = load_results(manager.save_path)
    if algo == "a2c":
        assert "abandoned" not in table
        return
    played = model.num_timesteps
    # What is missing is at most an episode in progress in each environment
    assert table["l"].sum() < 0.9 * played and played - 4 * 500 < table[["l", "abandoned"]].to_numpy().sum() <= played
