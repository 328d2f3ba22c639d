"""The docs site: built once for all tests, and served for a browser."""

import functools
import os
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from filelock import FileLock

from tests.support import budget
from tests.support.processes import ROOT, run


def build(docs, folder):
    """Build pages as CI does: all warnings are errors; the finished process."""
    options = ["-q", "-W", "--keep-going", "-b", "html"]
    return run("-m", "sphinx", *options, docs, folder)


def build_once():
    """The folder of the built site, which all processes of a run of tests share."""
    folder = Path(os.environ[budget.FOLDER], "site")
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            built = build(ROOT / "docs", folder)
            (folder / "warnings").write_text(built.stderr)
    return folder


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextmanager
def serve(folder):
    """The address of a server of a folder's files, on the loopback address."""
    handler = functools.partial(_Handler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
