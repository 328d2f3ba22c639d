"""Where tracking goes: MLflow's URI as the compute nodes must see it."""

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit, urlunsplit

from pyclassify.utils.masking import mask

# File systems over a network, as /proc/mounts calls them: SQLite's locks may not hold on them.
_NETWORKED = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "fhgfs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs"),
    *("gpfs", "glusterfs", "lustre", "nfs", "nfs4", "orangefs", "panfs", "pvfs2", "smb3", "wekafs"),
)


@dataclass(frozen=True)
class Destination:
    """Where runs are kept.

    Args:
        uri: The tracking URI for the job.
        secret: Whether it has a password in it.
        warning: What may go wrong; empty where nothing does.
        folder: Where the files are that it is made of; empty where it is a server.
    """

    uri: str
    secret: bool = False
    warning: str = ""
    folder: str = ""


def resolve(uri: str, from_nodes: bool = True) -> Destination:
    """Make a tracking URI one for any folder and any node.

    Args:
        uri: The URI of this process.
        from_nodes: Whether compute nodes have to reach it.

    Raises:
        ValueError: No other node can reach it.
    """
    parts = urlsplit(uri)
    if parts.scheme.startswith("sqlite"):
        return _sqlite(uri, parts.scheme)
    if not uri.startswith("databricks") and parts.scheme in ("", "file"):
        path = Path(parts.path or ".").absolute()
        return Destination(f"file://{path}", folder=str(path))
    if from_nodes and parts.hostname and _is_here(parts.hostname):
        raise ValueError(
            f"the tracking URI {mask(uri)} is this host's own, and compute nodes can't reach it; "
            f"{_advise(parts)}"
        )
    return Destination(uri, secret=mask(uri) != uri)


def _advise(parts: SplitResult) -> str:
    if parts.scheme not in ("http", "https"):
        return (
            "give the address of a database that they reach, in MLFLOW_TRACKING_URI, or that of an "
            "`mlflow server` that keeps its runs in this one"
        )
    port = f":{parts.port}" if parts.port else ""
    there = urlunsplit(parts._replace(netloc=f"{socket.gethostname()}{port}"))
    return f"start the server with --host 0.0.0.0 and give MLFLOW_TRACKING_URI={mask(there)}"


def _sqlite(uri: str, scheme: str) -> Destination:
    database, _, query = uri.partition(":///")[2].partition("?")
    if database in ("", ":memory:"):
        raise ValueError(
            f"the tracking URI {uri} is in this process's memory; give a file, such as "
            "MLFLOW_TRACKING_URI=sqlite:///mlflow.db"
        )
    path = Path(database).absolute()
    kind = file_system(path)
    warning = ""
    if kind in _NETWORKED:
        warning = (
            f"{path} is an SQLite database on a network file system ({kind}), where two runs at "
            "once may break it; `mlflow server` on a host that the nodes reach is safe"
        )
    absolute = f"{scheme}:///{path}"
    given = f"{absolute}?{query}" if query else absolute
    return Destination(given, warning=warning, folder=str(path.parent))


def _is_here(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The kind of file system that a path is on, as Linux calls it; empty where it is not known.

    Args:
        path: An absolute path, which need not exist.
        mounts: The table of proc(5).
    """
    try:
        rows = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return ""
    path = path.resolve()
    found = [(len(row[1]), row[2]) for row in rows if path.is_relative_to(_unescape(row[1]))]
    return max(found, key=lambda each: each[0])[1] if found else ""


def _unescape(point: str) -> str:
    return point.replace("\\040", " ")
