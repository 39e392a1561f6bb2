"""Checks of the constructors' arguments: ``TypeError`` or ``ValueError`` in one sentence that says what to do."""

import difflib
import inspect
import io
import json
import zipfile
from collections.abc import Iterable
from contextlib import nullcontext
from math import inf, isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg.finite import is_rate
from sb3_pg.loading.errors import describe
from sb3_pg.policies import find_kind
from sb3_pg.rollouts.buffers import EpisodeRolloutBuffer
from sb3_pg.vec_env import skipped_rows

if TYPE_CHECKING:
    from sb3_pg.algorithms.model import Model
    from sb3_pg.rollouts.collect import RolloutAlgorithm

# Of rates, coefficients and counts: beyond any use, and far from where float32 ends
_LARGEST = 1e6
# Arguments of A2C and PPO, and what there is in their place
_ELSEWHERE = {
    "vf_coef": "the critic has an optimizer of its own, with critic_learning_rate.",
    "n_epochs": "there is one policy step a rollout; the critic's passes are n_critic_updates.",
    "clip_range": "one step on fresh data needs no clipping.",
    "clip_range_vf": "one step on fresh data needs no clipping.",
    "target_kl": "steps are not cut by their KL; NaturalPG's have the size of its target_kl.",
    "lr": "it is learning_rate.",
    "critic_learning_rate": "the critic's rate is learning_rate; the policy's steps have the size of target_kl.",
    "max_grad_norm": "the policy's steps have the size of target_kl.",
    "use_rms_prop": "the optimizer is chosen by policy_kwargs=dict(optimizer_class=…).",
    "rms_prop_eps": "the optimizer is chosen by policy_kwargs=dict(optimizer_class=…, optimizer_kwargs=…).",
}


def check_keywords(cls: type, names: Iterable[str], argument: str = "", given: Iterable[str] = ()) -> None:
    """Refuse keywords that a constructor does not take, and say what takes their place.

    :param cls: the class; one that takes any keywords refuses none
    :param names: of the keywords
    :param argument: dictionary that they stand in, if they do
    :param given: parameters that the constructor gets from elsewhere
    :raises TypeError: naming all of them
    """
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [name for name in parameters if name not in ("self", "_init_setup_model", *given)]
    elsewhere = {} if argument else _ELSEWHERE
    unknown = [name for name in names if name not in parameters or name in ("self", *given)]
    if unknown:
        hints = " ".join(f"{name!r}: {elsewhere.get(name) or suggest(name, known)}" for name in unknown)
        raise TypeError(f"{argument and argument + ': '}{cls.__name__} does not take {hints}")


def suggest(name: str, known: list[str]) -> str:
    """What may have been meant by a name that is not known."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}."


def check_before_sb3(policy: Any, names: Iterable[str], env: Any, of_sb3: dict[str, Any]) -> None:
    """Check what SB3's constructor would fail on.

    :param policy: class of policies, or its name
    :param names: of policies
    :param env: environment, or its name
    :param of_sb3: arguments that are passed on to SB3
    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if an argument is out of range
    """
    if isinstance(policy, str) and policy not in names:
        raise ValueError(f"policy must be a class or one of {', '.join(names)}, not {policy!r}.")
    if not (env is None or isinstance(env, str | gym.Env | VecEnv | gym.vector.VectorEnv)):
        raise TypeError(f"env must be an environment, vector environments or a registered name, not {env!r}.")
    if isinstance(env, str):
        try:
            gym.spec(env)
        except (gym.error.Error, ModuleNotFoundError) as error:
            raise ValueError(f"env: {error}") from error
    device, seed, log = of_sb3.get("device", "auto"), of_sb3.get("seed"), of_sb3.get("tensorboard_log")
    try:
        get_device(device)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f'device must be "auto" or one of torch\'s, such as "cpu" or "cuda:0", not {device!r}.') from error
    if seed is not None:
        check_integer("seed", seed, 0, " (None for any)")
        if seed >= 2**32:
            raise ValueError(f"seed must be below 2**32, not {seed}.")
    if not (log is None or isinstance(log, str | Path)):
        raise TypeError(f"tensorboard_log must be a folder, or None for no log, not {log!r}.")
    for name in ("policy_kwargs", "rollout_buffer_kwargs"):
        value = of_sb3.get(name)
        if not (value is None or (isinstance(value, dict) and all(isinstance(key, str) for key in value))):
            raise TypeError(f"{name} must be a dictionary of keyword arguments, or None, not {value!r}.")
    check_integer("verbose", of_sb3.get("verbose", 0), 0)
    check_integer("stats_window_size", of_sb3.get("stats_window_size", 100), 1)
    if of_sb3.get("stats_window_size", 100) >= 2**31:
        raise ValueError(f"stats_window_size must be below 2**31, not {of_sb3['stats_window_size']}.")
    if not isinstance(of_sb3.get("use_sde", False), bool | np.bool_):
        raise TypeError(f"use_sde must be True or False, not {of_sb3['use_sde']!r}.")


def check_arguments(model: "Model") -> None:
    """Check what all algorithms take.

    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if an argument is out of range or does not go with another
    """
    find_kind(model.policy_class)
    if not isinstance(model.weights, str) or model.weights not in ("return", "reward_to_go", "gae"):
        raise ValueError(f'weights must be "return", "reward_to_go" or "gae", not {model.weights!r}.')
    check_integer("n_steps", model.n_steps, 1)
    if model.n_steps >= 2**31:
        raise ValueError(f"n_steps must be below 2**31, not {model.n_steps}.")
    if model.batch_size is not None:
        check_integer("batch_size", model.batch_size, 1, " (None for what fits the rollout)")
    check_count("n_critic_updates", model.n_critic_updates, 0)
    if model.n_episodes is not None:
        check_count("n_episodes", model.n_episodes, 1, " (None for rollouts of n_steps)")
    check_integer("sde_sample_freq", model.sde_sample_freq, -1)
    for name in ("discounted_state_distribution", "normalize_advantage", "normalize_targets"):
        if not isinstance(getattr(model, name), bool | np.bool_):
            raise TypeError(f"{name} must be True or False, not {getattr(model, name)!r}.")
    for name in ("gamma", "gae_lambda"):
        check_number(name, getattr(model, name), 0.0, 1.0)
    if callable(model.ent_coef):
        _check_schedule("ent_coef", model.ent_coef, -inf)
    else:
        check_number("ent_coef", model.ent_coef, -_LARGEST, _LARGEST)
    if model.max_grad_norm is not None and not (isinstance(model.max_grad_norm, Real) and model.max_grad_norm > 0):
        raise ValueError(f"max_grad_norm must be positive, or None for no clipping, not {model.max_grad_norm!r}.")
    check_rate("learning_rate", model.learning_rate)
    if model.critic_learning_rate is not None:
        check_rate("critic_learning_rate", model.critic_learning_rate)
    if model.weights == "return" and model.discounted_state_distribution:
        raise ValueError(
            'weights="return" takes no γ^t: R(τ) is already discounted, and R(τ)·γ^t is biased. '
            'Use weights="reward_to_go" with discounted_state_distribution=True.'
        )
    optimizer_class = model.policy_kwargs.get("optimizer_class")
    if isinstance(optimizer_class, type) and issubclass(optimizer_class, th.optim.LBFGS | th.optim.SparseAdam):
        raise ValueError(
            f"optimizer_class: {optimizer_class.__name__} needs what a policy gradient step has not, a loss to evaluate again "
            "or sparse gradients: use another of torch's optimizers."
        )
    _check_buffer_class(model)
    _check_kwargs(model)
    _check_spaces(model)


def _check_kwargs(model: "Model") -> None:
    """Refuse what the policy and the rollout buffer would not take, or get from the arguments."""
    of_policy = [name for name in model.policy_kwargs if name != "critic_only_keys"]
    given: tuple[str, ...] = ("observation_space", "action_space", "lr_schedule", "use_sde")
    check_keywords(model.policy_class, of_policy, "policy_kwargs", given)
    given = ("buffer_size", "observation_space", "action_space", "device", "gamma", "gae_lambda", "n_envs")
    check_keywords(
        model.rollout_buffer_class or EpisodeRolloutBuffer, model.rollout_buffer_kwargs, "rollout_buffer_kwargs", given
    )


def _check_spaces(model: "Model") -> None:
    """Refuse spaces that SB3's policies would fail on later, with an error of torch's."""
    if isinstance(model.action_space, spaces.Box) and 0 in model.action_space.shape:
        raise ValueError(f"The action space {model.action_space} is empty: there is nothing to choose.")
    policy_class, space = model.policy_class, model.observation_space
    base: Any = getattr(find_kind(policy_class), "base", None)
    if policy_class.extract_features is not base.extract_features:
        return  # the user's own may know what to do with them
    default = inspect.signature(policy_class.__init__).parameters.get("features_extractor_class")
    extractor = model.policy_kwargs.get("features_extractor_class", default and default.default)
    if extractor is CombinedExtractor and not isinstance(space, spaces.Dict):
        raise ValueError(
            f"{policy_class.__name__} takes dictionaries of observations, and these are {' '.join(str(space).split())}: "
            'use "MlpPolicy" or its kind, or "CnnPolicy" for images.'
        )
    own_layers = extractor not in (FlattenExtractor, CombinedExtractor, NatureCNN)
    for key, part in space.spaces.items() if isinstance(space, spaces.Dict) else [("", space)]:
        name = " ".join(f"{part} of {key!r}".split()) if key else " ".join(str(part).split())
        if isinstance(part, spaces.Discrete | spaces.MultiDiscrete) and np.any(getattr(part, "start", 0)):
            what = f"Observations of {name} do not count from 0"
        elif isinstance(part, spaces.MultiDiscrete) and part.nvec.ndim != 1:
            what = f"Observations of {name} are not of one dimension"
        elif isinstance(part, spaces.Box) and part.shape == () and not own_layers:
            what = f"Observations of {name} have no dimension"
        elif isinstance(part, spaces.Box) and 0 in part.shape and not own_layers:
            raise ValueError(f"Observations of {name} are empty: give the policy something to look at, such as a constant.")
        elif not isinstance(part, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            raise ValueError(f"Observations of {name} are not supported: use Box, Discrete, MultiDiscrete or MultiBinary.")
        else:
            continue
        raise ValueError(
            f"{what}, which SB3's policies cannot take: wrap the environment in gymnasium.wrappers.FlattenObservation "
            "(dictionaries become vectors, for MlpPolicy), or give the policy an extract_features of its own."
        )


def _check_buffer_class(model: "Model") -> None:
    buffer_class = model.rollout_buffer_class
    if buffer_class is None:
        return
    if not (isinstance(buffer_class, type) and issubclass(buffer_class, RolloutBuffer)):
        raise TypeError(f"rollout_buffer_class must be a subclass of SB3's RolloutBuffer, not {buffer_class!r}.")
    if isinstance(model.observation_space, spaces.Dict) and not issubclass(buffer_class, DictRolloutBuffer):
        raise ValueError(
            f"rollout_buffer_class must be a subclass of SB3's DictRolloutBuffer for dictionary observations, such as "
            f"sb3_pg.buffers.EpisodeDictRolloutBuffer, not {buffer_class.__name__}."
        )
    if find_kind(model.policy_class).has_context and not issubclass(buffer_class, EpisodeRolloutBuffer):
        raise ValueError(
            f"{buffer_class.__name__} does not keep what {model.policy_class.__name__} needs beside the observations: "
            "rollout_buffer_class must be a subclass of sb3_pg.buffers.EpisodeRolloutBuffer."
        )
    needs_episodes = model.whole_episodes or model.discounted_state_distribution
    if needs_episodes and not issubclass(buffer_class, EpisodeRolloutBuffer):
        raise ValueError(
            f"{buffer_class.__name__} holds rollouts of n_steps and does not know where episodes begin: for whole "
            "episodes or discounted_state_distribution=True, rollout_buffer_class must be a subclass of "
            "sb3_pg.buffers.EpisodeRolloutBuffer."
        )


def require_env(model: "RolloutAlgorithm") -> None:
    """Refuse to go on without an environment.

    :raises ValueError: saying how to give one
    """
    if model.env is None:
        name = type(model).__name__
        raise ValueError(f"There is no environment to learn from: pass env to {name} or {name}.load, or call set_env.")


def check_env(model: "RolloutAlgorithm") -> None:
    """Refuse environments that cannot be trained on; a model that is loaded may still be evaluated there.

    :raises ValueError: if there are none, they lack what the policy is shown, or whole episodes cannot begin with a reset
    """
    require_env(model)
    assert model.env is not None
    model.kind.check_env(model.env)
    skipped_rows(model.env, isinstance(model.rollout_buffer, EpisodeRolloutBuffer))
    if not model.whole_episodes:
        return
    try:
        goes_on = bool(np.any(model.env.env_is_wrapped(EpisodicLifeEnv)))
    except (AttributeError, NotImplementedError):  # not every vector environment knows its wrappers
        goes_on = False
    if goes_on:
        raise ValueError(
            "Rollouts of whole episodes begin with a reset, and EpisodicLifeEnv goes on with the life in progress "
            'instead: use VanillaPG(weights="gae", n_episodes=None), or make the environments with '
            "terminal_on_life_loss=False."
        )


def check_steps(total_timesteps: Any) -> None:
    """Refuse what ``learn`` cannot count to."""
    if not (isinstance(total_timesteps, Real) and float(total_timesteps) >= 0):
        raise ValueError(f"total_timesteps must be a number of environment steps, not {total_timesteps!r}.")


def check_load(
    algorithm: type["Model"], path: str | Path | io.BufferedIOBase, names: set[str], read: io.BytesIO | None = None
) -> None:
    """Refuse a file that another algorithm saved, and keywords of ``load`` that would change nothing.

    SB3 takes any keywords, and sets attributes of these names. What counts are the constructor's parameters and what else the
    model was saved with, such as ``n_envs``; not what only the base classes' constructors take (``vf_coef``), nor the policy,
    which is the saved one.

    :param algorithm: class of ours whose ``load`` was called
    :param path: file
    :param names: of the keywords
    :param read: what was understood of the file, if it is not trusted
    :raises ValueError: if the file lacks what the algorithm would have saved
    :raises TypeError: naming the keyword that may have been meant
    """
    own: list[str] = []
    inherited: list[str] = []
    is_own = True
    for cls in algorithm.__mro__:
        if "__init__" in vars(cls) and cls is not object:
            parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
            (own if is_own else inherited).extend(parameters)
            is_own = is_own and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = [name for name in own if name not in ("self", "policy", "_init_setup_model")]
    source = read or path
    is_open = isinstance(source, io.IOBase)
    try:
        with (
            nullcontext(source) if is_open else open_path(source, "r", suffix="zip") as file,
            zipfile.ZipFile(file) as archive,
        ):
            saved = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, KeyError):
        return  # SB3 says that it is no model
    marks = {"weights", *({"baseline", "cg_max_steps"} & {*own, *inherited})}
    if not marks <= saved.keys():
        raise ValueError(
            f"{describe(path)} was not saved by {algorithm.__name__}: load it with the class that saved it. Its policy goes "
            'into a new model by model.set_parameters({"policy": other.policy.state_dict()}, exact_match=False).'
        )
    for name in sorted(names - set(known) - (saved.keys() - set(inherited))):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}, and attributes of the saved model."
        raise TypeError(f"{algorithm.__name__}.load() does not take {name!r}: {hint}")


def check_integer(name: str, value: Any, minimum: int, hint: str = "") -> None:
    """Refuse what is no integer of at least ``minimum``; ``hint`` is added to the name."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer{hint}, not {value!r}.")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}{hint}, not {value}.")


def check_count(name: str, value: Any, minimum: int, hint: str = "") -> None:
    """Refuse what is no integer of at least ``minimum``, or one that nothing counts to within a lifetime."""
    check_integer(name, value, minimum, hint)
    if value > _LARGEST:
        raise ValueError(f"{name} must be at most {_LARGEST:,.0f}, or no update would end, not {value}.")


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Refuse what is no finite number in [``low``, ``high``]."""
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}.")
    if not (low <= float(value) <= high and isfinite(value)):
        raise ValueError(f"{name} must be a finite number in [{low:g}, {high:g}], not {value!r}.")


def check_rate(name: str, value: Any) -> None:
    """Refuse what is neither a schedule nor a number from 0 to 10⁶."""
    if callable(value):
        _check_schedule(name, value, 0.0)
    elif not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a float or a schedule (a function of the progress remaining), not {value!r}.")
    else:
        check_number(name, value, 0.0, _LARGEST)


def _check_schedule(name: str, schedule: Any, low: float) -> None:
    """Refuse a function that returns no finite number of at least ``low`` at the start of training."""
    what = f"{name} must be a number, or a function of the progress remaining that returns finite ones"
    try:
        value = schedule(1.0)
    except Exception as error:
        raise TypeError(f"{what}: {schedule!r} fails ({error}).") from error
    if not is_rate(value, low):
        raise ValueError(f"{what}, but {schedule!r} returned {value!r}.")
