"""A critic that sees more than the actor: ``policy_kwargs=dict(critic_only_keys=("state", …))`` of MultiInput policies."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor, MlpExtractor
from torch import nn


def build_policy(
    policy_class: Any,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    lr_schedule: Any,
    critic_only_keys: Sequence[str] = (),
    **policy_kwargs: Any,
) -> Any:
    """A policy of this class, whose actor's networks never receive the observations under ``critic_only_keys``.

    :param critic_only_keys: keys of a Dict observation space; none for a policy as the class makes it
    :raises ValueError: if the keys do not fit the observations, or the policy's parts are to be shared
    :raises TypeError: if they are no sequence of keys
    """
    if isinstance(critic_only_keys, str) or not isinstance(critic_only_keys, Sequence):
        raise TypeError(f'critic_only_keys must be a tuple of keys, such as ("state",), not {critic_only_keys!r}.')
    if not critic_only_keys:
        return policy_class(observation_space, action_space, lr_schedule, **policy_kwargs)
    if not isinstance(observation_space, spaces.Dict):
        raise ValueError(f"critic_only_keys are keys of a Dict observation space, and this one is {observation_space}.")
    unknown = [key for key in critic_only_keys if key not in observation_space.spaces]
    if unknown:
        raise ValueError(f"critic_only_keys: the observations have no {unknown}, but {list(observation_space.spaces)}.")
    if set(critic_only_keys) == set(observation_space.spaces):
        raise ValueError("critic_only_keys leave the actor nothing to see: keep a key out of them.")
    for name in ("share_features_extractor", "shared_lstm"):
        if policy_kwargs.pop(name, False):
            raise ValueError(f"{name}=True would show the actor what critic_only_keys are to keep from it.")
    return _with_privileged_critic(policy_class)(
        observation_space, action_space, lr_schedule, critic_only_keys=tuple(critic_only_keys), **policy_kwargs
    )


@cache
def _with_privileged_critic(policy_class: Any) -> Any:
    class PrivilegedCritic(policy_class):  # type: ignore[misc]
        lstm_critic: Any
        optimizer: Any

        def __init__(self, observation_space: spaces.Dict, *args: Any, critic_only_keys: tuple[str, ...], **kwargs: Any):
            of_actor = {key: space for key, space in observation_space.spaces.items() if key not in critic_only_keys}
            self.critic_only_keys = critic_only_keys
            # SB3 makes the actor's extractor first, then the critic's
            self._extractor_spaces = [spaces.Dict(of_actor), observation_space]
            super().__init__(observation_space, *args, share_features_extractor=False, **kwargs)
            if hasattr(self, "lstm_actor"):
                self._widen_critic()
            if type(self.pi_features_extractor) is not CombinedExtractor:  # which asks for its own keys only
                self.pi_features_extractor.register_forward_pre_hook(
                    lambda module, args: ({key: args[0][key] for key in of_actor}, *args[1:])
                )

        def make_features_extractor(self) -> Any:
            return self.features_extractor_class(self._extractor_spaces.pop(0), **self.features_extractor_kwargs)

        def _build_mlp_extractor(self) -> None:
            super()._build_mlp_extractor()
            if hasattr(self, "lstm_output_dim"):
                return  # both networks are behind an LSTM
            of_critic = MlpExtractor(
                self.vf_features_extractor.features_dim, self.net_arch, self.activation_fn, device=self.device
            )
            self.mlp_extractor.value_net, self.mlp_extractor.latent_dim_vf = of_critic.value_net, of_critic.latent_dim_vf

        def _widen_critic(self) -> None:
            """contrib's gives both LSTMs as many inputs as the actor has."""
            n_features, lstm = int(self.vf_features_extractor.features_dim), self.lstm_actor
            if self.lstm_critic is not None:
                self.lstm_critic = nn.LSTM(n_features, lstm.hidden_size, num_layers=lstm.num_layers, **self.lstm_kwargs)
            else:
                self.critic = nn.Linear(n_features, lstm.hidden_size)
            learning_rate = self.optimizer.param_groups[0]["lr"]
            self.optimizer = self.optimizer_class(self.parameters(), lr=learning_rate, **self.optimizer_kwargs)

        def _get_constructor_parameters(self) -> dict[str, Any]:
            return {**super()._get_constructor_parameters(), "critic_only_keys": self.critic_only_keys}

    PrivilegedCritic.__name__ = PrivilegedCritic.__qualname__ = f"{policy_class.__name__}WithPrivilegedCritic"
    return PrivilegedCritic
