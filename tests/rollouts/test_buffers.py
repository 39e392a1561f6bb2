"""The buffer keeps SB3's promises, grows, and marks what is in use."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_pg.rollouts.buffers import EpisodeDictRolloutBuffer, EpisodeRolloutBuffer, hold

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
DICT = spaces.Dict({"vec": BOX, "kind": spaces.Discrete(4)})
SPACES = [BOX, spaces.Discrete(5), DICT]
ACTIONS = [spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2, 2), np.float32), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(4)]
N_ENVS = 2


def observe(space: spaces.Space):  # type: ignore[no-untyped-def]
    if isinstance(space, spaces.Dict):
        return {key: observe(sub) for key, sub in space.spaces.items()}
    return np.stack([space.sample() for _ in range(N_ENVS)])


def fill(buffers: list[RolloutBuffer], n_steps: int, seed: int = 0) -> tuple[th.Tensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    starts = np.ones(N_ENVS, dtype=bool)
    for _ in range(n_steps):
        obs = observe(buffers[0].observation_space)
        action = np.stack([buffers[0].action_space.sample() for _ in range(N_ENVS)])
        reward, value, log_prob = (
            rng.normal(size=N_ENVS),
            th.as_tensor(rng.normal(size=N_ENVS)),
            th.as_tensor(rng.normal(size=N_ENVS)),
        )
        for buffer in buffers:
            buffer.add(obs, action, reward, starts, value, log_prob)
        starts = rng.random(N_ENVS) < 0.3
    return th.as_tensor(rng.normal(size=N_ENVS)), starts


def make(space: spaces.Space, action_space: spaces.Space, n_steps: int) -> tuple[EpisodeRolloutBuffer, RolloutBuffer]:
    classes = (EpisodeDictRolloutBuffer, DictRolloutBuffer) if space is DICT else (EpisodeRolloutBuffer, RolloutBuffer)
    return tuple(c(n_steps, space, action_space, "cpu", gamma=0.9, gae_lambda=0.8, n_envs=N_ENVS) for c in classes)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("action_space", ACTIONS)
def test_equals_sb3s_buffer(space: spaces.Space, action_space: spaces.Space) -> None:
    ours, theirs = make(space, action_space, 16)
    for seed in (0, 1):  # the second rollout reuses the memory
        for buffer in (ours, theirs):
            buffer.reset()
        last_values, dones = fill([ours, theirs], 16, seed)
        for buffer in (ours, theirs):
            buffer.compute_returns_and_advantage(last_values, dones)
        assert ours.size() == theirs.size() == 16 and ours.full
        for name in ("actions", "rewards", "episode_starts", "values", "log_probs"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        for name in ("advantages", "returns"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-6)
        np.random.seed(seed)
        batches = list(ours.get(10))
        np.random.seed(seed)
        for a, b in zip(batches, theirs.get(10), strict=True):
            assert type(a) is type(b)
            for x, y in zip(a, b, strict=True):
                th.testing.assert_close(x, y)


@pytest.mark.parametrize("space", SPACES)
def test_grows_and_reuses_its_memory(space: spaces.Space) -> None:
    ours, theirs = make(space, ACTIONS[0], 4)[0], make(space, ACTIONS[0], 37)[1]
    last_values, dones = fill([ours, theirs], 37)
    ours.compute_returns_and_advantage(last_values, dones)
    theirs.compute_returns_and_advantage(last_values, dones)
    np.testing.assert_allclose(ours.advantages, theirs.advantages, atol=1e-6)
    assert ours.size() == 37 and ours.rewards.shape == (37, N_ENVS)
    memory = ours.rewards.base
    ours.reset()
    assert ours.pos == 0 and ours.buffer_size == 4 and not ours.full
    fill([ours], 5)
    ours.trim()
    assert ours.rewards.base is memory and len(ours.rewards) == 5


def test_flattening_copies_no_observations() -> None:
    image = spaces.Box(0, 255, (3, 8, 8), np.uint8)
    buffer = EpisodeRolloutBuffer(5, image, spaces.Discrete(2), n_envs=3)
    frames = np.random.default_rng(0).integers(0, 256, (5, 3, 3, 8, 8), np.uint8)
    for _ in range(2):
        buffer.reset()
        for obs in frames:
            buffer.add(obs, np.zeros((3, 1)), np.zeros(3), np.zeros(3))
        buffer.trim()
        assert np.array_equal(buffer.observations, frames)
        kept = buffer.observations
        samples, _, _ = buffer.samples()
        assert np.shares_memory(samples.observations.numpy(), kept)
        assert np.array_equal(samples.observations.numpy(), frames.swapaxes(0, 1).reshape(15, 3, 8, 8))


@pytest.mark.parametrize("space", SPACES)
def test_only_steps_in_use_are_sampled(space: spaces.Space) -> None:
    buffer = make(space, ACTIONS[0], 6)[0]
    last_values, dones = fill([buffer], 6)
    buffer.mask[4:, 0] = False
    buffer.timesteps[:] = np.arange(6)[:, None]
    rewards = np.concatenate([buffer.values[:4, 0], buffer.values[:, 1]])
    buffer.compute_returns_and_advantage(last_values, dones)
    samples, timesteps, context = buffer.samples()
    assert context == {}
    np.testing.assert_array_equal(samples.old_values, rewards)
    assert timesteps.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    drawn = th.cat([batch.old_values for batch in buffer.get(4)])
    np.testing.assert_array_equal(np.sort(drawn), np.sort(rewards))


def test_context_goes_with_its_steps() -> None:
    buffer = EpisodeRolloutBuffer(4, BOX, ACTIONS[0], "cpu", n_envs=N_ENVS)
    for n_steps in (9, 3):  # it grows; the second rollout reuses the memory
        buffer.reset()
        for t in range(n_steps):
            context = {"number": np.array([t, 100 + t]), "mask": np.full((N_ENVS, 2, 3), t % 2 == 0)}
            mask = np.array([t != 1, True])
            buffer.add(np.zeros((N_ENVS, 3)), np.zeros(N_ENVS), np.ones(N_ENVS), np.zeros(N_ENVS), mask=mask, context=context)
        buffer.compute_returns_and_advantage(th.zeros(N_ENVS), np.ones(N_ENVS, dtype=bool))
        _, _, context = buffer.samples()
        used = [t for t in range(n_steps) if t != 1] + [100 + t for t in range(n_steps)]
        assert context["number"].tolist() == used and context["mask"].dtype == th.bool
        assert context["mask"].shape == (len(used), 2, 3)
        assert context["mask"][:, 1, 2].tolist() == [t % 2 == 0 for t in used]


@pytest.mark.parametrize("is_dict", [False, True])
def test_what_vecnormalize_makes_of_integers_is_kept(is_dict: bool) -> None:
    # The observation space still says int64
    space: spaces.Space = spaces.Box(0, 10, (2,), np.int64)
    buffer_class: Any = EpisodeDictRolloutBuffer if is_dict else EpisodeRolloutBuffer
    buffer = buffer_class(4, spaces.Dict(x=space) if is_dict else space, spaces.Discrete(2))
    obs = np.array([[0.25, -1.5]], dtype=np.float32)
    for _ in range(2):
        buffer.reset()
        for _ in range(5):
            buffer.add({"x": obs} if is_dict else obs, np.zeros((1, 1)), np.zeros(1), np.zeros(1))
        stored = buffer.observations["x"] if is_dict else buffer.observations
        np.testing.assert_array_equal(stored[:5], np.broadcast_to(obs, (5, 1, 2)))


@pytest.mark.parametrize(
    "stored, values, expected",
    [
        (np.bool_, np.float32, np.float32), (np.bool_, np.float64, np.float32), (np.bool_, np.uint8, np.uint8),
        (np.int8, np.int64, np.int64), (np.uint8, np.float16, np.float16), (np.int32, np.float32, np.float32),
        (np.float16, np.float32, np.float32), (np.float16, np.float64, np.float32), (np.float32, np.float64, np.float32),
        (np.float32, np.int64, np.float32), (np.float64, np.float32, np.float64), (np.uint8, np.uint8, np.uint8),
        (np.int64, np.int32, np.int64),
    ],
)  # fmt: skip
def test_types_that_cannot_hold_what_the_policy_saw_give_way(stored: Any, values: Any, expected: Any) -> None:
    array = np.zeros((2, 3), stored)
    held = hold(array, np.ones(3, values))
    assert held.dtype == expected and (held is array) == (stored == expected)
    assert hold({"x": array}, {"x": np.ones(3, values)})["x"].dtype == expected


def test_weights_and_targets() -> None:
    # One environment, γ = 1/2: an episode of two steps, one of one step
    buffer = EpisodeRolloutBuffer(8, BOX, ACTIONS[0], "cpu", gamma=0.5, gae_lambda=0.5, n_envs=1)
    starts = [True, False, True]

    def play() -> None:
        buffer.reset()
        for start, reward, value in zip(starts, [1.0, 2.0, 4.0], [10.0, 20.0, 30.0], strict=True):
            buffer.add(np.zeros((1, 3)), np.zeros(1), np.array([reward]), np.array([start]), th.tensor([value]), th.zeros(1))

    last, done = th.tensor([100.0]), np.array([True])
    for weights, psi in (("return", [2, 2, 4]), ("reward_to_go", [2, 2, 4])):
        play()
        buffer.compute_returns_and_advantage(last, done, weights)
        assert buffer.advantages[:, 0].tolist() == psi
        assert buffer.returns[:, 0].tolist() == [2, 2, 4]
    play()
    terminal = np.array([[0.0], [40.0], [0.0]], dtype=np.float32)  # the first episode was truncated
    buffer.compute_returns_and_advantage(last, done, "gae", terminal)
    deltas = [1 + 0.5 * 20 - 10, 2 + 0.5 * 40 - 20, 4 - 30]
    assert buffer.advantages[:, 0].tolist() == [deltas[0] + 0.25 * deltas[1], deltas[1], deltas[2]]
    assert buffer.rewards[:, 0].tolist() == [1, 2, 4]
