"""Set the final status of a run whose process has died.

The status is written to the run's spool first, so that it is not lost if the server is unreachable.
Then it is set at the server directly, within a second, by SQL or HTTP: MLflow takes seconds to
import. Finally everything that the dead process has logged is uploaded.
"""

import base64
import json
import os
import sqlite3
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pyclassify.spool import lock, records
from pyclassify.spool.database import find_file
from pyclassify.spool.lock import RunLockedError
from pyclassify.spool.records import REASON_TAG, START_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DIRECT_TIMEOUT_SECONDS = 5.0
_UPLOAD_PAUSES_SECONDS = (0.0, 2.0, 5.0, 10.0)  # before each attempt to upload the rest
# With these settings only MLflow can authenticate a request.
_OTHER_AUTHENTICATION = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")
_OTHER_TLS = ("MLFLOW_TRACKING_CLIENT_CERT_PATH", "MLFLOW_TRACKING_SERVER_CERT_PATH")


class DeadRun:
    """A run whose process has died.

    Args:
        run_id: The run's ID in the spool; None if the process died before it was known.
        start_id: The value of the tag `START_TAG`, by which such a run is found.
        root: The folder of spools.
        tracking_uri: The server; empty for MLflow's default, `spool:` if another process uploads
            the run.

    Example:
        >>> run = DeadRun("0123", "", Path("runs/spool"), "http://server:5000")
        >>> run.close("FAILED", "SIGKILL")
        True
    """

    def __init__(
        self, run_id: str | None, start_id: str, root: Path | None, tracking_uri: str
    ) -> None:
        self.run_id, self.root = run_id, root
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        self._start_id = start_id
        # A run has the tag `START_TAG` until its process knows the run's ID.
        self._tags: dict[str, str | None] = {} if run_id else {START_TAG: None}
        if not run_id and root is not None:
            self.run_id = _find_started(root, start_id)

    @property
    def folder(self) -> Path | None:
        """The run's spool, if there is one."""
        folder = self.root and self.run_id and self.root / self.run_id
        return folder if folder and records.is_spool(folder) else None

    def close(self, status: str, reason: str) -> bool:
        """Set the run's final status in the spool and at the server.

        Args:
            status: FAILED or KILLED.
            reason: The reason, for the tag `status_reason`.

        Returns:
            False if another process has acquired the run's lock, so that the run is running again.
        """
        now = int(time.time() * 1000)
        is_recorded = False
        try:
            if self.folder is not None:
                is_recorded = self._record(status, reason, now)
            elif self.run_id and self.root and lock.find_holder(self.root / self.run_id):
                return False
        except RunLockedError:
            return False
        run_id = self._find_server_id()
        if run_id is not None:
            with suppress(Exception):  # retried by MLflow below
                set_status_directly(self.tracking_uri, run_id, status, reason, now)
        for pause in _UPLOAD_PAUSES_SECONDS:
            time.sleep(pause)
            if self._upload(status, reason, now, is_recorded):
                break
        else:
            self._record_offline(status, reason, now)
        return True

    def connect(self) -> "MlflowClient | None":
        """Connect to the server; None if another process uploads the run."""
        import mlflow

        from pyclassify.utils.mlflow_settings import limit_requests

        limit_requests()
        if self.tracking_uri.startswith("spool:"):
            return None
        return mlflow.MlflowClient(self.tracking_uri or None)

    def _record(self, status: str, reason: str, now: int) -> bool:
        """Write the status to the spool; return whether it is written.

        Raises:
            RunLockedError: Another process holds the run's lock.
        """
        folder = self.folder
        if folder is None:
            return False
        lock.acquire(folder)
        try:
            segment = records.Segment(folder)
            segment.append(
                records.encode({"kind": "tags", "values": {REASON_TAG: reason, **self._tags}})
                + records.encode({"kind": "status", "status": status, "end_time": now, "time": now})
            )
            segment.sync()
            segment.close()
        except OSError:  # a full disk
            return False
        finally:
            lock.release(folder)
        return True

    def _find_server_id(self) -> str | None:
        """Find the run's ID at the server; None if it is not known without a request."""
        folder = self.folder
        if folder is None or records.load_json(folder / records.SPOOL_FILE)["is_at_server"]:
            return self.run_id
        with suppress(OSError):
            return str(records.load_json(folder / records.PROGRESS_FILE)["run_id"]) or None
        return None

    def _upload(self, status: str, reason: str, now: int, is_recorded: bool) -> bool:
        """Upload what the process has logged, and set the status; return whether that is done."""
        from pyclassify.spool.uploader import PendingError, Uploader

        try:
            client = self.connect()
            if client is None:
                return True
            self.run_id = self.run_id or self._search_started(client)
            if self.run_id is None:
                return True  # it was never created
            uploader = Uploader(self.folder, client) if self.folder is not None else None
            if uploader is not None:
                with suppress(PendingError):  # files, which `pyclassify sync` uploads later
                    uploader.upload()
            run_id = self._find_server_id()
            if run_id is not None and not is_recorded:
                if uploader is not None:
                    uploader.fail_pending_models()
                client.set_tag(run_id, REASON_TAG, reason)
                client.set_terminated(run_id, status, now)
                for name in self._tags:
                    client.delete_tag(run_id, name)
        except BlockingIOError:  # another process uploads it, with the status
            return True
        except Exception:  # of the server, the network or the disk
            return False
        return True

    def _search_started(self, client: "MlflowClient") -> str | None:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, f"tags.`{START_TAG}` = '{self._start_id}'")
        return str(runs[0].info.run_id) if runs else None

    def _record_offline(self, status: str, reason: str, now: int) -> None:
        """Create a spool with the status of a run that has none, for `pyclassify sync`."""
        if self.folder is not None or self.root is None or self.run_id is None:
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID", "name:Default")
        with suppress(OSError):
            name = f"offline-{now // 1000}"
            uri = self.tracking_uri
            folder = self.root / self.run_id
            records.create_spool(folder, experiment, name, {}, now, uri, is_at_server=True)
            self._record(status, reason, now)


def _find_started(root: Path, start_id: str) -> str | None:
    """Find the spool of a process that died before it reported the run's ID."""
    with suppress(OSError):
        for folder in root.iterdir() if start_id else ():
            with suppress(OSError):
                if start_id in (folder / records.SPOOL_FILE).read_text():
                    return folder.name
    return None


def set_status_directly(uri: str, run_id: str, status: str, reason: str, now: int) -> None:
    """Set a run's status and reason without MLflow, in an SQLite database or by HTTP.

    Args:
        uri: The tracking URI; one of another kind is ignored.
        run_id: The run.
        status: The final status.
        reason: The reason, for the tag `status_reason`.
        now: When the run ended, in milliseconds since 1970.

    Raises:
        OSError: The server does not respond, or rejects the request.
        sqlite3.Error: The database can't be written.
    """
    setters: dict[str, Callable[..., None]] = {
        "sqlite": _set_in_sqlite,
        "http": _set_by_http,
        "https": _set_by_http,
    }
    if setter := setters.get(urlsplit(uri).scheme):
        setter(uri, run_id, status, reason, now)


def _set_in_sqlite(uri: str, run_id: str, status: str, reason: str, now: int) -> None:
    path = find_file(uri)
    if path is None or not path.is_file():
        return
    with closing(sqlite3.connect(path, timeout=_DIRECT_TIMEOUT_SECONDS)) as database, database:
        values = (status, now, run_id)
        database.execute("UPDATE runs SET status = ?, end_time = ? WHERE run_uuid = ?", values)
        tag = (REASON_TAG, reason, run_id)
        database.execute("INSERT OR REPLACE INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", tag)


def _set_by_http(uri: str, run_id: str, status: str, reason: str, now: int) -> None:
    if any(os.environ.get(name) for name in (*_OTHER_AUTHENTICATION, *_OTHER_TLS)):
        return
    _post(uri, "runs/set-tag", {"run_id": run_id, "key": REASON_TAG, "value": reason})
    _post(uri, "runs/update", {"run_id": run_id, "status": status, "end_time": now})


def _post(uri: str, endpoint: str, content: dict[str, Any]) -> None:
    """Send a request to MLflow's REST API."""
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    address = f"{parts.scheme}://{host}{parts.path.rstrip('/')}/api/2.0/mlflow/{endpoint}"
    headers = {"Content-Type": "application/json"}
    user = parts.username and unquote(parts.username)
    user = user or os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = parts.password and unquote(parts.password)
    password = password or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if user:
        encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {encoded}"
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(address, json.dumps(content).encode(), headers)
    with urllib.request.urlopen(request, timeout=_DIRECT_TIMEOUT_SECONDS):
        pass
