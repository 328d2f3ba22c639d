"""Spools of runs in a store, and servers that answer as they are told."""

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


class Meeting:
    """A barrier of two processes, each with its end of a connection."""

    def __init__(self, connection):
        connection.settimeout(waiting.scale(120))
        self._words = connection.makefile("rw")

    def wait(self, _):
        """Wait until the other one is here too."""
        self._words.write("here\n")
        self._words.flush()
        assert self._words.readline(), "the other process has ended"


# Code with which a process acquires the lock of a spool.
ACQUIRE = "from pathlib import Path; from pyclassify.spool import lock; "
ACQUIRE += "lock.acquire(Path({folder!r})); "


def open_store(empty_store, folder):
    """A client of a new database in a folder."""
    return mlflow.MlflowClient(f"sqlite:///{shutil.copy(empty_store, folder)}")


@contextlib.contextmanager
def a_run(empty_store, folder):
    """A run in a database (`there`), its spool's `folder`, and the `client` that writes to it."""
    store.register_scheme()
    there, root = open_store(empty_store, folder), folder / "spool"
    run_id = there.create_run(there.get_experiment_by_name("tested").experiment_id).info.run_id
    folder = records.create_from_server(root, there, run_id)
    client = mlflow.MlflowClient(f"spool://{root}")
    yield SimpleNamespace(there=there, run_id=run_id, folder=folder, client=client, root=root)
    close_writer(folder)


def deliver(spool, there=None):
    """Deliver what there is, as a process that has just begun."""
    return Uploader(spool.folder, there or spool.there).upload()


def begin_again(folder):
    """Let go of a spool, as a process does that ends: who writes to it next is another."""
    close_writer(folder)


def points(client, run_id, name):
    return [(each.step, each.value) for each in client.get_metric_history(run_id, name)]


@contextlib.contextmanager
def files_of_at_most(size):
    """Within this context no file of this process's grows further: writing fails, as on a disk."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


@contextlib.contextmanager
def answering(code):
    """The address of a server that answers all requests with a code."""

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
