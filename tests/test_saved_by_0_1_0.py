"""What version 0.1.0 saved, before the modules moved, loads and goes on learning."""

import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from helpers import changed, params
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg.algorithms.policy_gradient import PolicyGradient
from sb3_pg.rollouts.buffers import EpisodeRolloutBuffer

# Made by version 0.1.0 (commit 6e6c7e2), whose modules were sb3_pg.vanilla_pg, sb3_pg.buffers and so on:
#
#     own = {"vanilla_pg": (VanillaPG, dict(batch_size=8)), "natural_pg": (NaturalPG, dict(target_kl=0.02)),
#            "reinforce_baseline": (ReinforceBaseline, dict(baseline="optimal"))}
#     for name, (cls, kwargs) in own.items():
#         model = cls("MlpPolicy", "CartPole-v1", n_steps=16, policy_kwargs=dict(net_arch=[4]), seed=0, **kwargs).learn(64)
#         model.save(f"{name}_0.1.0.zip")
#         if cls is VanillaPG:
#             with open("rollout_buffer_0.1.0.pkl", "wb") as file:
#                 pickle.dump(model.rollout_buffer, file)
DATA = Path(__file__).parent / "data"
MODELS: list[tuple[type[PolicyGradient], str, dict[str, Any], int]] = [
    (VanillaPG, "vanilla_pg", dict(batch_size=8), 4),
    (ReinforceBaseline, "reinforce_baseline", dict(baseline="optimal"), 2),
    (NaturalPG, "natural_pg", dict(target_kl=0.02), 4),
]


@pytest.mark.parametrize("cls, name, own, n_updates", MODELS)
def test_a_model_goes_on_learning(
    cls: type[PolicyGradient], name: str, own: dict[str, Any], n_updates: int, tmp_path: Path
) -> None:
    path = DATA / f"{name}_0.1.0.zip"
    model = cls.load(path, env=gym.make("CartPole-v1"), device="cpu")
    assert model.num_timesteps >= 64 and model._n_updates == n_updates and model.n_steps == 16
    assert {key: getattr(model, key) for key in own} == own
    # It acts as its parameters say
    _, state, _ = load_from_zip_file(path, device="cpu")
    weights = {key: value.numpy() for key, value in state["policy"].items()}
    obs = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    hidden = np.tanh(obs @ weights["mlp_extractor.policy_net.0.weight"].T + weights["mlp_extractor.policy_net.0.bias"])
    logits = hidden @ weights["action_net.weight"].T + weights["action_net.bias"]
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], logits.argmax(axis=1))

    steps, before = model.num_timesteps, params(model)
    moments = getattr(model, "_optimal_moments", None)
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps >= steps + 64
    updated = changed(before, model)
    assert "action_net.weight" in updated and ("value_net.weight" in updated) == model.uses_critic
    if isinstance(model, ReinforceBaseline):
        np.testing.assert_allclose(moments, [306.05401, 55.102397], rtol=1e-6)
        assert (model._optimal_moments != moments).all()
    model.save(tmp_path / "again")
    assert not changed(params(model), cls.load(tmp_path / "again", device="cpu"))


def test_a_buffer_is_read_and_filled_again() -> None:
    buffer = pickle.loads((DATA / "rollout_buffer_0.1.0.pkl").read_bytes())
    assert type(buffer) is EpisodeRolloutBuffer
    samples, timesteps, context = buffer.samples()
    assert samples.observations.shape == (16, 4) and timesteps.tolist() == list(range(33, 49)) and context == {}
    # λ-returns of an episode that ended with the rollout
    th.testing.assert_close(samples.returns, samples.advantages + samples.old_values)
    assert samples.returns[-1] == 1.0
    for n_steps in (5, 40):  # less than it has room for, and more
        buffer.reset()
        for t in range(n_steps):
            extra = {"mask": np.full((1, 2), t % 2 == 0)} if n_steps == 40 else {}
            buffer.add(np.full((1, 4), t), np.ones((1, 1)), np.ones(1), np.array([t == 0]), timestep=t, context=extra)
        buffer.compute_returns_and_advantage(th.zeros(1), np.ones(1, dtype=bool), "reward_to_go")
        samples, timesteps, context = buffer.samples()
        assert samples.observations[:, 0].tolist() == timesteps.tolist() == list(range(n_steps))
        assert samples.advantages[-1] == 1.0 and samples.advantages[0] == pytest.approx((1 - 0.99**n_steps) / 0.01, rel=1e-5)
        assert {key: value.tolist() for key, value in context.items()} == (
            {"mask": [[True, True], [False, False]] * 20} if n_steps == 40 else {}
        )
