"""What rl-zoo3's help texts do not say: our options, an example of each command, and what to type next."""

import argparse
import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sb3_pg.replacing import replacing

_EXAMPLES = {
    "train": (
        "sb3-pg train --algo vpg --env CartPole-v1 --save-freq 20000",
        "sb3-pg train --resume logs/vpg/CartPole-v1_1      after a crash: the same end, bit for bit",
        "sb3-pg train --algo npg --env Pendulum-v1 -params n_envs:4 gamma:0.95",
    ),
    "enjoy": ("sb3-pg enjoy --algo vpg --env CartPole-v1 --no-render -n 2000",),
    "record_video": ("sb3-pg record_video --algo vpg --env CartPole-v1 -n 500",),
    "plot_train": ("sb3-pg plot_train -a vpg -e CartPole-v1 -f logs",),
    "all_plots": ("sb3-pg all_plots -a vpg a2c -e CartPole-v1 -f logs -o results",),
    "plot_from_file": ("sb3-pg plot_from_file -i results.pkl -r --boxplot",),
    "estimators": ("sb3-pg estimators --algo vpg --env CartPole-v1",),
    "benchmark": (
        "sb3-pg benchmark speed --envs CartPole-v1:8",
        "sb3-pg benchmark run --algos vpg a2c --envs CartPole-v1:100000 --seeds 1 2 --folder runs",
        "sb3-pg benchmark report --folder runs --output report",
    ),
}
_OPTIONS = {
    "train": (
        "--vec-env gymnasium|envpool  beside rl-zoo3's dummy and subproc: Gymnasium's vector environments, or EnvPool's",
        "--resume FOLDER              go on with a run that --save-freq has made, with its options",
    ),
}
_TRUST = "--trust                      run whatever code the files of a run or a model may hold"
_GUIDES = {"estimators": "which_estimator"}


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults of the options, and the lines of the epilog as they are."""


def epilog(command: str, trusting: bool = False) -> str:
    """What stands below the options of a command: ours, if it is rl-zoo3's, examples and where to read on.

    :param command: its name
    :param trusting: whether it is one of rl-zoo3's that takes ``--trust``
    """
    options = [*_OPTIONS.get(command, ()), *([_TRUST] if trusting else [])]
    lines = ["options of sb3-pg:", *(f"  {line}" for line in options), ""] if options else []
    lines += ["examples:", *(f"  {line}" for line in _EXAMPLES[command])]
    return "\n".join([*lines, "", f"guide: docs/guides/{_GUIDES.get(command, 'rl_zoo3')}.md"])


@contextmanager
def suggesting_options() -> Iterator[None]:
    """Say, of an option that a command does not have, which one may have been meant."""
    fail = argparse.ArgumentParser.error

    def fail_with_suggestion(self: Any, message: str) -> None:
        unknown = re.match(r"unrecognized arguments: (-[\w-]+)", message)
        commands = [action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        parsers = [self, *(parser for choices in commands for parser in choices.values())]
        known = [option for parser in parsers for option in parser._option_string_actions]
        close = difflib.get_close_matches(unknown[1], known, n=1) if unknown else []
        fail(self, f"{message} (did you mean {close[0]}?)" if close else message)

    with replacing((argparse.ArgumentParser, "error", fail_with_suggestion)):
        yield


def next_steps(algo: str, env_id: str, run: Path) -> str:
    """What to type after a training.

    :param algo: its algorithm
    :param env_id: its environment
    :param run: its folder, ``LOGS/ALGO/ENV_NUMBER``
    """
    number, logs = run.name.rpartition("_")[2], run.parent.parent
    where = f"--algo {algo} --env {env_id} -f {logs}"
    lines = [f"sb3-pg plot_train -a {algo} -e {env_id} -f {logs}    its training curve"]
    if number.isdigit():  # rl-zoo3 does not find the runs of -uuid
        lines.insert(0, f"sb3-pg enjoy {where} --exp-id {number}          watch it (--no-render: only the returns)")
    return "Next:  " + "\n       ".join(lines)
