"""The environment that a job runs in, and the tracking store that it logs to.

Both are found before the submission, and the environment is built if it is missing. The script of
the job activates the environment.
"""

import ipaddress
import os
import shlex
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import SplitResult, urlsplit, urlunsplit

from pyclassify.slurm.config import Config
from pyclassify.utils.masking import mask

if TYPE_CHECKING:
    from mlflow.projects._project_spec import Project

# Network file systems by their names in /proc/mounts; the locks of SQLite may fail on them.
_NETWORK_FILE_SYSTEMS = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "fhgfs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs"),
    *("gpfs", "glusterfs", "lustre", "nfs", "nfs4", "orangefs", "panfs", "pvfs2", "smb3", "wekafs"),
)


@dataclass(frozen=True)
class Environment:
    """How a job gets its environment.

    Args:
        activation: Lines of bash for a non-login shell; they may call `fail`.
        build: Builds the environment if it is missing.

    Example:
        >>> Environment(("source venv/bin/activate || fail 'venv is missing'",))
    """

    activation: tuple[str, ...] = ()
    build: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class TrackingStore:
    """The tracking store of a run, as a job reaches it.

    Args:
        uri: The tracking URI for the job.
        has_password: Whether the URI contains a password.
        warning: A warning for the user; may be empty.
        folder: The folder of a database or store in files; empty for a server.

    Example:
        >>> TrackingStore("https://mlflow.example.org")
    """

    uri: str
    has_password: bool = False
    warning: str = ""
    folder: str = ""


def choose_environment(
    config: Config, project: "Project", project_dir: Path, manager: str | None
) -> Environment:
    """Choose the environment: that of the configuration, or else that of MLflow's manager.

    Args:
        config: The configuration.
        project: MLflow's project.
        project_dir: The project's folder.
        manager: `--env-manager`, or None for the one that MLflow chooses.

    Raises:
        ValueError: The configured environment does not exist.
    """
    if config.container is not None or config.environment == "none":
        return Environment()
    if config.environment is not None:
        return Environment(_activate_configured(config.environment))
    if manager is None:
        manager = "conda" if project.env_type == "conda_env" else "virtualenv"
    if manager == "local":
        return Environment(_activate_prefix(Path(sys.prefix)))
    if manager == "conda":
        return _conda_environment(project)
    return _virtualenv_environment(project, project_dir, manager)


def resolve_image(name: str) -> str:
    """Make the path of a container image absolute, as the job runs in another folder.

    Args:
        name: A path, or a URI such as `docker://ubuntu`.

    Raises:
        ValueError: The image does not exist.
    """
    if "://" in name:
        return name
    path = Path(os.path.expandvars(name)).expanduser().absolute()
    if not path.exists():
        raise ValueError(
            f"container is {name!r} in the backend config, but {path} does not exist; give an "
            "Apptainer image that compute nodes see, or a URI such as docker://ubuntu"
        )
    return str(path)


def _activate_configured(name: str) -> tuple[str, ...]:
    path = Path(os.path.expandvars(name)).expanduser()
    if activation := _activate_prefix(path.absolute()):
        return activation
    if path.name == name:
        return _activate_conda(name)
    raise ValueError(
        f"environment is {name!r} in the backend config, but that folder contains neither "
        "bin/activate nor conda-meta; give the name or prefix of a conda environment, the path of "
        "a virtualenv, or none"
    )


def _activate_prefix(prefix: Path) -> tuple[str, ...]:
    """The lines that activate the environment in a folder; none where it is not one."""
    if (prefix / "conda-meta").is_dir():
        return _activate_conda(str(prefix))
    if (prefix / "bin" / "activate").is_file():
        return _activate_virtualenv(prefix)
    return ()


def _activate_conda(name: str) -> tuple[str, ...]:
    missing = f"the conda environment {name} can't be activated; check that the job finds conda"
    return (
        'eval "$("${CONDA_EXE:-conda}" shell.bash hook)"',
        f"conda activate {shlex.quote(name)} || fail {shlex.quote(missing)}",
    )


def _activate_virtualenv(prefix: Path) -> tuple[str, ...]:
    missing = (
        f"the virtualenv {prefix} can't be activated; check that compute nodes see that folder"
    )
    return (
        "# shellcheck source=/dev/null",
        f"source {shlex.quote(str(prefix / 'bin' / 'activate'))} || fail {shlex.quote(missing)}",
    )


def _conda_environment(project: "Project") -> Environment:
    from mlflow.utils.conda import _get_conda_env_name, get_or_create_conda_env

    path = project.env_config_path
    return Environment(
        _activate_conda(_get_conda_env_name(path)), lambda: get_or_create_conda_env(path)
    )


def _virtualenv_environment(project: "Project", project_dir: Path, manager: str) -> Environment:
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
    prefix = Path(_get_mlflow_virtualenv_root()) / _get_virtualenv_name(python, project_dir)
    return Environment(
        _activate_virtualenv(prefix),
        lambda: _create_virtualenv(project_dir, python, prefix, env_manager=kind),
    )


def resolve_tracking_uri(uri: str, from_nodes: bool = True) -> TrackingStore:
    """Make a tracking URI independent of the current folder and the node.

    Args:
        uri: The URI of this process.
        from_nodes: Whether compute nodes have to reach it.

    Raises:
        ValueError: Other nodes can't reach it.
    """
    parts = urlsplit(uri)
    if parts.scheme.startswith("sqlite"):
        return _resolve_sqlite(uri, parts.scheme)
    if not uri.startswith("databricks") and parts.scheme in ("", "file"):
        path = Path(parts.path or ".").absolute()
        return TrackingStore(f"file://{path}", folder=str(path))
    if from_nodes and parts.hostname and _is_loopback(parts.hostname):
        raise ValueError(
            f"compute nodes can't reach the tracking URI {mask(uri)}, which is local to this host; "
            f"{_format_remedy(parts)}"
        )
    return TrackingStore(uri, has_password=mask(uri) != uri)


def _format_remedy(parts: SplitResult) -> str:
    if parts.scheme not in ("http", "https"):
        return (
            "set MLFLOW_TRACKING_URI to a database that they reach, or to an `mlflow server` that "
            "stores its runs in this database"
        )
    port = f":{parts.port}" if parts.port else ""
    reachable = urlunsplit(parts._replace(netloc=f"{socket.gethostname()}{port}"))
    return f"start the server with --host 0.0.0.0, and set MLFLOW_TRACKING_URI={mask(reachable)}"


def _resolve_sqlite(uri: str, scheme: str) -> TrackingStore:
    database, _, query = uri.partition(":///")[2].partition("?")
    if database in ("", ":memory:"):
        raise ValueError(
            f"the tracking URI {uri} is a database in the memory of this process; give a file, "
            "such as MLFLOW_TRACKING_URI=sqlite:///mlflow.db"
        )
    path = Path(database).absolute()
    kind = _detect_file_system(path)
    warning = ""
    if kind in _NETWORK_FILE_SYSTEMS:
        warning = (
            f"{path} is an SQLite database on a network file system ({kind}), where concurrent "
            "runs may corrupt it; use an `mlflow server` on a host that the nodes reach"
        )
    absolute_uri = f"{scheme}:///{path}" + (f"?{query}" if query else "")
    return TrackingStore(absolute_uri, warning=warning, folder=str(path.parent))


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _detect_file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Detect the type of the file system of a path; empty where it is unknown.

    Args:
        path: An absolute path, which need not exist.
        mounts: The table of proc(5).
    """
    try:
        rows = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return ""
    path = Path(os.path.realpath(path))
    mounted = [row for row in rows if path.is_relative_to(_unescape_mount(row[1]))]
    return max(mounted, key=lambda row: len(row[1]))[2] if mounted else ""


def _unescape_mount(point: str) -> str:
    return point.replace("\\040", " ")
