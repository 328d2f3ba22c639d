"""MLflow's tracking server in a process of its own, which is there or away as it is told."""

import contextlib
import os
import select
import socket
import sys
import threading

from tests.support import processes
from tests.support.waiting import wait_until


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
            "PYTHONPATH": str(processes.ROOT),
        }
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            self.process = processes.start(__file__, port, env=environment)
            wait_until(lambda: self._has_come(listener), "the server's process to connect")
            self._connection, _ = listener.accept()
        self._words = self._connection.makefile("rw")
        self.port = int(self._words.readline())

    def _has_come(self, listener):
        assert self.process.poll() is None, "the server's process has ended"
        return select.select([listener], [], [], 0)[0]

    @contextlib.contextmanager
    def there(self):
        """Within this context it answers."""
        self.tell("there")
        try:
            yield
        finally:
            self.tell("away")

    def tell(self, word):
        self._words.write(f"{word}\n")
        self._words.flush()
        assert self._words.readline() == f"{word}\n"

    def stop(self):
        with contextlib.suppress(OSError):  # where it was killed
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self.process.wait(30)


def serve(port):
    """Send the port, and listen to it while the last word that was received is "there"."""
    from mlflow.server import app
    from werkzeug.serving import make_server

    words = socket.create_connection(("127.0.0.1", port)).makefile("rw")
    held = socket.socket()  # the port, which nobody else gets in between
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("0.0.0.0", 0))
    port = held.getsockname()[1]
    words.write(f"{port}\n")
    words.flush()
    for word in words:
        if word == "there\n":
            server = make_server("0.0.0.0", port, app, threaded=True)
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
        else:
            server.shutdown()
            thread.join()  # which closes the socket, a moment after
        words.write(word)
        words.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
