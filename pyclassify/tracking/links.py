"""Where to look at runs in the browser."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

# What `mlflow ui` prints.
LOCAL = "http://127.0.0.1:5000"


def show_runs(tracking_uri: str) -> str:
    """What to do to look at the runs that are kept at an address."""
    if server := server_address(tracking_uri):
        return f"open {server}"
    if tracking_uri in ("sqlite:///mlflow.db", f"sqlite:///{Path.cwd()}/mlflow.db"):
        return "mlflow ui"
    # A password stays out of logs.
    secret = urlsplit(tracking_uri).password is not None
    uri = '"$MLFLOW_TRACKING_URI"' if secret else shlex.quote(tracking_uri)
    return f"mlflow ui --backend-store-uri {uri}"


def server_address(tracking_uri: str) -> str | None:
    """A tracking server's address, without user and password; none where runs are in a file."""
    if urlsplit(tracking_uri).scheme not in ("http", "https"):
        return None
    address = urlsplit(tracking_uri)
    # A browser asks for them; what masks them for reading gives no address to open.
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


def compare_link(tracking_uri: str, run_ids: Sequence[str], experiment_ids: Sequence[str]) -> str:
    """The page that shows runs side by side, on their server or on the one of `mlflow ui`."""
    runs, experiments = (
        quote(json.dumps(ids, separators=(",", ":")))
        for ids in (list(run_ids), list(dict.fromkeys(experiment_ids)))
    )
    server = (server_address(tracking_uri) or LOCAL).rstrip("/")
    return (
        f"{server}/#/compare-runs?runs={runs}&experiments={experiments}"
        "&workflowType=machine_learning"
    )
