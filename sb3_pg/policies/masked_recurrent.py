"""Policies with both a memory and masks, which sb3-contrib does not have."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy, RecurrentMultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule

from sb3_pg.policies.masked import MaskedKind, make_masked_distribution
from sb3_pg.policies.recurrent import RecurrentKind


class MaskableRecurrentActorCriticPolicy(RecurrentActorCriticPolicy):
    """contrib's RecurrentActorCriticPolicy, whose methods take ``action_masks`` as those of its MaskableActorCriticPolicy do.

    ``action_masks``: True where an action is legal, ``(n, n_logits)``; None if all are. The constructor is contrib's.
    """

    _action_masks: Any = None

    @contextmanager
    def _masking(self, action_masks: Any) -> Iterator[None]:
        """Apply these masks to all distributions made meanwhile; None to leave those that are applied already."""
        before = self._action_masks
        self._action_masks = before if action_masks is None else action_masks
        try:
            yield
        finally:
            self._action_masks = before

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.features_dim = int(self.features_dim)  # NumPy's for MultiDiscrete observations, which nn.LSTM refuses
        self.action_dist = make_masked_distribution(self.action_space)
        self.action_net = self.action_dist.proba_distribution_net(latent_dim=self.mlp_extractor.latent_dim_pi)
        if self.ortho_init:
            self.action_net.apply(partial(self.init_weights, gain=0.01))

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        distribution: Any = self.action_dist.proba_distribution(action_logits=self.action_net(latent_pi))
        distribution.apply_masking(self._action_masks)
        return distribution

    def _get_constructor_parameters(self) -> dict[str, Any]:
        of_lstm = dict(
            lstm_hidden_size=self.lstm_output_dim, n_lstm_layers=self.lstm_actor.num_layers, shared_lstm=self.shared_lstm,
            enable_critic_lstm=self.enable_critic_lstm, lstm_kwargs=self.lstm_kwargs,
        )  # fmt: skip
        return {**super()._get_constructor_parameters(), **of_lstm}

    def forward(self, *args: Any, action_masks: Any = None, **kwargs: Any) -> Any:
        """Actions, values, log-probabilities and the new memory."""
        with self._masking(action_masks):
            return super().forward(*args, **kwargs)

    def get_distribution(self, *args: Any, action_masks: Any = None, **kwargs: Any) -> Any:
        """The distribution and the new memory."""
        with self._masking(action_masks):
            return super().get_distribution(*args, **kwargs)

    def evaluate_actions(self, *args: Any, action_masks: Any = None, **kwargs: Any) -> Any:
        """Values, log-probabilities and entropy."""
        with self._masking(action_masks):
            return super().evaluate_actions(*args, **kwargs)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Actions and the new memory, from observations and the old.

        :param observation: ``(n, …)`` or a single one
        :param state: memory of the last call; None at the beginning
        :param episode_start: whether an observation begins an episode, ``(n,)``
        :param deterministic: the most likely action instead of a sample
        :param action_masks: True where an action is legal, ``(n, n_logits)``
        :return: actions and memory
        """
        with self._masking(action_masks):
            return super().predict(observation, state, episode_start, deterministic)


class MaskableRecurrentMultiInputActorCriticPolicy(MaskableRecurrentActorCriticPolicy, RecurrentMultiInputActorCriticPolicy):
    """:class:`MaskableRecurrentActorCriticPolicy` for dictionary observations."""


class MaskedRecurrentKind(MaskedKind, RecurrentKind):
    """Masks as in :class:`MaskedKind`, segments as in :class:`RecurrentKind`."""

    base = MaskableRecurrentActorCriticPolicy
