"""Which episodes a rollout uses: deterministic, and against the two classical biases."""

import numpy as np
import pytest
from envs import ScriptedEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pg import ReinforceBaseline, VanillaPG
from sb3_pg.rollouts.episodes import EpisodeSelection

# Environment 0 plays 2-step episodes, environment 1 plays 5-step episodes
SHORT, LONG = [2], [5]


def play(lengths: list[list[int]], n_steps: int, n_episodes: int | None, whole: bool = True, limit: int = 100) -> np.ndarray:
    """The mask of a rollout of environments whose episodes have these lengths, ``(n_steps, n_envs)``."""
    selection = EpisodeSelection(len(lengths), n_steps, n_episodes, whole, limit)
    remaining, episode, mask = [x[0] for x in lengths], [0] * len(lengths), []
    going = True
    while going:
        mask.append(selection.in_use.copy())
        dones = np.zeros(len(lengths), dtype=bool)
        for env, x in enumerate(lengths):
            remaining[env] -= 1
            if remaining[env] == 0:
                dones[env], episode[env] = True, episode[env] + 1
                remaining[env] = x[episode[env] % len(x)]
        going = selection.step(dones)
    return np.array(mask)


def test_cut() -> None:
    assert play([SHORT, LONG], 3, None, whole=False).tolist() == [[True, True]] * 3


def test_window_finishes_what_it_started() -> None:
    # Starts within 3 steps: environment 0 at rows 0 and 2, environment 1 at row 0
    assert play([SHORT, LONG], 3, None).T.astype(int).tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_window_does_not_use_an_episode_that_starts_at_its_end() -> None:
    assert play([SHORT, LONG], 2, None).T.astype(int).tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]


def test_quota() -> None:
    assert play([SHORT, LONG], 999, 2).T.astype(int).tolist() == [[1] * 4 + [0] * 6, [1] * 10]


def test_overdue_episode_is_an_error() -> None:
    play([[10, 10], [10]], 15, None, limit=10)
    with pytest.raises(RuntimeError, match=r"environment 1 .* 10 steps.*TimeLimit.*gae"):
        play([[10, 10], [10, 11]], 15, None, limit=10)


class Record(BaseCallback):
    """Which episodes the update used, by their number and length, in each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.used: list[list[tuple[int, int, int]]] = []
        self.starts: list[np.ndarray] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        starts = buffer.mask & (buffer.timesteps == 0)
        self.starts.append(buffer.timesteps[0])
        episodes = []
        for env in range(buffer.n_envs):
            for t in np.flatnonzero(starts[:, env]):
                number = buffer.observations[t, env, 0]
                of_episode = (buffer.observations[:, env, 0] == number) & buffer.mask[:, env]
                episodes.append((env, int(number), int(of_episode.sum())))
        self.used.append(episodes)


@pytest.mark.parametrize(
    "kwargs, per_env",
    [(dict(n_steps=4), {0: 2, 1: 1}), (dict(n_steps=6), {0: 3, 1: 2}), (dict(n_episodes=3), {0: 3, 1: 3})],
)
@pytest.mark.parametrize("cls, weights", [(VanillaPG, "return"), (VanillaPG, "reward_to_go"), (ReinforceBaseline, "gae")])
def test_length_bias(cls, weights, kwargs, per_env) -> None:  # type: ignore[no-untyped-def]
    """Long episodes are used as often as they start, whole, and never across two updates."""
    env = DummyVecEnv([lambda: ScriptedEnv(SHORT), lambda: ScriptedEnv(LONG)])
    record = Record()
    cls("MlpPolicy", env, weights=weights, seed=0, **kwargs).learn(60, callback=record)
    assert len(record.used) > 1
    for used, starts in zip(record.used, record.starts, strict=True):
        assert starts.tolist() == [0, 0]
        for env_idx, length in enumerate((2, 5)):
            lengths = [n for e, _, n in used if e == env_idx]
            assert lengths == [length] * per_env[env_idx]
    numbers = [(e, number) for used in record.used for e, number, _ in used]
    assert len(numbers) == len(set(numbers)), "an episode was used twice"


def test_only_used_episodes_enter_the_statistics() -> None:
    from stable_baselines3.common.monitor import Monitor

    env = DummyVecEnv([lambda: Monitor(ScriptedEnv(SHORT)), lambda: Monitor(ScriptedEnv(LONG))])
    model = VanillaPG("MlpPolicy", env, weights="reward_to_go", n_episodes=1, seed=0).learn(10)
    # One rollout of 5 steps: the second and the unfinished third short episode are surplus
    assert sorted(info["l"] for info in model.ep_info_buffer) == [2, 5]
    assert model.num_timesteps == 10


def test_early_reset_is_explained() -> None:
    from stable_baselines3.common.monitor import Monitor

    env = DummyVecEnv([lambda x=x: Monitor(ScriptedEnv(x), allow_early_resets=False) for x in (SHORT, LONG)])
    with pytest.raises(RuntimeError, match="allow_early_resets=True"):
        VanillaPG("MlpPolicy", env, weights="return", n_episodes=1).learn(100)


def test_endless_episode_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VanillaPG, "MAX_EPISODE_STEPS", 500)
    model = VanillaPG("MlpPolicy", ScriptedEnv([10**9]), weights="reward_to_go")
    with pytest.raises(RuntimeError, match='weights="gae"'):
        model.learn(10_000)
    assert model.num_timesteps == 500
    VanillaPG("MlpPolicy", ScriptedEnv([10**9]), weights="gae").learn(600)
