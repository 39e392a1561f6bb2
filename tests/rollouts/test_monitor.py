"""Steps of abandoned episodes in Monitor's files."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch as th
from envs import ScriptedEnv
from helpers import params
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_pg import ReinforceBaseline
from sb3_pg.rollouts.monitor import EpisodeMonitor

LENGTHS = [[3, 9, 4], [10, 2, 6], [20, 30]]


def make_env(folder: Path, monitor: type[Monitor], vec_env_class: Any = DummyVecEnv) -> Any:
    def make(i: int) -> Any:
        return lambda: monitor(ScriptedEnv(LENGTHS[i]), str(folder / str(i)))

    return vec_env_class([make(i) for i in range(len(LENGTHS))])


@pytest.mark.parametrize("vec_env_class", [DummyVecEnv, SubprocVecEnv])
def test_every_step_is_accounted_for(vec_env_class: Any, tmp_path: Path) -> None:
    with closing(make_env(tmp_path, EpisodeMonitor, vec_env_class)) as env:
        model = ReinforceBaseline("MlpPolicy", env, n_episodes=1, seed=0).learn(200)
        n_steps = model.num_timesteps // len(LENGTHS)
        assert env.env_is_wrapped(Monitor) == [True] * len(LENGTHS)
    first = load_results(str(tmp_path))
    assert list(first.columns) == ["index", "r", "l", "t", "abandoned"]
    tables = {i: load_results(str(folder)) for i, folder in enumerate(_one_folder_each(tmp_path))}
    # The longest environment never abandons an episode, and the others lose none but those in progress at the end
    assert tables[2]["abandoned"].sum() == 0 and tables[2]["l"].sum() == n_steps
    for i in (0, 1):
        played = tables[i]["l"].sum() + tables[i]["abandoned"].sum()
        assert tables[i]["abandoned"].sum() > 0 and n_steps - 30 < played <= n_steps
    # By hand: 20 steps of (3, 9, 4, …) are 3 + 9 + 4 + 3 and 1 of 9
    assert tables[0][["l", "abandoned"]].values.tolist()[:5] == [[3, 0], [9, 0], [4, 0], [3, 0], [4, 1]]


def _one_folder_each(folder: Path) -> list[Path]:
    folders = []
    for i in range(len(LENGTHS)):
        own = folder / f"env{i}"
        own.mkdir()
        (folder / f"{i}.monitor.csv").rename(own / "0.monitor.csv")
        folders.append(own)
    return folders


def test_several_resets_add_up(tmp_path: Path) -> None:
    env = EpisodeMonitor(ScriptedEnv([5]), str(tmp_path / "0"))
    infos: list[dict[str, Any]] = []
    for n_steps in (2, 3, 0, 5, 1, 5):
        env.reset()
        for _ in range(n_steps):
            infos.append(env.step(0)[4])
    env.close()
    assert load_results(str(tmp_path))[["r", "l", "abandoned"]].values.tolist() == [[5, 5, 5], [5, 5, 1]]
    assert [info["episode"]["l"] for info in infos if "episode" in info] == [5, 5]


def test_training_and_its_statistics_are_as_with_sb3s(tmp_path: Path) -> None:
    class Stats(BaseCallback):
        def _on_training_start(self) -> None:
            self.seen: list[Any] = []

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.seen += [(info["r"], info["l"]) for info in self.model.ep_info_buffer]

    trained = []
    for monitor in (Monitor, EpisodeMonitor):
        with closing(make_env(tmp_path, monitor)) as env:
            stats = Stats()
            trained.append((params(ReinforceBaseline("MlpPolicy", env, n_episodes=1, seed=0).learn(300, stats)), stats.seen))
    (reference, expected), (ours, seen) = trained
    assert all(th.equal(ours[name], reference[name]) for name in reference) and seen == expected


def test_a_reset_that_is_not_allowed(tmp_path: Path) -> None:
    env = EpisodeMonitor(ScriptedEnv([5]), allow_early_resets=False)
    env.reset()
    env.step(0)
    with pytest.raises(RuntimeError, match="before done"):
        env.reset()
