"""What lies beside a model: statistics of VecNormalize, results, settings of a run."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_pg.loading.errors import NotTrustedError, describe, fitting_together, reading
from sb3_pg.loading.unpickling import MAX_DATA, NotAllowedError, check_data, loads

#: Bytes of the largest file of settings that is read
MAX_SETTINGS = 2**20


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        contents = file.read(limit + 1)
    if len(contents) > limit:
        raise ValueError(f"{describe(path)} is larger than {limit // 2**20} MiB.")
    return contents


def read_pickle(path: str | Path) -> Any:
    """What a pickle holds: statistics of ``VecNormalize``, results of rl-zoo3's ``all_plots``, or other data.

    :param path: the file
    :return: the data
    :raises NotTrustedError: naming what the file asks for and does not get
    :raises ValueError: if it is damaged or larger than ``MAX_DATA``
    """
    contents = _read(Path(path), MAX_DATA)
    with reading(path):
        try:
            return loads(contents)
        except NotAllowedError as error:
            raise NotTrustedError(f"it asks for {error.path}, which files that are not trusted do not get") from error


def load_vec_normalize(path: str | Path, venv: VecEnv) -> VecNormalize:
    """``VecNormalize.load``, of a file that is not trusted.

    :param path: file that ``VecNormalize.save`` has written
    :param venv: environments to normalise
    :return: the environments, normalised
    :raises NotTrustedError: naming what the file asks for and does not get
    :raises ValueError: if it holds no such statistics, or of other observations
    """
    statistics = read_pickle(path)
    if not isinstance(statistics, VecNormalize):
        raise ValueError(f"{describe(path)} holds no VecNormalize.")
    with fitting_together(path):
        statistics.set_venv(venv)
        space = venv.observation_space
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        zeros = {key: np.zeros((venv.num_envs, *(part.shape or ()))) for key, part in parts.items()}
        statistics.normalize_obs(zeros if isinstance(space, spaces.Dict) else zeros[""])
        statistics.normalize_reward(np.zeros(venv.num_envs))
    return statistics


def read_settings(path: str | Path) -> dict[str, Any]:
    """What ``args.yml`` and ``config.yml`` of a run say: an OrderedDict of plain data, as rl-zoo3 writes them.

    :param path: the file
    :return: by name
    :raises NotTrustedError: naming what the file asks for and does not get
    :raises ValueError: if it is damaged or larger than ``MAX_SETTINGS``
    """
    import yaml

    contents = _read(Path(path), MAX_SETTINGS)
    with reading(path):
        settings = yaml.load(contents, settings_loader())
        check_data(settings)
        if not isinstance(settings, dict):
            raise ValueError("it has no names")
        return settings


def settings_loader() -> Any:
    """A loader of PyYAML's for plain data, with the two tags of Python's containers that rl-zoo3 writes.

    :return: a class, which raises ``NotTrustedError`` at the tag of any other Python object
    """
    import yaml

    class SettingsLoader(yaml.SafeLoader):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            # Without YAML's merging of mappings, which can double them line by line, and with names that are scalars
            if not all(isinstance(name, yaml.ScalarNode) for name, _ in node.value):
                raise ValueError("a name that is no text")
            mapping: dict[Any, Any] = yaml.constructor.BaseConstructor.construct_mapping(self, node, deep)
            return mapping

    def ordered_dict(loader: Any, node: Any) -> dict[Any, Any]:
        (pairs,) = loader.construct_sequence(node, deep=True) or [[]]
        if not all(isinstance(name, str | int | float) for name, _ in pairs):
            raise ValueError("a name that is no text")
        return {str(name): value for name, value in pairs}

    def refuse(loader: Any, tag: str, node: Any) -> None:
        raise NotTrustedError(f"it asks for Python's {tag[:100]!r}, which files that are not trusted do not get")

    tag = "tag:yaml.org,2002:python/"
    SettingsLoader.add_constructor(f"{tag}object/apply:collections.OrderedDict", ordered_dict)
    SettingsLoader.add_constructor(f"{tag}tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))
    SettingsLoader.add_multi_constructor(tag, refuse)
    return SettingsLoader


def parse_normalize(text: str) -> dict[str, Any]:
    """Arguments of VecNormalize, as a file of hyperparameters writes them: ``dict(norm_obs=True)`` or ``{'norm_obs': True}``.

    :param text: what rl-zoo3 would evaluate
    :return: by name
    :raises NotTrustedError: if it is more than names and plain values
    """
    try:
        if len(text) > 1_000:
            raise ValueError("too long")
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "dict" and not call.args:
            call = ast.Dict(
                [ast.Constant(keyword.arg) for keyword in call.keywords], [keyword.value for keyword in call.keywords]
            )
        arguments: dict[str, Any] = ast.literal_eval(call)
        if not all(isinstance(name, str) for name in arguments):
            raise ValueError("a name that is no text")
        return arguments
    except Exception as error:
        raise NotTrustedError(f"normalize is {text[:100]!r}, which is more than names and values") from error
