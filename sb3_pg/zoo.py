"""Registration with rl-zoo3: the algorithms, their Optuna samplers and their hyperparameter files.

Nothing here is imported by the algorithms, and rl-zoo3 (the extra ``zoo``) is imported when a function is called.
"""

import pickle
import shutil
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3.common import callbacks, env_util
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pg.algorithms.natural_pg import NaturalPG
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.algorithms.reinforce_baseline import ReinforceBaseline
from sb3_pg.algorithms.vanilla_pg import VanillaPG
from sb3_pg.checkpoints import CheckpointCallback
from sb3_pg.evaluation import EvalCallback, act_in, acting_in
from sb3_pg.replacing import replacing
from sb3_pg.rollouts.monitor import EpisodeMonitor
from sb3_pg.saving import write_atomically

if TYPE_CHECKING:
    from optuna import Trial

#: Our algorithms by the names rl-zoo3 knows them by
ALGORITHMS: dict[str, type[PolicyGradient]] = {"vpg": VanillaPG, "reinforce": ReinforceBaseline, "npg": NaturalPG}

# Whether the policy of the search in progress has a memory: rl-zoo3 does not tell the samplers
_has_memory: ContextVar[bool] = ContextVar("has_memory", default=False)

# Hyperparameters of ours that may be schedules; rl-zoo3 knows its own
_SCHEDULES = ("critic_learning_rate", "target_kl", "ent_coef")


def hyperparams_file(algo: str) -> Path:
    """Path of the hyperparameter file of one of our algorithms, in a checkout or an installed package.

    :param algo: ``"vpg"``, ``"reinforce"`` or ``"npg"``
    :return: path of the YAML file
    """
    package = Path(__file__).parent
    installed = package / "hyperparams"
    return (installed if installed.is_dir() else package.parent / "hyperparams") / f"{algo}.yml"


def register() -> None:
    """Make ``--algo vpg``, ``reinforce`` and ``npg`` known to rl-zoo3, in this process. Calling it again changes nothing.

    Training, hyperparameter search and loading of trials then work as with rl-zoo3's own algorithms; without
    ``--conf-file`` our hyperparameter files are read, and ``critic_learning_rate: lin_…`` and ``target_kl: lin_…`` are
    schedules.

    :raises ModuleNotFoundError: without rl-zoo3
    """
    from rl_zoo3.exp_manager import ExperimentManager
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import ALGOS

    if ALGORITHMS.keys() <= ALGOS.keys():
        return
    ALGOS.update(ALGORITHMS)
    _mask_evaluations()
    HYPERPARAMS_SAMPLER.update({"vpg": sample_vpg_params, "reinforce": sample_reinforce_params, "npg": sample_npg_params})
    HYPERPARAMS_CONVERTER.update(dict.fromkeys(ALGORITHMS, convert_params))
    _extend(ExperimentManager)
    _keep_runs(ExperimentManager)


def _extend(manager: Any) -> None:
    """Teach rl-zoo3's ExperimentManager what it has no setting for: where our files are, and our schedules.

    And mend it, for all algorithms: ``env_kwargs`` of a file are the evaluation environments' too, and a file without an entry
    for Atari is named. The files of Monitor say how many steps of ours were abandoned.
    """
    create_envs, objective = manager.create_envs, manager.objective
    init, preprocess_schedules = manager.__init__, manager._preprocess_schedules
    read_hyperparameters, preprocess_hyperparams = manager.read_hyperparameters, manager._preprocess_hyperparams

    @wraps(init)
    def initialise(self: Any, args: Any, algo: str, *rest: Any, config: str | None = None, **kwargs: Any) -> None:
        if config is None and algo in ALGORITHMS:
            config = str(hyperparams_file(algo))
        init(self, args, algo, *rest, config=config, **kwargs)

    @wraps(preprocess_schedules)
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        for name in ("learning_rate", "clip_range", "clip_range_vf", *_SCHEDULES):
            if isinstance(hyperparams.get(name), str):
                _check_schedule(name, hyperparams[name])
        for name in _SCHEDULES:
            if isinstance(hyperparams.get(name), str):
                hyperparams[name] = preprocess_schedules({"learning_rate": hyperparams[name]})["learning_rate"]
        schedules: dict[str, Any] = preprocess_schedules(hyperparams)
        return schedules

    @wraps(read_hyperparameters)
    def _read_hyperparameters(self: Any) -> Any:
        try:
            return read_hyperparameters(self)
        except KeyError as error:
            if error.args != ("atari",):
                raise
            why = ", whose episodes are too long to be played whole" if self.algo == "reinforce" else ""
            raise ValueError(
                f"{self.config} has no entry for {self.env_name.gym_id} and none for Atari{why}: take another algorithm, such "
                "as --algo vpg, or write an entry named atari and pass its file as --conf-file."
            ) from None

    @wraps(preprocess_hyperparams)
    def _preprocess_hyperparams(self: Any, hyperparams: dict[str, Any]) -> Any:
        preprocessed = preprocess_hyperparams(self, hyperparams)
        if not self._eval_env_kwargs_args:
            self.eval_env_kwargs = self.env_kwargs
        return preprocessed

    @wraps(objective)
    def _objective(self: Any, trial: "Trial") -> float:
        token = _has_memory.set("Lstm" in str(self._hyperparams.get("policy")))
        try:
            value: float = objective(self, trial)
        finally:
            _has_memory.reset(token)
        return value

    @wraps(create_envs)
    def _create_envs(self: Any, *args: Any, **kwargs: Any) -> Any:
        # SB3's make_vec_env knows no other Monitor than its own
        with replacing((env_util, "Monitor", EpisodeMonitor if self.algo in ALGORITHMS else Monitor)):
            return create_envs(self, *args, **kwargs)

    manager.create_envs, manager.objective = _create_envs, _objective
    manager.__init__, manager._preprocess_schedules = initialise, staticmethod(_preprocess_schedules)
    manager.read_hyperparameters, manager._preprocess_hyperparams = _read_hyperparameters, _preprocess_hyperparams


def _keep_runs(manager: Any) -> None:
    """Have rl-zoo3's ExperimentManager write checkpoints that resume, the agent of a run that fails, and one run a folder."""
    from rl_zoo3.utils import get_latest_run_id

    create_callbacks, create_log_folder, learn = manager.create_callbacks, manager.create_log_folder, manager.learn
    save_trained_model, setup_experiment = manager.save_trained_model, manager.setup_experiment

    @wraps(create_callbacks)
    def _create_callbacks(self: Any) -> None:
        save_freq = self.save_freq
        create_callbacks(self)
        if self.algo in ALGORITHMS:
            self.callbacks = [
                CheckpointCallback(save_freq, self.save_path) if type(x) is callbacks.CheckpointCallback else x
                for x in self.callbacks
            ]

    @wraps(create_log_folder)
    def _create_log_folder(self: Any) -> None:
        # Another run may have begun since the number was chosen
        Path(self.log_path).mkdir(parents=True, exist_ok=True)
        while True:
            try:
                Path(self.save_path).mkdir()
                self.has_made_folder = True
                break
            except FileExistsError:
                number = get_latest_run_id(self.log_path, self.env_name) + 1
                self.save_path = str(Path(self.log_path) / f"{self.env_name}_{number}")
                self.params_path = f"{self.save_path}/{self.env_name}"
        create_log_folder(self)

    @wraps(learn)
    def _learn(self: Any, model: Any) -> None:
        try:
            learn(self, model)
        except Exception:
            if self.algo in ALGORITHMS:  # whose updates are made completely or not at all
                self.save_trained_model(model)
            raise

    @wraps(setup_experiment)
    def _setup_experiment(self: Any) -> Any:
        try:
            return setup_experiment(self)
        except BaseException:
            # Nothing has been trained: the next enjoy would look for an agent in it
            if getattr(self, "has_made_folder", False):
                shutil.rmtree(self.save_path, ignore_errors=True)
            raise

    @wraps(save_trained_model)
    def _save_trained_model(self: Any, model: Any) -> None:
        with replacing((VecNormalize, "save", _save_atomically)):
            save_trained_model(self, model)

    manager.create_callbacks, manager.create_log_folder, manager.learn = _create_callbacks, _create_log_folder, _learn
    manager.save_trained_model, manager.setup_experiment = _save_trained_model, _setup_experiment


def _save_atomically(normalize: VecNormalize, path: str) -> None:
    write_atomically(path, pickle.dumps(normalize))


def pass_env_kwargs_of_file() -> None:
    """Have rl-zoo3's record_video make the environment with the ``env_kwargs`` of the run's hyperparameters, as enjoy does."""
    from rl_zoo3 import utils

    create_test_env = utils.create_test_env

    @wraps(create_test_env)
    def create(*args: Any, **kwargs: Any) -> Any:
        of_file = (kwargs.get("hyperparams") or {}).get("env_kwargs")
        kwargs["env_kwargs"] = {**(of_file or {}), **(kwargs.get("env_kwargs") or {})}
        return create_test_env(*args, **kwargs)

    utils.create_test_env = create  # type: ignore[assignment]


def _mask_evaluations() -> None:
    """Let rl-zoo3's evaluations take the masks of their environments, of which it knows nothing."""
    from rl_zoo3 import exp_manager
    from rl_zoo3.callbacks import TrialEvalCallback

    class MaskedTrialEvalCallback(TrialEvalCallback):
        def _on_step(self) -> bool:
            with acting_in(self.eval_env):
                return bool(super()._on_step())

    vars(exp_manager).update(EvalCallback=EvalCallback, TrialEvalCallback=MaskedTrialEvalCallback)


def act_in_test_envs() -> None:
    """Let the agents of rl-zoo3's enjoy and record_video act in the environments that these make: with their masks."""
    import rl_zoo3
    from rl_zoo3 import utils

    make = utils.create_test_env

    @wraps(make)
    def create_test_env(*args: Any, **kwargs: Any) -> Any:
        env = make(*args, **kwargs)
        act_in(env)
        return env

    utils.create_test_env = rl_zoo3.create_test_env = create_test_env


def _check_schedule(name: str, value: str) -> None:
    try:
        kind, initial_value = value.split("_")
        is_linear = kind == "lin" and float(initial_value) >= 0.0
    except ValueError:
        is_linear = False
    if not is_linear:
        raise ValueError(
            f"{name}: {value!r} is neither a number nor a linear schedule such as lin_1e-3 "
            "(to YAML, 1e-3 is text: write 1.0e-3)."
        )


def sample_vpg_params(trial: "Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """Sample arguments of VanillaPG's constructor.

    :param trial: Optuna's
    :param n_actions: dimension of a Box action space, else 0
    :param n_envs: parallel environments
    :param additional_args: what on-policy algorithms have no use for
    :return: by name; schedules as rl-zoo3 makes them of strings
    """
    return _to_arguments({**_suggest_weights(trial), **_suggest_common(trial, n_actions), **_suggest_rates(trial)})


def sample_reinforce_params(trial: "Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """Sample arguments of ReinforceBaseline's constructor.

    :param trial: Optuna's
    :param n_actions: dimension of a Box action space, else 0
    :param n_envs: parallel environments
    :param additional_args: what on-policy algorithms have no use for
    :return: by name; schedules as rl-zoo3 makes them of strings
    """
    # A single environment has no other episode at the same time to compare with
    leave_one_out = ["leave_one_out"] if n_envs > 1 else []
    own = {
        "baseline": trial.suggest_categorical("baseline", ["value", *leave_one_out, "running_mean", "optimal"]),
        "rollout": trial.suggest_categorical("rollout", ["n_steps", "n_episodes"]),
        "n_episodes_pow": trial.suggest_int("n_episodes_pow", 0, 4),
    }
    return _to_arguments({**own, **_suggest_common(trial, n_actions), **_suggest_rates(trial)})


def sample_npg_params(trial: "Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """Sample arguments of NaturalPG's constructor.

    :param trial: Optuna's
    :param n_actions: dimension of a Box action space, else 0
    :param n_envs: parallel environments
    :param additional_args: what on-policy algorithms have no use for
    :return: by name; schedules as rl-zoo3 makes them of strings
    """
    own = {
        "target_kl": trial.suggest_float("target_kl", 1e-3, 0.1, log=True),
        "kl_schedule": trial.suggest_categorical("kl_schedule", ["constant", "linear"]),
        "cg_max_steps": trial.suggest_int("cg_max_steps", 5, 20),
        "cg_damping": trial.suggest_float("cg_damping", 1e-3, 0.3, log=True),
    }
    return _to_arguments({**own, **_suggest_weights(trial), **_suggest_common(trial, n_actions)})


def _suggest_weights(trial: "Trial") -> dict[str, Any]:
    return {"weights": trial.suggest_categorical("weights", ["gae", "reward_to_go", "return"])}


def _suggest_rates(trial: "Trial") -> dict[str, Any]:
    return {
        "lr_schedule": trial.suggest_categorical("lr_schedule", ["constant", "linear"]),
        "critic_learning_rate": trial.suggest_float("critic_learning_rate", 1e-4, 1e-2, log=True),
        "max_grad_norm": trial.suggest_float("max_grad_norm", 0.3, 2.0),
    }


def _suggest_common(trial: "Trial", n_actions: int) -> dict[str, Any]:
    # All of them in every trial, in use or not: the multivariate TPE sampler needs a search space that does not change
    params: dict[str, Any] = {
        "n_steps_pow": trial.suggest_int("n_steps_pow", 4, 10),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 6, 10),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-4, 0.1, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 1e-3, 0.2, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 1, 20),
        "ent_coef": trial.suggest_categorical("ent_coef", [0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2]),
        "normalize_advantage": trial.suggest_categorical("normalize_advantage", [True, False]),
        "net_arch": trial.suggest_categorical("net_arch", ["tiny", "small", "medium"]),
        "activation_fn": trial.suggest_categorical("activation_fn", ["tanh", "relu"]),
    }
    if _has_memory.get():
        params["lstm_hidden_size"] = trial.suggest_categorical("lstm_hidden_size", [32, 64, 128, 256])
        params["enable_critic_lstm"] = trial.suggest_categorical("enable_critic_lstm", [True, False])
    if n_actions > 0:
        params["log_std_init"] = trial.suggest_float("log_std_init", -3.0, 0.5)
    # Display true values
    trial.set_user_attr("gamma", 1 - params["one_minus_gamma"])
    trial.set_user_attr("gae_lambda", 1 - params["one_minus_gae_lambda"])
    trial.set_user_attr("n_steps", 2 ** params["n_steps_pow"])
    trial.set_user_attr("batch_size", 2 ** params["batch_size_pow"])
    return params


def convert_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters of one of our algorithms, as a YAML file would give them, from the values of a trial.

    :param sampled_params: ``trial.params``
    :return: hyperparameters; a linear schedule is the string ``lin_…``
    """
    from rl_zoo3.hyperparams_opt import convert_onpolicy_params

    params = dict(sampled_params)
    linear = {
        name
        for name, kind in (("learning_rate", "lr_schedule"), ("target_kl", "kl_schedule"))
        if params.pop(kind, None) == "linear"
    }
    by_episodes = params.pop("rollout", "n_steps") == "n_episodes"
    n_episodes = 2 ** params.pop("n_episodes_pow", 0)
    of_policy = {
        name: params.pop(name) for name in ("log_std_init", "lstm_hidden_size", "enable_critic_lstm") if name in params
    }
    hyperparams: dict[str, Any] = convert_onpolicy_params(params)
    # Named in any case: n_episodes of the YAML file would override the sampled n_steps
    hyperparams["n_episodes"] = n_episodes if by_episodes else None
    for name in linear:
        hyperparams[name] = f"lin_{hyperparams[name]}"
    hyperparams["policy_kwargs"].update(of_policy)
    return hyperparams


def _to_arguments(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """What :func:`convert_params` returns, with the schedules rl-zoo3 makes of the strings of a YAML file."""
    from rl_zoo3.exp_manager import ExperimentManager

    arguments: dict[str, Any] = ExperimentManager._preprocess_schedules(convert_params(sampled_params))
    return arguments
