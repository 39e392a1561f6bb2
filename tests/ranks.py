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
from envs import TabularMDP, TabularVecEnv
from helpers import VARIANTS
from oracle import DISCOUNTED, EXACT, QUOTA, SIGNIFICANCE, WINDOW, mean_updates, tabular_model, tabular_p_value
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG, distributed
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.algorithms.ranks import named_tensors
from sb3_pg.policies.steps import map_obs
from sb3_pg.replacing import replacing

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


def a_hundred_updates(folder: Path) -> None:
    """Parameters, buffers and optimizer states stay equal bit for bit, in processes of environments as well."""
    for cls, kwargs in ((VanillaPG, {}), (ReinforceBaseline, {"n_episodes": None}), (NaturalPG, {})):
        env = make_vec_env("CartPole-v1", 2, seed=0, vec_env_cls=SubprocVecEnv if cls is VanillaPG else None)
        model = cls("MlpPolicy", env, n_steps=4, policy_kwargs=dict(net_arch=[8]), **kwargs)
        while model._n_updates < 100:
            model.learn(2 * 4 * 100 * distributed.size(), reset_num_timesteps=False)
        state = {name: x.numpy().tobytes() for name, x in named_tensors(model).items()}
        assert len(state) > 10
        first, *others = distributed.gather_items([state])
        assert all(other == first for other in others), cls
        env.close()


class Normed(FlattenExtractor):
    """Batch norm of the observations."""

    def __init__(self, observation_space: gym.spaces.Box):
        super().__init__(observation_space)
        self.norm = th.nn.BatchNorm1d(observation_space.shape[0])

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.norm(super().forward(observations))


def batch_norm_is_of_all(folder: Path) -> None:
    """Its running statistics are those of one process that was shown all steps."""
    policy_kwargs = dict(features_extractor_class=Normed, net_arch=[8])
    model = VanillaPG("MlpPolicy", make_vec_env("CartPole-v1", 2), n_steps=32, policy_kwargs=policy_kwargs)
    model.learn(1)
    seen = distributed.gather(model.rollout_buffer.observations.reshape(-1, 4))
    norm = model.policy.features_extractor.norm
    assert len(seen) == 64 * distributed.size()
    np.testing.assert_allclose(norm.running_mean, 0.1 * seen.mean(axis=0), atol=1e-5)
    assert not np.allclose(norm.running_mean, 0.1 * model.rollout_buffer.observations.reshape(-1, 4).mean(axis=0), atol=1e-6)


def files_of_monitor(folder: Path) -> None:
    """Files that all ranks have opened under one name are parted."""
    env = make_vec_env("CartPole-v1", 2, monitor_dir=str(folder / "monitor"))
    VanillaPG("MlpPolicy", env, n_steps=64).learn(600)
    env.close()


def oracle_holds(folder: Path) -> None:
    """Updates of all ranks together are unbiased, and vary as those of one process with all the environments."""
    size, rank = distributed.size(), distributed.rank()

    def make_env(mdp: Any, n_envs: int, seed: int) -> TabularVecEnv:
        return TabularVecEnv(mdp, n_envs // size, seed + 1000 * rank)

    extent = QUOTA if size == 2 else WINDOW
    for cls, kwargs in EXACT[size % 2 :: 2]:
        kwargs = {**kwargs, "n_rollouts": 60}
        assert tabular_p_value(cls, 1, 24, make_env=make_env, **kwargs, **extent) > SIGNIFICANCE, (cls, kwargs)
    # It has power
    assert (
        tabular_p_value(VanillaPG, 1, 24, direction_only=True, weights="reward_to_go", make_env=make_env, **QUOTA)
        < SIGNIFICANCE
    )
    updates = tabular_updates(24, make_env)
    expected = float((folder / "variance").read_text())
    assert 0.75 < np.trace(np.cov(updates.T)) / expected < 1.33  # played twice, the same episodes would double it


def tabular_updates(n_envs: int, make_env: Any = TabularVecEnv) -> np.ndarray:
    model = tabular_model(VanillaPG, TabularMDP(1), 1, n_envs, make_env, weights="reward_to_go", **DISCOUNTED, **QUOTA)
    return mean_updates(model, 200, lambda: model.policy.action_net.weight.detach()[:-1].flatten())


def loaded_by_more(folder: Path) -> None:
    """A model that two processes have saved goes on in four."""
    model = VanillaPG.load(folder / "model_of_0", env=make_vec_env("CartPole-v1", 2))
    model.learn(300)
    (folder / f"went_on_{distributed.rank()}").touch()


def stream_of_a_seed(folder: Path) -> None:
    """The same seed gives the same run twice."""
    runs = []
    for _ in range(2):
        model = VanillaPG("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), seed=5, n_steps=32)
        model.learn(400)
        runs.append(th.nn.utils.parameters_to_vector(model.policy.parameters()).detach())
    assert th.equal(*runs)


class AtStart(BaseCallback):
    """What has been counted at the beginning of each rollout."""

    def __init__(self, counted: list[Any]):
        super().__init__()
        self.counted, self.at_start = counted, []

    def _on_rollout_start(self) -> None:
        self.at_start.append(len(self.counted))

    def _on_step(self) -> bool:
        return True


def few_sums(folder: Path) -> None:
    """A rollout takes one a minibatch of the critic and nine more: each is a wait for the slowest rank."""
    size, call, sums = distributed.size(), distributed._call, []

    def counted(*arguments: Any) -> None:
        sums.append(arguments)
        call(*arguments)

    # With no number for all ranks, as many minibatches as one rank would make of its part
    for batch_size, n_minibatches in ((64, 2 * size), (None, 2)):
        model = VanillaPG("MlpPolicy", make_vec_env("CartPole-v1", 2), n_steps=64, batch_size=batch_size)
        callback = AtStart(sums)
        with replacing((distributed, "_call", counted)):
            model.learn(6 * 128 * size, callback)
        assert np.diff(callback.at_start).tolist() == 5 * [9 + n_minibatches]


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


def no_thread_outlives_the_group() -> None:
    """A thread of gloo's that meets the end of Python would abort the process."""
    distributed.join()
    import torch.distributed.nn  # noqa: F401 - as torch does for its optimizers: functions' defaults are the group there is

    distributed._leave()
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in threads), threads


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
        checks = [steps_are_equal, trainings_are_alike, stream_of_a_seed, a_hundred_updates, batch_norm_is_of_all]
        for check in [*checks, files_of_monitor, few_sums, oracle_holds]:
            check(Path(sys.argv[2]))
        (Path(sys.argv[2]) / f"done_{distributed.rank()}").touch()
    elif sys.argv[1] == "load":
        loaded_by_more(Path(sys.argv[2]))
    elif sys.argv[1] == "leave":
        no_thread_outlives_the_group()
    else:
        fault(Path(sys.argv[2]), sys.argv[1])
