"""The environment that a job runs in: found or built before submission, activated by bash."""

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pyclassify.slurm.keys import Config


@dataclass(frozen=True)
class Environment:
    """How a job gets its environment.

    Args:
        activation: Lines of bash, for a shell that is no login shell; they may call `fail`.
        build: Makes the environment where it is missing.
    """

    activation: tuple[str, ...] = ()
    build: Callable[[], Any] = lambda: None


def choose(config: Config, project: Any, folder: Path, manager: str | None) -> Environment:
    """Choose the environment: the configuration's, or else that of MLflow's manager.

    Args:
        config: The configuration.
        project: MLflow's project.
        folder: Where it is.
        manager: `--env-manager`, or nothing for the one that MLflow chooses.

    Raises:
        ValueError: There is no such environment.
    """
    if config.container is not None or config.environment == "none":
        return Environment()
    if config.environment is not None:
        return Environment(_find(config.environment))
    if manager is None:
        manager = "conda" if project.env_type == "conda_env" else "virtualenv"
    if manager == "local":
        return Environment(_of_prefix(Path(sys.prefix)))
    if manager == "conda":
        return _conda(project)
    return _virtualenv(project, folder, manager)


def find_image(name: str) -> str:
    """Give the image of a container as the job finds it, in its own folder.

    Args:
        name: A path, or a URI such as `docker://ubuntu`.

    Raises:
        ValueError: There is no such file.
    """
    if "://" in name:
        return name
    path = Path(os.path.expandvars(name)).expanduser().absolute()
    if not path.exists():
        raise ValueError(
            f"container is {name!r} in the backend config, and there is no {path}; it takes an "
            "Apptainer image that compute nodes see, or a URI such as docker://ubuntu"
        )
    return str(path)


def _find(name: str) -> tuple[str, ...]:
    path = Path(os.path.expandvars(name)).expanduser()
    if found := _of_prefix(path.absolute()):
        return found
    if path.name == name:
        return _activate_conda(name)
    raise ValueError(
        f"environment is {name!r} in the backend config, and there is neither bin/activate nor "
        "conda-meta in that folder; it takes a conda environment's name or prefix, a virtualenv's "
        "path, or none"
    )


def _of_prefix(prefix: Path) -> tuple[str, ...]:
    """The lines for the environment in a folder; none where it is not one."""
    if (prefix / "conda-meta").is_dir():
        return _activate_conda(str(prefix))
    if (prefix / "bin" / "activate").is_file():
        return _activate_virtualenv(prefix)
    return ()


def _activate_conda(name: str) -> tuple[str, ...]:
    missing = f"the conda environment {name} can't be activated; does the job find conda?"
    return (
        'eval "$("${CONDA_EXE:-conda}" shell.bash hook)"',
        f"conda activate {shlex.quote(name)} || fail {shlex.quote(missing)}",
    )


def _activate_virtualenv(prefix: Path) -> tuple[str, ...]:
    missing = f"there is no virtualenv in {prefix}; does the node see that folder?"
    return (
        "# shellcheck source=/dev/null",
        f"source {shlex.quote(str(prefix / 'bin' / 'activate'))} || fail {shlex.quote(missing)}",
    )


def _conda(project: Any) -> Environment:
    from mlflow.utils.conda import _get_conda_env_name, get_or_create_conda_env

    path = project.env_config_path
    return Environment(
        _activate_conda(_get_conda_env_name(path)), lambda: get_or_create_conda_env(path)
    )


def _virtualenv(project: Any, folder: Path, manager: str) -> Environment:
    from mlflow.utils.environment import _PythonEnv
    from mlflow.utils.virtualenv import (
        _create_virtualenv,
        _get_mlflow_virtualenv_root,
        _get_virtualenv_name,
    )

    path = project.env_config_path
    if project.env_type == "conda_env":
        python = _PythonEnv.from_conda_yaml(path)
    else:
        python = _PythonEnv.from_yaml(path) if path else _PythonEnv()
    kind: Literal["uv", "virtualenv"] = "uv" if manager == "uv" else "virtualenv"
    prefix = Path(_get_mlflow_virtualenv_root()) / _get_virtualenv_name(python, folder)
    return Environment(
        _activate_virtualenv(prefix),
        lambda: _create_virtualenv(folder, python, prefix, env_manager=kind),
    )
