"""``sb3-pg train --resume FOLDER``: go on with a run, with the options it was trained with."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from sb3_pg import distributed, zoo
from sb3_pg.checkpoints import CheckpointCallback, find_checkpoint, resume
from sb3_pg.cli.runs import check_packages, read_args
from sb3_pg.cli.trust import check_settings
from sb3_pg.loading import NotTrustedError, parse_normalize, read_settings
from sb3_pg.replacing import replacing
from sb3_pg.rollouts.monitor import EpisodeMonitor

# Options of a run that a resumed one has as well, by what they are called in args.yml
_OPTIONS = (
    "algo", "env", "seed", "n_timesteps", "eval_freq", "eval_episodes", "n_eval_envs", "save_freq", "vec_env", "log_interval",
    "tensorboard_log", "device", "num_threads", "verbose",
)  # fmt: skip
# Options that leave the end what it is
_FREE = ("--device", "--num-threads", "--verbose", "--progress", "-P", "--gym-packages", "--tensorboard-log", "-tb")
# Settings that rl-zoo3 evaluates as Python
_EVALUATED = ("policy_kwargs", "rollout_buffer_class", "rollout_buffer_kwargs", "replay_buffer_class", "replay_buffer_kwargs")


def take_resume(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The run to go on with, if a command names one, and its other options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", type=Path)
    options, others = parser.parse_known_args(arguments)
    return options.resume, others


@contextmanager
def resuming(run: Path | None, arguments: list[str], trusted: bool) -> Iterator[list[str]]:
    """Have rl-zoo3's train go on with a run.

    :param run: its folder; None to train as usual
    :param arguments: options of the command beside the run's
    :param trusted: whether code that the run's files hold may be run
    :return: the options to train with
    :raises ValueError: if there is no checkpoint in the folder, or an option would make another run of it
    """
    if run is None:
        yield arguments
        return
    from rl_zoo3.exp_manager import ExperimentManager

    for option in arguments:
        if option.startswith("-") and option.split("=")[0] not in _FREE:
            raise ValueError(
                f"--resume goes on with the run's own options, to the number of steps that it was started with; {option} is "
                f"not taken ({', '.join(_FREE)} are). To train a model further: sb3-pg train -i MODEL.zip."
            )
    if run.is_file():
        raise ValueError(f"--resume takes the folder of a run, {run.parent}, and goes on from its newest checkpoint.")
    run = run if run.name not in ("", "..") else run.resolve()
    checkpoint, _ = find_checkpoint(run)
    settings = next((path.parent for path in run.glob("*/args.yml")), run)
    args = read_args(settings, trusted)
    if args.get("algo") not in zoo.ALGORITHMS:
        raise ValueError(f"{run} is a run of {args.get('algo')}: only {', '.join(zoo.ALGORITHMS)} can be resumed.")
    if distributed.rank() == 0:
        has_ended = (run / f"{settings.name}.zip").is_file()
        print(f"Going on from {checkpoint}" + (": the run has ended already, and ends the same again." if has_ended else ""))
    entry = _read_entry(run, settings, trusted)
    if not trusted:
        _leave_tensorboard(args, arguments)
    of_run = [text for name in _OPTIONS if args.get(name) not in (None, "")
              for text in (f"--{name.replace('_', '-')}", str(args[name]))]  # fmt: skip
    if args.get("gym_packages") and not _has(arguments, "--gym-packages"):
        if not trusted:
            check_packages(args["gym_packages"], run)
        of_run += ["--gym-packages", *args["gym_packages"]]
    manager: Any = ExperimentManager
    init, create_envs, save_trained_model = manager.__init__, manager.create_envs, manager.save_trained_model

    @wraps(init)
    def initialise(self: Any, *positional: Any, **kwargs: Any) -> None:
        init(self, *positional, **kwargs)
        self.save_path, self.params_path = str(run), str(settings)
        # Not as options, whose text rl-zoo3 evaluates. It takes the training's where there are none for the evaluation
        self.env_kwargs = args.get("env_kwargs") or {}
        self._eval_env_kwargs_args = args.get("eval_env_kwargs")
        self.eval_env_kwargs = self._eval_env_kwargs_args or self.env_kwargs

    @wraps(create_envs)
    def create(self: Any, *positional: Any, **kwargs: Any) -> Any:
        appending = partialmethod(EpisodeMonitor.__init__, override_existing=False)
        with replacing((EpisodeMonitor, "__init__", appending)):
            return create_envs(self, *positional, **kwargs)

    def learn(self: Any, model: Any) -> None:
        others = [callback for callback in self.callbacks if not isinstance(callback, CheckpointCallback)]
        try:
            self.resumed = resume(
                type(model), run, model.get_env(), others,
                trusted=trusted, device=self.device, tensorboard_log=model.tensorboard_log,
            )  # fmt: skip
        finally:
            model.get_env().close()

    @wraps(save_trained_model)
    def save(self: Any, model: Any) -> None:
        save_trained_model(self, self.resumed)

    def keep(self: Any, *_: Any) -> None:
        """What is in the folder."""

    replaced = dict(
        __init__=initialise,
        create_log_folder=keep,
        _save_config=keep,
        create_envs=create,
        learn=learn,
        save_trained_model=save,
    )
    with TemporaryDirectory() as folder:
        config = Path(folder) / "config.yml"
        config.write_text(yaml.safe_dump({args["env"]: entry}), encoding="utf-8")
        with replacing(*((manager, name, value) for name, value in replaced.items())):
            yield [*of_run, "-f", str(run.parent.parent), "--conf-file", str(config), *arguments]


def _has(arguments: list[str], *names: str) -> bool:
    return any(argument.split("=")[0] in names for argument in arguments)


def _leave_tensorboard(args: dict[str, Any], arguments: list[str]) -> None:
    """Log only where the command says: a file of a run does not say where to write."""
    folder = args.pop("tensorboard_log", None)
    if folder and not _has(arguments, "--tensorboard-log", "-tb") and distributed.rank() == 0:
        print(f"The run logged for TensorBoard; to go on with that: --tensorboard-log {str(folder)[:200]!r}")


def _read_entry(run: Path, settings: Path, trusted: bool) -> dict[str, Any]:
    """The hyperparameters of a run, without what would be run of them."""
    entry = dict(read_settings(settings / "config.yml"))
    # What rl-zoo3 would evaluate for a model that the checkpoint's takes the place of
    entry = {name: value for name, value in entry.items() if name not in _EVALUATED}
    if isinstance(entry.get("monitor_kwargs"), str):
        entry["monitor_kwargs"] = parse_normalize(entry["monitor_kwargs"])
    if not trusted:
        check_settings(settings)
        name = "callback" if "callback" in entry else "policy"
        if name == "callback" or "." in str(entry.get(name)):
            raise NotTrustedError(f"the run asks for the {name} {str(entry[name])[:100]!r}, which would be imported")
    return entry
