"""MLflow's tracking server in a separate process, which can be made unavailable."""

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

    `port` is its port, on every address of this host. At first it is not available.
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
        self._messages = self._connection.makefile("rw")
        self.port = int(self._messages.readline())

    def _has_come(self, listener):
        assert self.process.poll() is None, "the server's process has ended"
        return select.select([listener], [], [], 0)[0]

    @contextlib.contextmanager
    def available(self):
        """Within this context the server is available."""
        self.set_available(True)
        try:
            yield
        finally:
            self.set_available(False)

    def set_available(self, is_available):
        """Start or stop listening on the port."""
        message = "start\n" if is_available else "stop\n"
        self._messages.write(message)
        self._messages.flush()
        assert self._messages.readline() == message

    def stop(self):
        with contextlib.suppress(OSError):  # where it was killed
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self.process.wait(30)


def serve(port):
    """Send the port, and listen on it from each message "start" to the next "stop"."""
    from mlflow.server import app
    from werkzeug.serving import make_server

    messages = socket.create_connection(("127.0.0.1", port)).makefile("rw")
    reservation = socket.socket()  # of the port, while the server does not listen
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("0.0.0.0", 0))
    port = reservation.getsockname()[1]
    messages.write(f"{port}\n")
    messages.flush()
    for message in messages:
        if message == "start\n":
            server = make_server("0.0.0.0", port, app, threaded=True)
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
        else:
            server.shutdown()
            thread.join()  # closes the socket
        messages.write(message)
        messages.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
