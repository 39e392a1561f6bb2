"""A critic that sees more than the actor."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg.policies.sampling import is_plain_mlp


class Hinted(gym.Env):
    """The reward is a hidden number that only the key ``state`` tells, plus one for the right action."""

    observation_space = spaces.Dict(
        {"state": spaces.Box(-5.0, 5.0, (2, 2), np.float32), "sign": spaces.Box(-1.0, 1.0, (3,), np.float32)}
    )
    action_space = spaces.Discrete(2)

    def _observe(self) -> dict[str, np.ndarray]:
        self.state = self.np_random.normal(size=(2, 2)).astype(np.float32)
        self.sign = self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32)
        return {"state": self.state, "sign": self.sign}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def step(self, action: int) -> Any:
        self.t += 1
        reward = float(3.0 * self.state[0, 0] + (action == (self.sign[0] > 0)))
        return self._observe(), reward, False, self.t == 8, {}

    def action_masks(self) -> np.ndarray:
        return np.ones(2, dtype=bool)


POLICIES = ["MultiInputPolicy", "MultiInputLstmPolicy", "MaskableMultiInputPolicy", "MaskableMultiInputLstmPolicy"]
KEYS = dict(critic_only_keys=("state",))


def make(policy: str, cls: type[VanillaPG] = VanillaPG, **kwargs: Any) -> VanillaPG:
    policy_kwargs = {**KEYS, **(dict(lstm_hidden_size=8) if "Lstm" in policy else {}), **kwargs.pop("policy_kwargs", {})}
    return cls(
        policy, make_vec_env(Hinted, 2, seed=0), n_steps=32, seed=0, policy_kwargs=policy_kwargs, device="cpu", **kwargs
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cls", [VanillaPG, ReinforceBaseline, NaturalPG])
def test_the_actor_never_receives_the_keys(policy: str, cls: type[VanillaPG], tmp_path: Path) -> None:
    model = make(policy, cls).learn(200)
    model.save(tmp_path / "m")
    model = cls.load(tmp_path / "m", env=model.get_env())
    obs = model.env.reset()
    actor, critic = model.policy.pi_features_extractor, model.policy.vf_features_extractor
    assert actor.features_dim == 3 and critic.features_dim == 7
    without = {"sign": obs["sign"]}
    other = {**obs, "state": obs["state"] + 1.0}
    for each in (without, other):
        th.manual_seed(0)
        first = model.predict(obs)[0]
        th.manual_seed(0)
        np.testing.assert_array_equal(model.predict(each)[0], first)
    # A single observation as well
    model.predict({"sign": obs["sign"][0]})


@pytest.mark.parametrize("policy", POLICIES)
def test_the_critic_uses_them(policy: str) -> None:
    model = make(policy, gamma=0.0, critic_learning_rate=1e-2, n_critic_updates=20).learn(4000)
    assert model.logger.name_to_value["train/explained_variance"] > 0.9  # γ = 0: only the state tells the reward


@pytest.mark.parametrize("layout", [dict(enable_critic_lstm=False), dict(n_lstm_layers=2), dict(net_arch=[])])
def test_layouts(layout: dict[str, Any]) -> None:
    model = make("MultiInputLstmPolicy", policy_kwargs=layout)
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(100)
    assert not any(th.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))
    make("MultiInputPolicy", policy_kwargs=dict(net_arch=[])).learn(64)


class SumOfAll(BaseFeaturesExtractor):
    """Takes whatever keys it is handed."""

    def __init__(self, space: spaces.Dict):
        super().__init__(space, features_dim=1)
        self.seen: set[str] = set()

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        self.seen |= observations.keys()
        return th.stack([x.flatten(1).sum(dim=1) for x in observations.values()]).sum(dim=0)[:, None]


def test_extractors_of_the_users_own_receive_no_more() -> None:
    model = make("MultiInputPolicy", policy_kwargs=dict(features_extractor_class=SumOfAll)).learn(64)
    assert model.policy.pi_features_extractor.seen == {"sign"}
    assert model.policy.vf_features_extractor.seen == {"sign", "state"}


def test_the_fast_path_serves_it_and_so_does_vecnormalize() -> None:
    model = make("MultiInputPolicy")
    assert is_plain_mlp(model.policy)
    env = VecNormalize(make_vec_env(Hinted, 2, seed=0))
    VanillaPG("MultiInputPolicy", env, n_steps=16, policy_kwargs=KEYS).learn(64)


@pytest.mark.parametrize(
    "policy, policy_kwargs, error, message",
    [
        ("MultiInputPolicy", dict(critic_only_keys="state"), TypeError, "a tuple of keys"),
        ("MultiInputPolicy", dict(critic_only_keys=("sate",)), ValueError, r"have no \['sate'\], but \['sign', 'state'\]"),
        ("MultiInputPolicy", dict(critic_only_keys=("state", "sign")), ValueError, "nothing to see"),
        ("MultiInputPolicy", dict(share_features_extractor=True), ValueError, "share_features_extractor=True would show"),
        ("MultiInputLstmPolicy", dict(shared_lstm=True, enable_critic_lstm=False), ValueError, "shared_lstm=True would show"),
    ],
)
def test_what_is_refused(policy: str, policy_kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(policy, policy_kwargs=policy_kwargs)


def test_other_observations_are_refused() -> None:
    with pytest.raises(ValueError, match="keys of a Dict observation space"):
        VanillaPG("MlpPolicy", "CartPole-v1", policy_kwargs=KEYS)
