"""Optimizers of a policy whose parts the user replaces."""

from pathlib import Path
from typing import Any

import pytest
import torch as th
from helpers import changed, params
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_pg import NaturalPG, ReinforceBaseline, VanillaPG
from sb3_pg.algorithms.optimizers import follow_replacements
from sb3_pg.algorithms.policy_gradient import PolicyGradient

ALGORITHMS = pytest.mark.parametrize("cls", [VanillaPG, ReinforceBaseline, NaturalPG])


def make_model(cls: type[PolicyGradient] = VanillaPG, env: str = "CartPole-v1", **kwargs: Any) -> PolicyGradient:
    return cls("MlpPolicy", env, n_steps=16, seed=0, **kwargs).learn(64)


def held(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def is_same(first: Any, second: Any) -> bool:
    first, second = list(first), list(second)
    return len(first) == len(second) and all(a is b for a, b in zip(first, second, strict=True))


@ALGORITHMS
@pytest.mark.parametrize("part", ["action_net", "value_net"])
def test_a_replaced_layer_is_trained(cls: type[PolicyGradient], part: str, tmp_path: Path) -> None:
    model = make_model(cls)
    weight = model.policy.mlp_extractor.value_net[0].weight
    moments = model.critic_optimizer.state[weight]["exp_avg"].clone()
    setattr(model.policy, part, nn.Linear(64, getattr(model.policy, part).out_features))
    before = params(model)
    model._follow_policy()
    assert is_same(held(model.policy.optimizer), model.policy.parameters())
    assert is_same(held(model.critic_optimizer), model.kind.critic_parameters())
    assert {id(p) for p in model.kind.critic_parameters()} == {
        id(p) for name, p in model.policy.named_parameters() if "value_net" in name
    }
    th.testing.assert_close(model.critic_optimizer.state[weight]["exp_avg"], moments)
    model.learn(16, reset_num_timesteps=False)
    assert changed(before, model) == set(before)
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=model.get_env())
    assert not changed(params(model), loaded)
    for name in ("policy", "critic"):
        ours, theirs = (x.policy.optimizer if name == "policy" else x.critic_optimizer for x in (model, loaded))
        th.testing.assert_close(ours.state_dict()["state"], theirs.state_dict()["state"])


def test_the_other_parameters_keep_their_state() -> None:
    model = make_model()
    optimizer, policy = model.policy.optimizer, model.policy
    weight, bias = policy.mlp_extractor.policy_net[0].weight, policy.action_net.bias
    moments = optimizer.state[weight]["exp_avg"].clone()
    policy.action_net.weight = nn.Parameter(policy.action_net.weight.detach() * 0.5)
    model._follow_policy()
    assert th.equal(optimizer.state[weight]["exp_avg"], moments) and optimizer.state[bias]["step"] == 4
    assert set(optimizer.state) <= set(policy.parameters())


def test_a_wrapped_layer_goes_on() -> None:
    model = make_model(env="Pendulum-v1")
    bias = model.policy.action_net.bias
    model.policy.action_net = nn.Sequential(model.policy.action_net, nn.Tanh())
    model.learn(16)
    assert model.policy.optimizer.state[bias]["step"] == 5


def test_an_added_layer_is_trained_in_the_order_of_a_policy_that_has_it() -> None:
    model = make_model()
    model.policy.mlp_extractor.policy_net = nn.Sequential(*model.policy.mlp_extractor.policy_net, nn.Linear(64, 64))
    before = params(model)
    model.learn(16)
    assert "mlp_extractor.policy_net.4.weight" in changed(before, model)
    assert is_same(held(model.policy.optimizer), model.policy.parameters())
    assert model.policy.optimizer.param_groups[0]["fused"]


def test_what_a_policy_keeps_from_its_optimizer_stays_out_of_it() -> None:
    class Partly(ActorCriticPolicy):
        def _build(self, lr_schedule: Any) -> None:
            super()._build(lr_schedule)
            own = [p for name, p in self.named_parameters() if "policy_net.0" not in name]
            self.optimizer = self.optimizer_class([{"params": own[:2]}, {"params": own[2:]}], lr=1e-3)

    model = VanillaPG(Partly, "CartPole-v1", n_steps=16, seed=0).learn(32)
    before = params(model)
    first = model.policy.mlp_extractor.policy_net[0]
    first.weight = nn.Parameter(first.weight.detach().clone())
    model.policy.action_net = nn.Linear(64, 2)
    model.learn(32)
    updated = changed(before, model)
    assert "action_net.weight" in updated and not any("policy_net.0" in name for name in updated)
    assert any(p is model.policy.action_net.weight for p in model.policy.optimizer.param_groups[1]["params"])


def test_the_actors_old_layer_is_not_stepped() -> None:
    model = make_model()
    old = model.policy.action_net
    before = old.weight.detach().clone()
    model.policy.action_net = nn.Linear(64, 2)
    model.learn(32)
    assert th.equal(old.weight, before)


def test_tensors_that_the_fused_kernel_would_spoil() -> None:
    old, new = nn.Parameter(th.ones(3)), nn.Parameter(th.ones(3, 8)[:, :4])
    optimizer = th.optim.Adam([old], fused=True)
    follow_replacements(optimizer, {"x": old}, {"x": new})
    assert held(optimizer) == [new] and not optimizer.param_groups[0]["fused"]
