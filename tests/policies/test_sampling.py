"""The fast paths draw from the policy's own distribution, and stand back where a policy is not SB3's."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy import stats
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from torch import nn

from sb3_pg.policies import PolicyKind, make_kind, sampling
from sb3_pg.policies.plain import PlainKind

OBS = spaces.Box(-5.0, 5.0, (3,), np.float32)
ACTION_SPACES = [
    spaces.Discrete(4),
    spaces.Box(-1.0, 1.0, (2,), np.float32),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
]


def make_policy(
    action_space: spaces.Space, cls: type[ActorCriticPolicy] = ActorCriticPolicy, obs: spaces.Space = OBS, **kwargs: Any
) -> ActorCriticPolicy:
    th.manual_seed(0)
    policy = cls(obs, action_space, lambda _: 1e-3, **kwargs)
    with th.no_grad():
        for p in policy.action_net.parameters():
            p.mul_(80.0)  # far from uniform
        if hasattr(policy, "log_std"):
            policy.log_std.add_(th.linspace(-1.0, 0.5, policy.log_std.numel()).reshape(policy.log_std.shape))
    policy.set_training_mode(False)
    return policy


# What a policy may be asked in: the logits or means by NumPy or by torch, and the four ways to actions

Outputs = Callable[[Any], np.ndarray]


def numpy_outputs(policy: ActorCriticPolicy) -> Outputs:
    features, networks = sampling.numpy_features(policy), sampling.numpy_outputs(policy, 50)
    return lambda obs: networks(features(obs))


def torch_outputs(policy: ActorCriticPolicy) -> Outputs:
    kind = PlainKind(policy)
    return lambda obs: kind._torch_outputs(obs, {})


def noise_sampler(policy: ActorCriticPolicy, n_envs: int, outputs: Outputs) -> Outputs:
    draw = sampling.draw_with_noise(policy, n_envs)
    return lambda obs: draw(outputs(obs))


def path_of(policy: ActorCriticPolicy | PolicyKind) -> str:
    """numpy, torch (noise on torch's outputs), distribution or forward."""
    kind = policy if isinstance(policy, PolicyKind) else make_kind(policy)
    sampler: Any = kind.make_sampler(SimpleNamespace(num_envs=2))  # type: ignore[arg-type]
    names = {"_sample_forward": "forward", "_sample_distribution": "distribution"}
    return names.get(sampler.__name__) or ("numpy" if sampling.is_plain_mlp(kind.policy) else "torch")


@pytest.mark.parametrize("action_space", ACTION_SPACES)
@pytest.mark.parametrize("kwargs", [{}, dict(net_arch=[]), dict(net_arch=[32], activation_fn=nn.ReLU)])
def test_outputs_agree(action_space: spaces.Space, kwargs: dict[str, Any]) -> None:
    policy = make_policy(action_space, **kwargs)
    assert path_of(policy) == "numpy"
    obs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    fast, general = numpy_outputs(policy)(obs), torch_outputs(policy)(obs)
    if isinstance(action_space, spaces.Box | spaces.MultiBinary):
        np.testing.assert_allclose(fast, general, rtol=1e-6, atol=1e-5)
        return
    # torch's logits are normalised: compare log-probabilities
    sizes = action_space.nvec if isinstance(action_space, spaces.MultiDiscrete) else [action_space.n]
    for a, b in zip(*(np.split(x, np.cumsum(sizes)[:-1], axis=1) for x in (fast, general)), strict=True):
        a = a - np.log(np.exp(a).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-5)


def test_dictionaries_of_vectors_are_flattened_in_the_extractors_order() -> None:
    space = spaces.Dict({"b": OBS, "a": spaces.Box(-5.0, 5.0, (2, 2), np.float64)})
    policy = make_policy(ACTION_SPACES[1], MultiInputActorCriticPolicy, obs=space)
    assert path_of(policy) == "numpy"
    rng = np.random.default_rng(0)
    obs = {key: rng.normal(size=(50, *part.shape)).astype(part.dtype) for key, part in space.spaces.items()}
    np.testing.assert_allclose(numpy_outputs(policy)(obs), torch_outputs(policy)(obs), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("action_space", ACTION_SPACES)
def test_same_seed_same_actions_on_both_paths(action_space: spaces.Space) -> None:
    policy = make_policy(action_space)
    obs = np.random.default_rng(1).normal(size=(300, 2, 3)).astype(np.float32)
    drawn = []
    for outputs in (numpy_outputs(policy), torch_outputs(policy)):
        th.manual_seed(3)
        sample = noise_sampler(policy, 2, outputs)
        drawn.append(np.array([sample(o) for o in obs]))
    np.testing.assert_allclose(*drawn, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("action_space", ACTION_SPACES)
@pytest.mark.parametrize("path", ["numpy", "torch", "distribution", "forward"])
def test_goodness_of_fit(action_space: spaces.Space, path: str) -> None:
    policy = make_policy(action_space)
    n_envs, n_calls = 50, 100
    kind, starts = PlainKind(policy), np.zeros(n_envs, dtype=bool)
    make: dict[str, Callable[[], Outputs]] = {
        "numpy": lambda: noise_sampler(policy, n_envs, numpy_outputs(policy)),
        "torch": lambda: noise_sampler(policy, n_envs, torch_outputs(policy)),
        "distribution": lambda: lambda obs: kind._sample_distribution(obs, starts).actions,
        "forward": lambda: lambda obs: kind._sample_forward(obs, starts).actions,
    }
    th.manual_seed(7)
    sample = make[path]()
    obs = np.tile(np.array([0.3, -0.2, 0.1], dtype=np.float32), (n_envs, 1))
    draws = [sample(obs) for _ in range(n_calls)]
    actions = np.concatenate(draws)
    with th.no_grad():
        expected, _, _ = policy(th.as_tensor(obs))
        distribution = policy.get_distribution(th.as_tensor(obs[:1])).distribution
    assert draws[0].shape == expected.shape and draws[0].dtype == expected.numpy().dtype
    if isinstance(action_space, spaces.Box):
        z = (actions - distribution.mean.numpy()) / distribution.stddev.numpy()
        assert min(stats.kstest(z[:, i], "norm").pvalue for i in range(2)) > 1e-3
        independent = [
            stats.pearsonr(z[:, 0], z[:, 1]),
            stats.pearsonr(z[:-1, 0], z[1:, 0]),
            stats.pearsonr(z[:-n_envs, 1], z[n_envs:, 1]),
        ]
        assert min(test.pvalue for test in independent) > 1e-3
        return
    parts = distribution if isinstance(distribution, list) else [distribution]
    if isinstance(action_space, spaces.MultiBinary):
        probabilities = [np.array([1.0 - p, p]) for p in distribution.probs[0].double().numpy()]
    else:
        probabilities = [part.probs[0].double().numpy() for part in parts]
    for column, p in zip(actions.reshape(len(actions), -1).T, probabilities, strict=True):
        counts = np.bincount(column.astype(int), minlength=len(p))
        assert stats.chisquare(counts, p / p.sum() * len(column)).pvalue > 1e-3


# Policies that are not what they seem


class OwnForward(ActorCriticPolicy):
    def forward(self, obs, deterministic=False):  # type: ignore[no-untyped-def]
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, th.full_like(values, 7.0), log_prob


class OwnFeatures(ActorCriticPolicy):
    def extract_features(self, obs, features_extractor=None):  # type: ignore[no-untyped-def]
        return super().extract_features(obs * 2.0, features_extractor)


class OwnDistribution(ActorCriticPolicy):
    def get_distribution(self, obs):  # type: ignore[no-untyped-def]
        return super().get_distribution(obs * 2.0)


class OwnLatent(ActorCriticPolicy):
    def _get_action_dist_from_latent(self, latent_pi):  # type: ignore[no-untyped-def]
        return super()._get_action_dist_from_latent(latent_pi * 2.0)


class OwnCritic(ActorCriticPolicy):
    def predict_values(self, obs):  # type: ignore[no-untyped-def]
        return super().predict_values(obs) * 2.0


class MyLinear(nn.Linear):
    def forward(self, x):  # type: ignore[no-untyped-def]
        return super().forward(x) * 2.0


def test_subclasses_are_detected() -> None:
    paths = {
        cls: path_of(make_policy(ACTION_SPACES[0], cls))
        for cls in (OwnForward, OwnFeatures, OwnDistribution, OwnLatent, OwnCritic)
    }
    assert paths == {
        OwnForward: "forward",
        OwnFeatures: "forward",
        OwnDistribution: "forward",
        OwnLatent: "distribution",
        OwnCritic: "numpy",
    }


def _replace(policy: ActorCriticPolicy, what: str) -> None:
    net = policy.mlp_extractor.policy_net
    changes: dict[str, Callable[[], Any]] = {
        "layer": lambda: net.__setitem__(0, MyLinear(3, 64)),
        "activation": lambda: net.__setitem__(1, nn.ELU()),
        "hook": lambda: net[0].register_forward_hook(lambda module, args, out: out * 2.0),
        "pre-hook": lambda: policy.action_net.register_forward_pre_hook(lambda module, args: None),
        "instance forward": lambda: setattr(net[0], "forward", lambda x: x),
        "double": lambda: policy.double(),
        "parametrisation": lambda: nn.utils.parametrizations.weight_norm(net[0]),
        "compiled layer": lambda: net.compile(),
        "extractor": lambda: setattr(policy.mlp_extractor, "policy_net", nn.Sequential(nn.LayerNorm(3), *net)),
    }
    changes[what]()


@pytest.mark.parametrize(
    "what",
    [
        "layer",
        "activation",
        "hook",
        "pre-hook",
        "instance forward",
        "double",
        "parametrisation",
        "compiled layer",
        "extractor",
    ],
)
def test_altered_policies_are_detected(what: str) -> None:
    policy = make_policy(ACTION_SPACES[0])
    kind = make_kind(policy)  # while the policy can still be evaluated: some of what follows breaks it
    assert path_of(kind) == "numpy"
    _replace(policy, what)
    assert path_of(kind) == "torch"


def test_hooks_on_the_policy_and_compiled_policies_go_through_forward() -> None:
    policy = make_policy(ACTION_SPACES[0])
    policy.register_forward_hook(lambda module, args, out: out)
    assert path_of(policy) == "forward"
    policy = make_policy(ACTION_SPACES[0])
    policy.compile()
    assert path_of(policy) == "forward"
    assert path_of(th.compile(make_policy(ACTION_SPACES[0]))) == "forward"


def test_other_spaces_take_the_general_path() -> None:
    discrete = make_policy(ACTION_SPACES[0], obs=spaces.Discrete(4))
    image_space = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    image = make_policy(ACTION_SPACES[0], obs=image_space)
    for_dict = partial(make_policy, ACTION_SPACES[0], MultiInputActorCriticPolicy)
    with_discrete = for_dict(obs=spaces.Dict({"a": OBS, "b": spaces.Discrete(4)}))
    with_image = for_dict(obs=spaces.Dict({"a": OBS, "b": image_space}))
    assert [path_of(p) for p in (discrete, image, with_discrete, with_image)] == ["torch"] * 4
    assert path_of(make_policy(ACTION_SPACES[1], use_sde=True)) == "distribution"


def test_noise_is_seen_by_no_other_step() -> None:
    # Blocks of noise are used up row by row: no two steps of a rollout share a row
    policy = make_policy(spaces.Box(-1.0, 1.0, (1,), np.float32))
    sample = noise_sampler(policy, 2, numpy_outputs(policy))
    obs = np.zeros((2, 3), dtype=np.float32)
    actions = np.concatenate([sample(obs) for _ in range(3000)])
    assert len(np.unique(actions)) > 5990


def test_updates_are_seen_by_a_sampler() -> None:
    policy = make_policy(spaces.Box(-1.0, 1.0, (1,), np.float32))
    outputs = numpy_outputs(policy)
    obs = np.ones((1, 3), dtype=np.float32)
    before = outputs(obs)
    with th.no_grad():
        policy.action_net.bias.add_(1.0)
    np.testing.assert_allclose(outputs(obs), before + 1.0, rtol=1e-6)
