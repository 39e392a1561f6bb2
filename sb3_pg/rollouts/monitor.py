"""SB3's Monitor: its file also accounts for the steps of episodes that were given up, and is of one process alone."""

from pathlib import Path
from typing import Any

from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg import distributed


class EpisodeMonitor(Monitor[Any, Any]):
    """SB3's Monitor with one more column in its file: ``abandoned``.

    Rollouts of whole episodes begin with a reset, and the surplus episodes in progress are given up: played, but never
    finished, and so in no row. A row says how many such steps its environment has played since the row before: Σ (``l`` +
    ``abandoned``) is what was played up to the end of an episode. ``r``, ``l`` and what ``rollout/ep_rew_mean`` is the mean of
    are SB3's.

    Parameters are those of :class:`stable_baselines3.common.monitor.Monitor`.
    """

    def __init__(
        self,
        env: Any,
        filename: str | None = None,
        allow_early_resets: bool = True,
        reset_keywords: tuple[str, ...] = (),
        info_keywords: tuple[str, ...] = (),
        override_existing: bool = True,
    ):
        super().__init__(env, None, allow_early_resets, reset_keywords, info_keywords)
        if filename is not None:
            self.results_writer = ResultsWriter(
                filename,
                header=_header(self),
                extra_keys=(*reset_keywords, *info_keywords, "abandoned"),
                override_existing=override_existing,
            )

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode.

        :param kwargs: of the environment's reset
        :return: the first observation, and information
        """
        abandoned = self.count_abandoned()
        result = super().reset(**kwargs)
        self.note_abandoned(abandoned)
        return result

    def count_abandoned(self) -> int:
        """Steps since the last row of the file that a reset would give up now."""
        return 0 if self.needs_reset else len(self.rewards) + self.current_reset_info.get("abandoned", 0)

    def note_abandoned(self, n_steps: int) -> None:
        """Have the next row say that so many steps were given up before its episode."""
        self.current_reset_info["abandoned"] = n_steps  # which Monitor adds to the row


def part_monitors(env: VecEnv) -> None:
    """Where several ranks have opened the same files of ``Monitor``, let each have its own: ``rank1.0.monitor.csv``.

    :param env: the environments; those in the processes of ``SubprocVecEnv`` are out of reach
    """
    if distributed.size() == 1:
        return
    monitors: list[Any] = [unwrap_wrapper(each, Monitor) for each in getattr(env.unwrapped, "envs", [])]
    writing: list[Any] = [monitor for monitor in monitors if monitor is not None and monitor.results_writer is not None]
    of_all = distributed.gather_items([monitor.results_writer.file_handler.name for monitor in writing])
    for monitor in writing:
        writer, file = monitor.results_writer, monitor.results_writer.file_handler
        if sum(file.name in names for names in of_all) == 1:
            continue
        file.close()
        path = Path(file.name)
        # Rank 0 writes its own from the beginning: the others have begun to write into it
        monitor.results_writer = ResultsWriter(
            str(path.with_name(f"rank{distributed.rank()}.{path.name}") if distributed.rank() > 0 else path),
            header=_header(monitor),
            extra_keys=tuple(writer.logger.fieldnames)[3:],  # after r, l and t
            override_existing=file.mode == "wt",
        )


def _header(monitor: Monitor[Any, Any]) -> dict[str, Any]:
    return {"t_start": monitor.t_start, "env_id": str(None if monitor.env.spec is None else monitor.env.spec.id)}
