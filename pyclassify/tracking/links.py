"""Where to look at runs in the browser."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

from pyclassify.utils.masking import mask

# What `mlflow ui` prints.
LOCAL = "http://127.0.0.1:5000"

# The half of MLflow's pages that is not for language models.
TRAINING = "workflowType=machine_learning"


def show_runs(tracking_uri: str) -> str:
    """What to do to look at the runs that are kept at an address."""
    if server := server_address(tracking_uri):
        return f"open {server}"
    if tracking_uri in ("sqlite:///mlflow.db", f"sqlite:///{Path.cwd()}/mlflow.db"):
        return "mlflow ui"
    # A password stays out of logs.
    secret = mask(tracking_uri) != tracking_uri
    uri = '"$MLFLOW_TRACKING_URI"' if secret else shlex.quote(tracking_uri)
    return f"mlflow ui --backend-store-uri {uri}"


def server_address(tracking_uri: str) -> str | None:
    """A tracking server's address, without user and password; none where runs are in a file."""
    address = urlsplit(tracking_uri)
    if address.scheme not in ("http", "https"):
        return None
    # A browser asks for them; what masks them for reading gives no address to open.
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


def start_quickly(tracking_uri: str) -> str:
    """What to do to look at runs, without the half of `mlflow ui` that is for language models.

    MLflow's own start takes three times as long, and six times the memory: it has a process for
    each of four workers and of nine kinds of jobs that no run of ours asks for.
    """
    if server_address(tracking_uri):
        return show_runs(tracking_uri)
    return f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {show_runs(tracking_uri)} --workers 1"


def run_link(tracking_uri: str, experiment_id: str, run_id: str) -> str:
    """The page of one run."""
    return f"{_pages(tracking_uri)}/experiments/{experiment_id}/runs/{run_id}?{TRAINING}"


def runs_link(tracking_uri: str, experiment_id: str, view: str) -> str:
    """The page of an experiment's runs, as a view of it shows them.

    Args:
        tracking_uri: Where the runs are.
        experiment_id: The experiment.
        view: The view's key, `pyclassify.tracking.ui.BEST.key` for one.
    """
    return (
        f"{_pages(tracking_uri)}/experiments/{experiment_id}/runs?viewStateShareKey={quote(view)}"
        f"&{TRAINING}"
    )


def compare_link(tracking_uri: str, run_ids: Sequence[str], experiment_ids: Sequence[str]) -> str:
    """The page that shows runs side by side, on their server or on the one of `mlflow ui`."""
    runs, experiments = (
        quote(json.dumps(ids, separators=(",", ":")))
        for ids in (list(run_ids), list(dict.fromkeys(experiment_ids)))
    )
    return f"{_pages(tracking_uri)}/compare-runs?runs={runs}&experiments={experiments}&{TRAINING}"


def _pages(tracking_uri: str) -> str:
    """The beginning of each page's address: on the runs' server, or on that of `mlflow ui`."""
    return f"{(server_address(tracking_uri) or LOCAL).rstrip('/')}/#"
