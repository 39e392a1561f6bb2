"""Policies with masks: only legal actions, scored as contrib scores them, and clear words where masks are missing or wrong."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import CLASSES, collect
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.wrappers import ActionMasker
from scipy import stats
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_pg import VanillaPG
from sb3_pg.algorithms.batch import make_batch
from sb3_pg.policies.masked import MaskedKind
from sb3_pg.policies.steps import Steps

SPACES = [spaces.Discrete(5), spaces.MultiDiscrete([3, 2, 4]), spaces.MultiBinary(3)]


def n_logits(space: spaces.Space) -> list[int]:
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    return list(space.nvec) if isinstance(space, spaces.MultiDiscrete) else [2] * space.n


class Forbidding(gym.Env):
    """Forbids at random, refuses what it forbids, and rewards the last legal action of each dimension."""

    def __init__(self, space: spaces.Space, obs: spaces.Space | None = None, length: int = 9):
        self.observation_space = obs or spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space, self.length, self.sizes = space, length, n_logits(space)
        self.rng, self.n_played = np.random.default_rng(0), 0

    def action_masks(self) -> np.ndarray:
        return self.masks

    def _observe(self) -> Any:
        masks = [self.rng.random(n) < 0.5 for n in self.sizes]
        for mask in masks:
            mask[self.rng.integers(len(mask))] = True
        self.masks = np.concatenate(masks)
        return self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.rng = np.random.default_rng(seed)
            self.observation_space.seed(seed)
        self.t = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        parts = np.split(self.masks, np.cumsum(self.sizes)[:-1])
        chosen = np.atleast_1d(action).astype(int)
        assert all(part[a] for part, a in zip(parts, chosen, strict=True)), "illegal"
        self.t, self.n_played = self.t + 1, self.n_played + 1
        reward = float(np.mean([a == np.flatnonzero(part)[-1] for part, a in zip(parts, chosen, strict=True)]))
        return self._observe(), reward, False, self.t >= self.length, {}


POLICIES = ["MaskableMlpPolicy", "MaskableMlpLstmPolicy"]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cls, kwargs", CLASSES)
def test_trains_on_every_space(
    cls: type[VanillaPG], kwargs: dict[str, Any], policy: str, space: spaces.Space, tmp_path: Path
) -> None:
    env = make_vec_env(lambda: Forbidding(space), 2, seed=0)
    policy_kwargs = dict(lstm_hidden_size=8) if "Lstm" in policy else {}
    model = cls(policy, env, seed=0, ent_coef=0.01, batch_size=16, policy_kwargs=policy_kwargs, **kwargs)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.learn(100)
    updated = {key for key, value in model.policy.state_dict().items() if not th.equal(before[key], value)}
    assert "action_net.weight" in updated and ("value_net.weight" in updated) == model.uses_critic
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=env)
    obs, masks = env.reset(), np.stack(env.env_method("action_masks"))
    for deterministic in (True, False):
        action, state = loaded.predict(obs, deterministic=deterministic, action_masks=masks)
        env.step(action)  # or it would refuse
        obs, masks = env.reset(), np.stack(env.env_method("action_masks"))
    assert (state is not None) == ("Lstm" in policy)
    loaded.learn(50, reset_num_timesteps=False)


@pytest.mark.parametrize("policy, obs", [
    ("MaskableCnnPolicy", spaces.Box(0, 255, (36, 36, 1), np.uint8)),
    ("MaskableMultiInputPolicy", spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,), np.float32), "b": spaces.Discrete(3)})),
    ("MaskableMultiInputLstmPolicy", spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,), np.float32)})),
    (MaskableActorCriticPolicy, spaces.MultiDiscrete([2, 3])),
    ("MaskableMlpLstmPolicy", spaces.MultiDiscrete([2, 3])),
])  # fmt: skip
def test_observations(policy: Any, obs: spaces.Space) -> None:
    env = make_vec_env(lambda: Forbidding(SPACES[0], obs), 2, seed=0)
    VanillaPG(policy, env, n_steps=16, seed=0).learn(64)


def test_no_illegal_action_in_100_000_steps() -> None:
    # The environments refuse the first one
    env = make_vec_env(lambda: Forbidding(SPACES[1]), 8, seed=0)
    VanillaPG("MaskableMlpPolicy", env, n_steps=256, learning_rate=3e-2, n_critic_updates=1, seed=0).learn(100_000)
    assert sum(env.get_attr("n_played")) >= 100_000


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, SubprocVecEnv])
def test_masks_through_wrappers_and_processes(vec_env_cls: Any) -> None:
    env = make_vec_env(lambda: ActionMasker(Forbidding(SPACES[0]), lambda env: env.action_masks()), 2, vec_env_cls=vec_env_cls)
    VanillaPG("MaskableMlpPolicy", VecNormalize(env), n_steps=16, seed=0).learn(64)
    env.close()


def kind_for(space: spaces.Space) -> MaskedKind:
    env = make_vec_env(lambda: Forbidding(space), 2, seed=0)
    model = VanillaPG("MaskableMlpPolicy", env, n_steps=16, seed=0, policy_kwargs=dict(net_arch=[]))
    kind = model.kind
    assert isinstance(kind, MaskedKind)
    kind._begin(model.env)
    return kind


def all_actions(space: spaces.Space) -> np.ndarray:
    sizes = n_logits(space)
    return np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), axis=-1).reshape(-1, len(sizes))


def some_forbidden(space: spaces.Space) -> np.ndarray:
    """One value of every dimension but the last of several."""
    sizes = n_logits(space)
    return np.concatenate([(np.arange(n) != n // 2) | (0 < i == len(sizes) - 1) for i, n in enumerate(sizes)])


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_illegal_actions_have_probability_zero(space: spaces.Space, scale: float) -> None:
    kind, sizes, rng = kind_for(space), n_logits(space), np.random.default_rng(0)
    actions = all_actions(space)
    for _ in range(20):
        mask = np.concatenate([np.arange(n) != rng.integers(n) for n in sizes])
        with th.no_grad():
            kind.policy.action_net.bias.copy_(th.as_tensor(np.where(mask, -scale, scale) + rng.normal(size=len(mask))))
        steps = Steps(th.zeros(len(actions), 3), th.as_tensor(actions).squeeze(-1),
                      {"action_masks": th.as_tensor(mask).repeat(len(actions), 1)})  # fmt: skip
        log_prob, entropy = kind.log_prob_and_entropy(steps)
        starts = np.cumsum([0, *sizes[:-1]])
        is_legal = mask[starts + actions].all(axis=1)
        p = log_prob.exp().detach().numpy()
        assert (p[~is_legal] == 0.0).all()
        assert p.sum() == pytest.approx(1.0, abs=1e-5)
        assert entropy[0].item() == pytest.approx(-(p[is_legal] * np.log(p[is_legal])).sum(), abs=1e-5)
        gradient = th.autograd.grad(log_prob[th.as_tensor(is_legal)].sum() + entropy.sum(), kind.policy.action_net.bias)[0]
        assert (gradient[~th.as_tensor(mask)] == 0.0).all() and gradient.isfinite().all()


@pytest.mark.parametrize("space", SPACES)
def test_actions_are_drawn_from_the_masked_policy(space: spaces.Space) -> None:
    mask = some_forbidden(space)

    class Constant(Forbidding):
        def _observe(self) -> Any:
            self.masks = mask
            return np.zeros(3, dtype=np.float32)

    env = make_vec_env(lambda: Constant(space), 50, seed=0)
    model = VanillaPG("MaskableMlpPolicy", env, n_steps=100, seed=0, policy_kwargs=dict(net_arch=[]))
    with th.no_grad():
        model.policy.action_net.bias.copy_(th.linspace(-1.0, 1.0, len(mask)))
    collect(model)
    drawn = model.rollout_buffer.actions.reshape(5000, -1).astype(int)
    actions = all_actions(space)
    steps = Steps(th.zeros(len(actions), 3), th.as_tensor(actions).squeeze(-1),
                  {"action_masks": th.as_tensor(mask).repeat(len(actions), 1)})  # fmt: skip
    p = model.kind.log_prob_and_entropy(steps)[0].exp().detach().double().numpy()
    counts = (drawn[:, None] == actions).all(axis=2).sum(axis=0)
    assert counts[p == 0.0].sum() == 0
    assert stats.chisquare(counts[p > 0.0], p[p > 0.0] / p.sum() * 5000).pvalue > 1e-3


@pytest.mark.parametrize("space", SPACES)
def test_the_divergence_is_that_of_the_legal_actions(space: spaces.Space) -> None:
    """By enumeration, and its Hessian against the Fisher matrix of the scores."""
    kind = kind_for(space)
    bias = kind.policy.action_net.bias
    with th.no_grad():
        bias.copy_(th.linspace(-1.0, 1.0, len(bias)))
    mask = th.as_tensor(some_forbidden(space))
    actions = th.as_tensor(all_actions(space)).squeeze(-1)
    every = Steps(th.zeros(len(actions), 3), actions, {"action_masks": mask.repeat(len(actions), 1)})
    log_prob, _ = kind.log_prob_and_entropy(every)
    p, fisher = log_prob.exp().detach(), th.zeros(len(bias), len(bias))
    for i in th.nonzero(p).flatten():
        score = th.autograd.grad(log_prob[i], bias, retain_graph=True)[0]
        fisher += p[i] * th.outer(score, score)
    one = Steps(th.zeros(1, 3), actions[:1], {"action_masks": mask[None]})
    (gradient,) = th.autograd.grad(kind.kl_divergence(one).sum(), bias, create_graph=True)
    hessian = th.stack([th.autograd.grad(g, bias, retain_graph=True)[0] for g in gradient])
    th.testing.assert_close(hessian, fisher, rtol=1e-4, atol=1e-6)
    assert (hessian[~mask] == 0.0).all() and (hessian[:, ~mask] == 0.0).all()


def test_advantages_and_gradient_are_those_of_maskable_ppo() -> None:
    """On a rollout that MaskablePPO recorded."""
    n_steps, env = 40, make_vec_env(lambda: Forbidding(SPACES[1]), 3, seed=0)
    ppo = MaskablePPO("MlpPolicy", env, n_steps=n_steps, seed=0, learning_rate=0.0, n_epochs=1, batch_size=120)
    ppo.learn(120)
    model = VanillaPG("MaskableMlpPolicy", make_vec_env(lambda: Forbidding(SPACES[1]), 3, seed=0), n_steps=n_steps, seed=0,
                      gae_lambda=ppo.gae_lambda, normalize_advantage=False)  # fmt: skip
    model.policy.load_state_dict(ppo.policy.state_dict())
    model.learn(0)
    theirs, ours = ppo.rollout_buffer, model.rollout_buffer

    def unflatten(x: np.ndarray) -> np.ndarray:
        return x.reshape(3, n_steps, *x.shape[1:]).swapaxes(0, 1)

    for t in range(n_steps):
        shown = (unflatten(x)[t] for x in (theirs.observations, theirs.actions))
        ours.add(*shown, theirs.rewards[t], theirs.episode_starts[t],
                 context={"action_masks": unflatten(theirs.action_masks)[t].astype(bool)})  # fmt: skip
    ours.trim()
    model.kind.fill_values(ours, slice(0, n_steps), goes_on=True)
    model.kind.fill_log_probs(ours, slice(0, n_steps))
    np.testing.assert_allclose(ours.values, unflatten(theirs.values)[..., 0], atol=1e-5)
    np.testing.assert_allclose(ours.log_probs, unflatten(theirs.log_probs)[..., 0], atol=1e-5)
    with th.no_grad():
        last = model.policy.predict_values(th.as_tensor(ppo._last_obs))
    ours.compute_returns_and_advantage(last, ppo._last_episode_starts)  # γV(terminal) is in MaskablePPO's rewards
    np.testing.assert_allclose(ours.advantages, unflatten(theirs.advantages)[..., 0], atol=1e-5)
    batch = make_batch(model)
    log_prob, _ = model.kind.log_prob_and_entropy(batch.steps)
    _, expected, _ = model.policy.evaluate_actions(
        batch.steps.observations, batch.steps.actions, batch.steps.context["action_masks"]
    )
    gradients = [th.autograd.grad((x * batch.weights).sum(), model.kind.actor_parameters()) for x in (log_prob, expected)]
    th.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


# What is refused


class NoMasks(Forbidding):
    action_masks = None


def test_environments_without_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="needs environments with a method action_masks"):
        VanillaPG("MaskableMlpPolicy", "CartPole-v1")


def test_continuous_actions_are_refused() -> None:
    for policy in POLICIES:
        with pytest.raises(ValueError, match="masks discrete actions, but Box"):
            VanillaPG(policy, "Pendulum-v1")


@pytest.mark.parametrize(
    "masks, message",
    [
        (np.ones(4, dtype=bool), "of environment 1 gives 4 values, but .* needs 5"),
        (np.zeros(5, dtype=bool), "No action is legal in environment 1 at step 7 of the rollout"),
    ],
)
def test_wrong_masks_are_named(masks: np.ndarray, message: str) -> None:
    class Wrong(Forbidding):
        def _observe(self) -> Any:
            obs = super()._observe()
            if self.t == 7:
                self.masks = masks
            return obs

    env = DummyVecEnv([lambda: Forbidding(SPACES[0]), lambda: Wrong(SPACES[0])])
    with pytest.raises(ValueError, match=message):
        VanillaPG("MaskableMlpPolicy", env, n_steps=16, seed=0).learn(100)


def test_masks_for_a_policy_that_takes_none_are_refused() -> None:
    model = VanillaPG("MlpPolicy", "CartPole-v1")
    with pytest.raises(TypeError, match="action_masks"):
        model.predict(model.env.reset(), action_masks=np.ones((1, 2), dtype=bool))
