"""``sb3-pg train --vec-env gymnasium`` and ``--vec-env envpool``: rl-zoo3 knows SB3's vector environments alone."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg.replacing import replacing
from sb3_pg.vec_env import GymnasiumVecEnv

_NAMES = ("gymnasium", "envpool")


def take_vec_env(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Which of our vector environments a command asks for, if any, and its options as rl-zoo3 takes them.

    :raises ValueError: if there are none of that name
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--vec-env")
    options, others = parser.parse_known_args(arguments)
    if options.vec_env not in (None, "dummy", "subproc", *_NAMES):
        raise ValueError(f"--vec-env must be one of dummy, subproc, {', '.join(_NAMES)}, not {options.vec_env!r}.")
    return (options.vec_env, others) if options.vec_env in _NAMES else (None, arguments)


@contextmanager
def training_in(name: str | None) -> Iterator[None]:
    """Have rl-zoo3 train, and evaluate, in these environments.

    :param name: ``"gymnasium"``, ``"envpool"``, or None for what rl-zoo3 makes
    """
    from rl_zoo3 import exp_manager

    if name is None:
        yield
        return
    manager: Any = exp_manager.ExperimentManager
    init, create_envs = manager.__init__, manager.create_envs

    @wraps(init)
    def initialise(self: Any, args: Any, *rest: Any, **kwargs: Any) -> None:
        args.vec_env = name  # for args.yml
        init(self, args, *rest, **kwargs)

    @wraps(create_envs)
    def create(self: Any, n_envs: int, eval_env: bool = False, no_log: bool = False) -> Any:
        def make(make_env: Callable[..., gym.Env], **kwargs: Any) -> VecEnv:
            if name == "envpool":
                return _make_env_pool(self.env_name.gym_id, eval_env=eval_env, **kwargs)
            # Evaluations, normalisers and stacks of frames know no rows that are resets
            is_plain = not (eval_env or self.normalize or self.frame_stack or self.vec_env_wrapper)
            return _make_gymnasium(self.env_name.gym_id, make_env, is_plain, **kwargs)

        with replacing((exp_manager, "make_vec_env", make)):
            return create_envs(self, n_envs, eval_env, no_log)

    with replacing((manager, "__init__", initialise), (manager, "create_envs", create)):
        yield


def _make_gymnasium(env_id: str, make_env: Callable[..., gym.Env], may_be_native: bool, **kwargs: Any) -> VecEnv:
    """The environment's own vectorisation, if it has one and nothing goes around single environments, or a synchronous one."""
    if may_be_native and gym.spec(env_id).vector_entry_point is not None and kwargs["wrapper_class"] is None:
        vector = gym.make_vec(env_id, kwargs["n_envs"], "vector_entry_point", **(kwargs["env_kwargs"] or {}))
        env = GymnasiumVecEnv(vector, monitor_file=_monitor_file(kwargs["monitor_dir"]))
        env.seed(kwargs["seed"])
        return env

    def vectorise(env_fns: Sequence[Callable[[], gym.Env]], **_: Any) -> VecEnv:
        return GymnasiumVecEnv(SyncVectorEnv(env_fns))

    return make_vec_env(make_env, **{**kwargs, "vec_env_cls": vectorise})


def _make_env_pool(env_id: str, eval_env: bool, **kwargs: Any) -> VecEnv:
    try:
        import envpool
    except ModuleNotFoundError as error:
        raise ValueError("--vec-env envpool needs EnvPool: pip install '.[envpool]' in a checkout of sb3_pg") from error
    if env_id not in envpool.list_all_envs():
        raise ValueError(f"EnvPool has no {env_id}: train it with --vec-env gymnasium, dummy or subproc.")
    if kwargs["wrapper_class"] is not None:
        raise ValueError("EnvPool's environments take no env_wrapper: use --vec-env gymnasium, dummy or subproc.")
    seed = (kwargs["seed"] or 0) + (1_000_000 if eval_env else 0)  # of the first; those that follow have the next
    vector: Any = envpool.make(
        env_id, env_type="gymnasium", num_envs=kwargs["n_envs"], seed=seed % 2**31, **(kwargs["env_kwargs"] or {})
    )
    return GymnasiumVecEnv(vector, monitor_file=_monitor_file(kwargs["monitor_dir"]))


def _monitor_file(folder: str | None) -> str | None:
    return None if folder is None else str(Path(folder) / "0")
