"""Policies with memory that learn nothing, and contrib's step by step evaluation of what they play."""

from typing import Any

import numpy as np
import pytest
import torch as th
from envs import ScriptedEnv
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pg import VanillaPG
from sb3_pg.buffers import EpisodeRolloutBuffer

LAYOUTS: dict[str, dict[str, Any]] = {
    "separate": dict(),
    "critic without memory": dict(enable_critic_lstm=False),
    "shared": dict(enable_critic_lstm=False, shared_lstm=True),
    "two layers": dict(n_lstm_layers=2),
    "no bias": dict(lstm_kwargs=dict(bias=False)),
    "separate features": dict(share_features_extractor=False),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def scripted(truncate: bool = False) -> DummyVecEnv:
    """Episodes of all lengths, one step included, some of which span several rollouts."""
    lengths = ([1, 7, 3, 30], [40], [2, 1, 1, 19])
    return DummyVecEnv([lambda lengths=each: ScriptedEnv(list(lengths), truncate=truncate) for each in lengths])


def make(layout: str = "separate", env: Any = None, policy: Any = "MlpLstmPolicy", **kwargs: Any) -> VanillaPG:
    policy_kwargs = dict(lstm_hidden_size=8, net_arch=[8], **LAYOUTS[layout])
    # Nothing is learnt: the memory of all rollouts is that of one policy
    still = dict(learning_rate=0.0, normalize_advantage=False, max_grad_norm=None, device="cpu", seed=0)
    model = VanillaPG(
        policy, scripted() if env is None else env, policy_kwargs=policy_kwargs, **{"n_steps": 16, **still, **kwargs}
    )
    with th.no_grad():
        for name, p in model.policy.named_parameters():
            if "lstm" in name or "net" in name:
                p.mul_(2.0)
    return model


class Stepwise:
    """contrib's own forward passes, one step at a time, over what a model plays."""

    def __init__(self, model: VanillaPG):
        self.policy = model.policy
        shape = (self.policy.lstm_hidden_state_shape[0], model.n_envs, self.policy.lstm_hidden_state_shape[2])
        self.states = RNNStates(*((th.zeros(shape), th.zeros(shape)) for _ in range(2)))

    @th.no_grad()
    def over(self, buffer: EpisodeRolloutBuffer) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities and values, ``(n_steps, n_envs)`` each."""
        log_probs, values = [], []
        for t in range(buffer.buffer_size):
            obs = th.as_tensor(buffer.observations[t])
            starts = th.as_tensor(buffer.episode_starts[t])
            actions = th.as_tensor(buffer.actions[t]).flatten()
            v, log_prob, _ = self.policy.evaluate_actions(obs, actions, self.states, starts)
            _, _, _, self.states = self.policy(obs, self.states, starts)
            log_probs.append(log_prob.numpy())
            values.append(v.flatten().numpy())
        return np.array(log_probs), np.array(values)

    @th.no_grad()
    def value_behind(self, obs: np.ndarray) -> np.ndarray:
        """V of the observations behind the last step, episodes going on."""
        states = self.states.pi if self.policy.shared_lstm else self.states.vf
        return self.policy.predict_values(th.as_tensor(obs), states, th.zeros(len(obs))).flatten().numpy()
