"""Whatever the constructors are given: a model that trains, or one sentence that names the argument."""

import os
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG

# HYPOTHESIS_CALLS=10000 for the long version
CALLS = int(os.environ.get("HYPOTHESIS_CALLS", "150"))
RUBBISH: list[Any] = [
    "abc", "", -1, 0, 1, 2.5, -0.5, float("nan"), float("inf"), 10**20, True, None, [], {}, {"a": 1}, (), b"x", object(),
    Fraction(1, 2),
    np.array([1.0]), np.array(0.5), np.int64(3), np.float32(0.5), th.zeros(2), lambda: 1, lambda p: "x", lambda p: None,
    lambda p: float("nan"), lambda p: -p, lambda p: 1e-3 * p, complex(1, 1), int, type,
]  # fmt: skip
GOOD: dict[str, list[Any]] = {
    "learning_rate": [1e-3, 0.0], "n_steps": [8, 16], "n_episodes": [None, 1], "batch_size": [None, 4], "gamma": [0.9, 1.0],
    "weights": ["gae", "reward_to_go", "return"], "gae_lambda": [0.5], "discounted_state_distribution": [True, False],
    "normalize_advantage": [True, False], "ent_coef": [0.0, 0.01, 10**20, Fraction(1, 2)], "n_critic_updates": [0, 2],
    "use_sde": [True, False], "sde_sample_freq": [-1, 4], "rollout_buffer_class": [None, RolloutBuffer], "seed": [None, 3],
    "rollout_buffer_kwargs": [None, {}], "stats_window_size": [10], "tensorboard_log": [None], "verbose": [0],
    "policy_kwargs": [None, {}, dict(net_arch=[4]), dict(optimizer_class=th.optim.LBFGS), dict(optimizer_class=th.optim.SGD)],
    "device": ["cpu", "auto"], "normalize_targets": [True, False],
}  # fmt: skip
OWN: dict[Any, dict[str, list[Any]]] = {
    VanillaPG: {"max_grad_norm": [None, 0.5], "critic_learning_rate": [None, 1e-3]},
    ReinforceBaseline: {"max_grad_norm": [None, 0.5], "baseline": ["value", "optimal", "running_mean"]},
    NaturalPG: {"target_kl": [0.01, 0.0], "cg_max_steps": [1, 4], "cg_damping": [0.1, 0.0], "sub_sampling_factor": [None, 2]},
}


@st.composite
def calls(draw: Any) -> tuple[Any, dict[str, Any]]:
    cls = draw(st.sampled_from(list(OWN)))
    known = GOOD | OWN[cls]
    names = draw(st.lists(st.sampled_from(sorted(known)), max_size=4, unique=True))
    kwargs = {name: draw(st.sampled_from(known[name] + (RUBBISH if draw(st.booleans()) else []))) for name in names}
    positional = {"policy": "MlpPolicy", "env": "Pendulum-v1"}
    if draw(st.integers(0, 9)) == 0:
        name = draw(st.sampled_from(["policy", "env"]))
        positional[name] = draw(st.sampled_from(RUBBISH))
    return cls, {**positional, **kwargs}


@settings(max_examples=CALLS, deadline=None, database=None, derandomize=CALLS == 150, suppress_health_check=list(HealthCheck))
@given(calls())
def test_a_model_that_trains_or_one_sentence(call: tuple[Any, dict[str, Any]]) -> None:
    cls, kwargs = call
    small = {"n_steps": 8} if "n_steps" not in kwargs and "n_episodes" not in kwargs else {}
    try:
        model = cls(**kwargs, **small)
    except (TypeError, ValueError) as error:
        message = str(error)
        assert "\n" not in message.strip() and len(message) < 600, message
        names = [*kwargs, *(kwargs["policy_kwargs"] if isinstance(kwargs.get("policy_kwargs"), dict) else ())]
        assert any(name in message for name in [*names, "environment"]), message
        return
    if max(kwargs.get("n_steps") or 0, kwargs.get("n_episodes") or 0) > 10_000:
        return  # a rollout that is long
    model.learn(1)
    assert all(bool(p.isfinite().all()) for p in model.policy.parameters())


@pytest.mark.parametrize("cls", list(OWN))
@pytest.mark.parametrize(
    "name, message",
    [("vf_coef", "critic_learning_rate"), ("n_epochs", "n_critic_updates"), ("gama", "'gamma'"), ("nonsense", "n_steps, ")],
)
def test_keywords_that_are_not_taken_are_named_with_what_takes_their_place(cls: Any, name: str, message: str) -> None:
    with pytest.raises(TypeError, match=f"{cls.__name__} does not take '{name}': .*{message}"):
        cls("MlpPolicy", "CartPole-v1", **{name: 0.5})


def test_subclasses_with_keywords_of_their_own() -> None:
    class Own(VanillaPG):
        def __init__(self, *args: Any, bonus: float, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.bonus = bonus

    assert Own("MlpPolicy", "CartPole-v1", bonus=1.0, n_steps=8).n_steps == 8
    with pytest.raises(TypeError, match="bonnus"):
        Own("MlpPolicy", "CartPole-v1", bonus=1.0, bonnus=1.0)
