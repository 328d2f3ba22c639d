"""Run `mlflow models serve` on a free port of this machine."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil


@contextlib.contextmanager
def running(model, *options, seconds=600):
    """Start a server within this context; yield its port and its main process.

    Args:
        model: The model's URI or folder.
        options: Additional options of `mlflow models serve`.
        seconds: The timeout of the start.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(model)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # for uvicorn
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port), *options],
            cwd=folder,  # which uvicorn imports from, too
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(server, port, log, seconds)
            yield port, psutil.Process(server.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait(server, port, log, seconds):
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
            return
        if server.poll() is not None or time.monotonic() > end:
            log.seek(0)
            raise RuntimeError(f"the server did not start:\n{log.read()}")
        time.sleep(0.1)


def list_processes(process):
    """List a process and all its descendants."""
    return [process, *process.children(recursive=True)]
