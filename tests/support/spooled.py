"""Spools of runs in a store, and servers that respond with an error."""

import contextlib
import http.server
import resource
import shutil
import threading
from types import SimpleNamespace

import mlflow

from pyclassify.spool import records, store
from pyclassify.spool.uploader import Uploader
from pyclassify.spool.writer import close_writer
from tests.support import waiting


class Barrier:
    """A barrier of two processes, each with its end of a connection."""

    def __init__(self, connection):
        connection.settimeout(waiting.scale(120))
        self._messages = connection.makefile("rw")

    def wait(self, _):
        """Wait for the other process."""
        self._messages.write("here\n")
        self._messages.flush()
        assert self._messages.readline(), "the other process has ended"


# Code with which a process acquires the lock of a spool.
ACQUIRE = "from pathlib import Path; from pyclassify.spool import lock; "
ACQUIRE += "lock.acquire(Path({folder!r})); "


def open_store(empty_store, folder):
    """Open a client of a new database in a folder."""
    return mlflow.MlflowClient(f"sqlite:///{shutil.copy(empty_store, folder)}")


@contextlib.contextmanager
def open_run_with_spool(empty_store, folder):
    """A run in a database (`there`), its spool's `folder`, and the `client` that writes to it."""
    store.register_scheme()
    there, root = open_store(empty_store, folder), folder / "spool"
    run_id = there.create_run(there.get_experiment_by_name("tested").experiment_id).info.run_id
    folder = records.create_from_server(root, there, run_id)
    client = mlflow.MlflowClient(f"spool://{root}")
    yield SimpleNamespace(there=there, run_id=run_id, folder=folder, client=client, root=root)
    close_writer(folder)


def upload_spool(spool, there=None):
    """Upload a spool, as a process that has just started; return the number of records."""
    return Uploader(spool.folder, there or spool.there).upload()


def close_spool(folder):
    """Close a spool, as a process that ends does; the next writer opens a new segment."""
    close_writer(folder)


def points(client, run_id, name):
    return [(each.step, each.value) for each in client.get_metric_history(run_id, name)]


@contextlib.contextmanager
def limit_file_size(size):
    """Limit the size of files in this process, so that writing fails as on a full disk."""
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard_limit))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft_limit, hard_limit))


@contextlib.contextmanager
def responding_with(code):
    """Run a server that responds to all requests with a status code; yield its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(code)

        do_POST = do_PATCH = do_PUT = do_GET

        def log_message(self, *args):
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
