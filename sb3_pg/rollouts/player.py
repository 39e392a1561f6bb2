"""Whole episodes of a model's policy, for those who want to look at them and not to train on them."""

from collections import deque

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_pg.rollouts.actions import policy_action_space
from sb3_pg.rollouts.buffers import EpisodeDictRolloutBuffer, EpisodeRolloutBuffer
from sb3_pg.rollouts.collect import RolloutAlgorithm


class EpisodePlayer(RolloutAlgorithm):
    """Plays whole episodes with the policy of a model, and evaluates its critic on them. Nothing is trained.

    :param model: an on-policy model, of this package or another
    :param env: where to play. The statistics of ``VecNormalize`` are held fixed meanwhile
    :param n_episodes: whole episodes an environment
    :param with_values: whether the critic is evaluated
    """

    whole_episodes = True
    uses_critic = bootstraps = False
    #: Whether a step ended an episode, and V of the state it reached, ``(n_steps, n_envs)``; set by :meth:`play`
    done_steps: np.ndarray
    next_values: np.ndarray

    def __init__(self, model: OnPolicyAlgorithm, env: VecEnv, n_episodes: int, with_values: bool):
        super().__init__(
            type(model.policy), env, learning_rate=0.0, n_steps=256, gamma=model.gamma, gae_lambda=1.0, ent_coef=0.0,
            vf_coef=0.0, max_grad_norm=0.0, use_sde=model.use_sde, sde_sample_freq=model.sde_sample_freq, device=model.device,
            _init_setup_model=False,
        )  # fmt: skip
        self.n_episodes = n_episodes
        self.policy = model.policy
        self.uses_critic = self.bootstraps = with_values
        is_dict = isinstance(model.observation_space, spaces.Dict)
        buffer_class: type[EpisodeRolloutBuffer] = EpisodeDictRolloutBuffer if is_dict else EpisodeRolloutBuffer
        self.rollout_buffer = buffer_class(
            self.n_steps, self.observation_space, policy_action_space(self.action_space), self.device, n_envs=env.num_envs
        )
        self.ep_info_buffer, self.ep_success_buffer = deque(maxlen=1), deque(maxlen=1)

    def play(self) -> EpisodeRolloutBuffer:
        """Play from a reset on, and return the buffer of the episodes."""
        env = self.env
        assert env is not None
        normalize = unwrap_vec_normalize(env)
        was_training = normalize is not None and normalize.training
        try:
            if normalize is not None:
                normalize.training = False
            self._last_obs, self._last_episode_starts = env.reset(), np.ones(env.num_envs, dtype=bool)  # type: ignore[assignment]
            callback = ConvertCallback(None)
            callback.init_callback(self)
            self.collect_rollouts(env, callback, self.rollout_buffer, self.n_steps)
        finally:
            if normalize is not None:
                normalize.training = was_training
        assert isinstance(self.rollout_buffer, EpisodeRolloutBuffer)
        return self.rollout_buffer

    def _finish_rollout(
        self, rollout_buffer: RolloutBuffer, last_values: th.Tensor, terminal_values: np.ndarray, dones: np.ndarray
    ) -> None:
        assert isinstance(rollout_buffer, EpisodeRolloutBuffer)
        self.done_steps = rollout_buffer.done_steps(dones)
        self.next_values = rollout_buffer.next_values(last_values, self.done_steps, terminal_values)

    def train(self) -> None:
        """Not here."""
        raise NotImplementedError
