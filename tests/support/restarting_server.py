"""MLflow's tracking server in a process of its own, which is there or away as it is told."""

import contextlib
import os
import socket
import subprocess
import sys
import threading


class Server:
    """The server of a store.

    `port` is its port, on every address of this host; it starts away.
    """

    def __init__(self, store, folder):
        environment = {
            **os.environ,
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{store}",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder),
            "MLFLOW_SERVER_ALLOWED_HOSTS": "*",
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self.process.stdout.readline())

    @contextlib.contextmanager
    def there(self):
        """Within this context it answers."""
        self.tell("there")
        try:
            yield
        finally:
            self.tell("away")

    def tell(self, word):
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == f"{word}\n"

    def stop(self):
        self.process.communicate(timeout=30)


def serve():
    """Say the port, and listen to it while the last word on stdin is "there"."""
    from mlflow.server import app
    from werkzeug.serving import make_server

    held = socket.socket()  # the port, which nobody else gets in between
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("0.0.0.0", 0))
    port = held.getsockname()[1]
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    for word in sys.stdin:
        if word == "there\n":
            server = make_server("0.0.0.0", port, app, threaded=True)
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
        else:
            server.shutdown()
            thread.join()  # which closes the socket, a moment after
        sys.stdout.write(word)
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
