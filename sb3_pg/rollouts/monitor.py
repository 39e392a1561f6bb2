"""SB3's Monitor, whose file also accounts for the steps of episodes that were given up."""

from typing import Any

from stable_baselines3.common.monitor import Monitor, ResultsWriter


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
                header={"t_start": self.t_start, "env_id": str(None if env.spec is None else env.spec.id)},
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
