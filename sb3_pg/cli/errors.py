"""What a user is told when a command fails."""

import inspect
import re
import sys
import traceback
from pathlib import Path

from sb3_pg.algorithms.arguments import suggest
from sb3_pg.checkpoints import steps_of
from sb3_pg.loading import NotTrustedError

_LOADING = ("enjoy", "record_video", "estimators")
_INSTALL = "pip install '.[{}]' in a checkout of sb3_pg"
# Which extra brings a package
_EXTRAS = {"pandas": "benchmark", "rliable": "benchmark", "filelock": "benchmark", "rich": "extra", "matplotlib": "plots"}


def explain(error: Exception, command: str) -> str:
    """One line that says what is wrong and what to do.

    :param error: what the command raised
    :param command: its name
    :return: the line
    """
    message = " ".join(str(error).split())
    if isinstance(error, NotTrustedError):
        way_out = "" if command == "benchmark" else " If you know where it comes from, --trust runs whatever it holds."
        return f"{error.reason}.{way_out}"
    if isinstance(error, ModuleNotFoundError) and str(error.name).split(".")[0] == "rl_zoo3":
        return f"rl-zoo3 is missing: {_INSTALL.format('zoo')}"
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
        return f"{error.name} is missing: {_INSTALL.format(_EXTRAS[error.name])}"
    if isinstance(error, ModuleNotFoundError) and error.name == "optunahub":
        return "--sampler auto fetches its sampler with optunahub: pip install optunahub, or --sampler tpe"
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"there is no file {error.filename}"
    if "Record does not exist" in message:
        return "the storage has no such study: check --study-name and --storage"
    of_training = _explain_training(error, message) if command == "train" else None
    if of_training is not None:
        return of_training
    unexpected = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    if unexpected:
        return _explain_hyperparameter(*unexpected.groups())
    if command in _LOADING and re.search(r"No model found|folder was not found", message):
        checkpoints = _find_checkpoints(message)
        if checkpoints:
            return f"{message}. There are checkpoints of {checkpoints} steps (written at the end of a rollout)."
        return (
            f"{message}. Train an agent first (sb3-pg train), or say where it is with -f FOLDER and --exp-id NUMBER: the "
            "latest run may be a search or one that ended early."
        )
    if command == "plot_from_file" and "empty sequence" in message:
        return "an algorithm has fewer than two complete runs in every environment (see -min of all_plots)"
    if (isinstance(error, ValueError | TypeError | AssertionError) and message) or "`pip install" in message:
        return message
    return f"{type(error).__name__}: {message}"


def _explain_training(error: Exception, message: str) -> str | None:
    """What is wrong with the options and hyperparameters of ``train``, if it is they."""
    if isinstance(error, IndexError) and "--trial-id" in sys.argv:
        return "the study has no such trial: check --trial-id"
    if "missing 1 required positional argument: 'policy'" in message:
        return "'policy' is missing from the hyperparameters"
    if "OrderedDict" in message and {"-conf", "--conf-file"} & set(sys.argv):
        return (
            "the config.yml of a run is no hyperparameter file: put what it lists below the name of the environment, a line "
            "'name: value' each (docs/guides/rl_zoo3.md)"
        )
    # Raised by rl-zoo3, or by a value that it evaluates, and not by the user's environment
    origin = traceback.extract_tb(error.__traceback__)[-1].filename
    if not ("rl_zoo3" in origin or origin == "<string>"):
        return None
    if isinstance(error, NameError | SyntaxError):
        return (
            f"{message}. Hyperparameters are written -params NAME:VALUE; values are Python expressions, with text in quotes: "
            "-params weights:\"'reward_to_go'\" learning_rate:\"'lin_0.001'\""
        )
    if isinstance(error, KeyError):
        return f"{message} is missing from the hyperparameters"
    if isinstance(error, ZeroDivisionError):
        return "n_envs must be at least 1"
    return None


def _find_checkpoints(message: str) -> str:
    """Steps of the checkpoints beside one that was not found, if it was one that was looked for."""
    path = re.search(r"path: (.*rl_model_\d+_steps\.zip)$", message)
    if path is None:
        return ""
    steps = sorted(steps_of(file) for file in Path(path[1]).parent.glob("rl_model_*_steps.zip"))
    return ", ".join(f"{n}" for n in (steps if len(steps) <= 6 else [*steps[:3], "…", *steps[-3:]]))


def _explain_hyperparameter(class_name: str, name: str) -> str:
    from rl_zoo3.utils import ALGOS

    for algorithm in ALGOS.values():
        if algorithm.__name__ == class_name:
            known = list(inspect.signature(algorithm).parameters)
            return f"{class_name} does not take {name!r}: {suggest(name, known[2:-1])}"
    return f"{class_name} does not take {name!r}"
