"""What each of several processes does in the tests of data-parallel training: ``torchrun … ranks.py TASK FOLDER``."""

import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from helpers import VARIANTS
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pg import VanillaPG, distributed
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.policies.steps import map_obs

#: Environments of a rollout that is cut by environment, unequally
N_ENVS = 5
LSTM = dict(lstm_hidden_size=8)
CASES: list[tuple[str, type[PolicyGradient], dict[str, Any]]] = [
    *(("MlpPolicy", cls, kwargs) for cls, kwargs in VARIANTS if "sub_sampling_factor" not in kwargs),
    *(("MlpPolicy", cls, {**kwargs, "normalize_advantage": False, "discounted_state_distribution": True})
      for cls, kwargs in VARIANTS if "sub_sampling_factor" not in kwargs and kwargs.get("weights") != "return"),
    *((policy, cls, kwargs) for policy in ("MlpLstmPolicy", "MaskableMlpPolicy", "MaskableMlpLstmPolicy")
      for cls, kwargs in (VARIANTS[0], VARIANTS[5], (VARIANTS[8][0], dict(weights="reward_to_go", n_steps=16)))),
]  # fmt: skip


class Masked(gym.Wrapper):
    """CartPole in which the cart is not pushed left where it is left."""

    def action_masks(self) -> np.ndarray:
        return np.array([self.unwrapped.state[0] > -0.02, True])


class Double(FlattenExtractor):
    """Features in double precision, whatever the observations are."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations).double()


def make_model(case: int, n_envs: int, double: bool) -> PolicyGradient:
    policy, cls, kwargs = CASES[case]
    masked = policy.startswith("Maskable")
    env = make_vec_env("CartPole-v1", n_envs, wrapper_class=Masked if masked else None)
    policy_kwargs: dict[str, Any] = dict(net_arch=[8], optimizer_class=th.optim.SGD)
    if "Lstm" in policy:
        policy_kwargs |= LSTM
    if double:
        policy_kwargs["features_extractor_class"] = Double
    rate: dict[str, Any] = dict(learning_rate=0.05, batch_size=10**6, n_critic_updates=2)
    model = cls(policy, env, seed=3, device="cpu", policy_kwargs=policy_kwargs, **{**rate, **kwargs})
    if double:
        model.policy.double()
    return model


def learn_from(model: PolicyGradient, record: dict[str, Any], envs: slice) -> th.Tensor:
    """The step that the columns of recorded rollouts make, flat."""
    model.set_logger(Logger(None, []))
    start = th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()
    for rollout in record["rollouts"]:
        buffer, rows = model.rollout_buffer, rollout["rows"]
        buffer.reset()
        for t in range(len(rollout["rewards"])):
            at = {name: map_obs(lambda x, t=t: x[t, envs], x) for name, x in rows.items()}
            values, log_probs = th.as_tensor(at.pop("values")), th.as_tensor(at.pop("log_probs"))
            buffer.add(at.pop("observations"), at.pop("actions"), at.pop("rewards"), at.pop("episode_starts"), values,
                       log_probs, at.pop("timesteps"), at.pop("mask"), at.pop("context"))  # fmt: skip
        buffer.trim()
        terminal, dones = rollout["terminal_values"][:, envs], rollout["dones"][envs]
        model._finish_rollout(buffer, rollout["last_values"][envs], terminal, dones)
        model.train()
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach() - start


def steps_are_equal(folder: Path) -> None:
    rank, size, worst = distributed.rank(), distributed.size(), 0.0
    for case, record in enumerate(pickle.loads((folder / "records.pkl").read_bytes())):
        envs = slice(rank, None, size)
        model = make_model(case, len(range(N_ENVS)[envs]), double=record["double"])
        model._setup_learn(1)
        step, expected = learn_from(model, record, envs), record["step"]
        error = float((step - expected).norm() / expected.norm())
        assert expected.norm() > 1e-4
        assert error < record["tolerance"], (CASES[case], error)
        worst = max(worst, error)
    print(f"largest relative error {worst}")


class Stop(BaseCallback):
    def __init__(self, rank: int):
        super().__init__()
        self.rank = rank

    def _on_step(self) -> bool:
        return not (self.n_calls == 40 and distributed.rank() == self.rank)


def trainings_are_alike(folder: Path) -> None:
    for cls, kwargs in VARIANTS:
        env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0))
        model = cls("MlpPolicy", env, n_critic_updates=2, batch_size=48, policy_kwargs=dict(net_arch=[8]), **kwargs)  # no seed
        model.learn(600)
        own = th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().numpy()
        obs: Any = env.obs_rms
        state = [own.tobytes(), model.num_timesteps, obs.mean.tobytes(), obs.var.tobytes(), obs.count, env.ret_rms.var,
                 [x["r"] for x in model.ep_info_buffer], model.target_moments]  # fmt: skip
        first, *others = distributed.gather_items([state])
        assert all(other == first for other in others), (cls, kwargs)
        assert model.num_timesteps >= 600
        # What they have seen is not the same
        seen = distributed.gather_items(
            [model.rollout_buffer.rewards.shape, env.returns.tolist(), float(model._last_obs.sum())]
        )
        assert all(other != seen[0] for other in seen[1:])
        # Every step, and the reset before the first one; whole episodes are reset more often
        assert obs.count - 1e-4 >= model.num_timesteps + 2 * distributed.size() - 1e-6

    # One rank stops all; SB3's callbacks act on rank 0
    model = VanillaPG("MlpPolicy", make_vec_env("CartPole-v1", 2), n_steps=64)
    evaluation = EvalCallback(make_vec_env("CartPole-v1", 1), eval_freq=32, n_eval_episodes=1, verbose=0)
    model.learn(10**6, callback=[evaluation, Stop(distributed.size() - 1)])
    assert model._n_updates == 0
    assert (evaluation.n_calls > 0) == (distributed.rank() == 0)
    # Rank 0 alone writes
    model.tensorboard_log = str(folder / "logs")
    model.learn(200, log_interval=1)
    model.save(folder / f"model_of_{distributed.rank()}")


def stream_of_a_seed(folder: Path) -> None:
    """The same seed gives the same run twice."""
    runs = []
    for _ in range(2):
        model = VanillaPG("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), seed=5, n_steps=32)
        model.learn(400)
        runs.append(th.nn.utils.parameters_to_vector(model.policy.parameters()).detach())
    assert th.equal(*runs)


class Fault(BaseCallback):
    """Something happens on rank 1, in the third rollout."""

    def __init__(self, fault: str):
        super().__init__()
        self.fault = fault

    def _on_step(self) -> bool:
        if distributed.rank() == 1 and self.n_calls == 80:
            if self.fault == "nan":
                self.locals["rewards"][0] = np.nan
            if self.fault == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "drift":
                next(self.model.policy.parameters()).data[0] += 1.0
        return True


def fault(folder: Path, name: str) -> None:
    model = VanillaPG("MlpPolicy", make_vec_env("CartPole-v1", 2), n_steps=32)
    try:
        model.learn(10**9, callback=Fault(name))
    except BaseException as error:
        (folder / f"{name}_{distributed.rank()}").write_text(f"{type(error).__name__.lstrip('_')}: {error}")
        raise


if __name__ == "__main__":
    th.set_num_threads(1)
    if sys.argv[1] == "checks":
        for check in (steps_are_equal, trainings_are_alike, stream_of_a_seed):
            check(Path(sys.argv[2]))
        (Path(sys.argv[2]) / f"done_{distributed.rank()}").touch()
    else:
        fault(Path(sys.argv[2]), sys.argv[1])
