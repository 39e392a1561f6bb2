"""Which parameters are the critic's, whatever the features extractor makes of the observations."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from envs import ScriptedEnv
from gymnasium import spaces
from helpers import changed, params
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.policies.parameters import sample


def critic_of(model: PolicyGradient) -> set[str]:
    critic = {id(p) for p in model.kind.critic_parameters(trainable=False)}
    return {name for name, p in model.policy.named_parameters() if id(p) in critic}


class TwoParts(BaseFeaturesExtractor):
    """Features of the actor and of the critic side by side; the ReLUs are dead at zero."""

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, 6)
        self.parts = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))
        self.both = nn.Linear(4, 4)
        for layer in (*self.parts, self.both):
            nn.init.constant_(layer.bias, -0.1)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        x = self.both(observations).relu()
        return th.cat([part(x).relu() for part in self.parts], dim=1)


class Sliced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.policy_net, self.value_net = nn.Linear(3, 8), nn.Linear(6, 8)
        self.latent_dim_pi = self.latent_dim_vf = 8

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        return self.policy_net(features[:, :3]).tanh()

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        return self.value_net(features).tanh()


class SlicedPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = Sliced()


@pytest.mark.parametrize("cls", [VanillaPG, ReinforceBaseline, NaturalPG])
@pytest.mark.parametrize("ortho_init", [True, False])
def test_the_part_of_shared_features_that_only_the_critic_sees_is_the_critics(cls: Any, ortho_init: bool) -> None:
    policy_kwargs = dict(features_extractor_class=TwoParts, ortho_init=ortho_init)
    model = cls(SlicedPolicy, "CartPole-v1", n_steps=64, policy_kwargs=policy_kwargs, seed=0)
    own = {f"features_extractor.parts.1.{name}" for name in ("weight", "bias")}
    assert critic_of(model) == own | {name for name in params(model) if "value_net" in name}
    before = params(model)
    model.learn(256)
    assert changed(before, model) == set(before)


def test_an_actor_whose_last_layer_starts_at_zero_keeps_the_shared_features() -> None:
    class ZeroInit(SlicedPolicy):
        def _build(self, lr_schedule: Any) -> None:
            super()._build(lr_schedule)
            nn.init.zeros_(self.action_net.weight)

    state = th.get_rng_state()
    model = VanillaPG(ZeroInit, "CartPole-v1", policy_kwargs=dict(features_extractor_class=TwoParts))
    assert not any("both" in name or "parts.0" in name for name in critic_of(model))
    th.set_rng_state(state)
    policy = ZeroInit(model.observation_space, model.action_space, model.lr_schedule, features_extractor_class=TwoParts)
    assert all(th.equal(a, b) for a, b in zip(policy.parameters(), model.policy.parameters(), strict=True))


def test_one_of_several_branches() -> None:
    class Branches(FlattenExtractor):
        def __init__(self, observation_space: spaces.Box):
            super().__init__(observation_space)
            self.of_sign = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, observations: th.Tensor) -> th.Tensor:
            parts = [self.of_sign[int(obs[0] > 0)](obs) for obs in observations]
            return th.stack(parts)

    model = VanillaPG("MlpPolicy", "CartPole-v1", policy_kwargs=dict(features_extractor_class=Branches))
    assert all("value_net" in name for name in critic_of(model))


@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "MaskableMlpLstmPolicy"])
@pytest.mark.parametrize("shared", [True, False])
def test_memory(policy: str, shared: bool) -> None:
    policy_kwargs = dict(shared_lstm=shared, enable_critic_lstm=not shared, lstm_hidden_size=8)
    env = ActionMasker(gym.make("CartPole-v1"), lambda env: np.ones(2, dtype=bool))
    model = VanillaPG(policy, env, policy_kwargs=policy_kwargs)
    assert critic_of(model) == {name for name in params(model) if "value_net" in name or "lstm_critic" in name}


class Levels(ScriptedEnv):
    """Sequences of one to three levels of 1 to 5."""

    def __init__(self, low: int = 1) -> None:
        super().__init__([8])
        self.observation_space = spaces.Dict(
            levels=spaces.Box(low, 5, (3,), np.int64), length=spaces.Box(low, 3, (1,), np.int64)
        )

    def _obs(self) -> Any:
        return {"levels": np.array([1 + self.t % 5, 5, 1]), "length": np.array([1 + self.t % 3])}


class Packed(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Dict):
        super().__init__(observation_space, 4)
        self.embedding, self.rnn = nn.Embedding(5, 4), nn.GRU(4, 4, batch_first=True)

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        lengths = observations["length"].flatten()
        x = self.embedding(observations["levels"].long() - 1)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu().long(), batch_first=True, enforce_sorted=False)
        return self.rnn(packed)[1][-1]


@pytest.mark.parametrize("cls", [VanillaPG, ReinforceBaseline, NaturalPG])
@pytest.mark.parametrize("low", [1, 0])  # 0: a space that says less than the environment keeps to
def test_observations_that_are_no_zeros(cls: Any, low: int) -> None:
    policy_kwargs = dict(features_extractor_class=Packed, net_arch=[8])
    env = DummyVecEnv([lambda: Levels(low)])
    model = cls("MultiInputPolicy", env, n_steps=16, policy_kwargs=policy_kwargs, seed=0)
    before = params(model)
    updated = changed(before, model.learn(64))
    assert {"features_extractor.embedding.weight", "action_net.weight", "value_net.weight"} <= updated
    assert all("value_net" in name for name in critic_of(model)) and model.kind.divide()


class Late(FlattenExtractor):
    """An encoder that the user sets."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space)
        self.encoder: Any = None

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(self.encoder(observations))


@pytest.mark.parametrize("is_module", [True, False])
@pytest.mark.parametrize(
    "cls, kwargs", [(VanillaPG, {}), (ReinforceBaseline, {}), (ReinforceBaseline, dict(baseline="optimal")), (NaturalPG, {})]
)
def test_an_encoder_that_is_set_after_construction(cls: Any, kwargs: Any, is_module: bool, tmp_path: Any) -> None:
    policy_kwargs = dict(features_extractor_class=Late)
    model = cls("MlpPolicy", "CartPole-v1", n_steps=16, policy_kwargs=policy_kwargs, seed=0, **kwargs)
    encoder = nn.Linear(4, 4)
    model.policy.features_extractor.encoder = encoder if is_module else lambda x: 2.0 * x
    before = params(model)
    updated = changed(before, model.learn(64))
    assert updated == {name for name in before if model.uses_critic or "value" not in name}
    assert not any("encoder" in name for name in critic_of(model))
    if not is_module:  # else there is nothing yet to load its parameters into
        model.save(tmp_path / "model")
        loaded = cls.load(tmp_path / "model", env=model.get_env())
        loaded.policy.features_extractor.encoder = model.policy.features_extractor.encoder
        assert not changed(params(model), loaded) and loaded.learn(16, reset_num_timesteps=False)


class Lazy(FlattenExtractor):
    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space)
        self.layer = nn.LazyLinear(4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(super().forward(observations))


def test_layers_that_are_made_by_the_first_pass() -> None:
    policy_kwargs = dict(features_extractor_class=Lazy, ortho_init=False)
    model = VanillaPG("MlpPolicy", "CartPole-v1", n_steps=16, policy_kwargs=policy_kwargs, seed=0)
    before = params(model)
    assert changed(before, model.learn(32)) == set(before) and all("value_net" in name for name in critic_of(model))
    assert model.policy.optimizer.param_groups[0]["fused"]


def test_a_policy_that_is_known_to_have_no_critic_is_refused_when_it_is_known() -> None:
    class NoCritic(ActorCriticPolicy):
        def predict_values(self, obs: Any) -> th.Tensor:
            return th.zeros(len(obs), 1)

        def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
            distribution = self.get_distribution(obs)
            return th.zeros(len(obs), 1), distribution.log_prob(actions), distribution.entropy()

    with pytest.raises(ValueError, match="no parameters of its own"):
        VanillaPG(NoCritic, "CartPole-v1")
    model = VanillaPG(NoCritic, "CartPole-v1", policy_kwargs=dict(features_extractor_class=Late), n_steps=16)
    model.policy.features_extractor.encoder = lambda x: x
    with pytest.raises(ValueError, match="no parameters of its own"):
        model.learn(16)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (3,)),
        spaces.Box(-3.4e38, 3.4e38, (3,), np.float32),
        spaces.Box(np.array([1.0, -np.inf, 200.0]), np.array([5.0, -100.0, np.inf]), dtype=np.float64),
        spaces.Box(0, 255, (4, 4, 3), np.uint8),
        spaces.Box(-(2**31), 2**31 - 1, (3,), np.int32),
        spaces.Box(0, 1, (3,), np.bool_),
        spaces.Discrete(3, start=2),
        spaces.MultiDiscrete([3, 4]),
        spaces.MultiBinary(3),
        spaces.Dict(x=spaces.Box(1, 5, (2,), np.int64), y=spaces.Discrete(2)),
    ],
)
def test_samples_are_of_the_space_and_always_the_same(space: spaces.Space) -> None:
    state = np.random.get_state()[1].copy()
    first, second = sample(space, 5), sample(space, 5)
    expected = type(space) is spaces.Dict
    for i in range(5):
        one = {key: x[i] for key, x in first.items()} if expected else first[i]
        assert space.contains(one)
    np.testing.assert_equal(first, second)
    np.testing.assert_array_equal(state, np.random.get_state()[1])
    for x in first.values() if expected else [first]:
        assert np.abs(x.astype(float)).max() < 1000 and len(np.unique(x)) > 1
