"""Ports of loopback that no two tests get, however many processes run them."""

import contextlib
import fcntl
import os
import socket
import tempfile
from pathlib import Path

# Below those that the system gives to connections by itself (ip_local_port_range in ip(7)).
FIRST, LAST = 20_000, 32_000


def free_port():
    return free_ports("one")["one"]


def free_ports(*names):
    """A port of loopback for each name, that nothing listens on and nobody was given lately."""
    with _counter() as file:
        number = int(file.read() or FIRST)
        found = {}
        for name in names:
            number = _next_free(number)
            found[name] = number
        file.seek(0)
        file.truncate()
        file.write(str(number))
    return found


@contextlib.contextmanager
def _counter():
    """The file with the last port that was given, for one process at a time."""
    path = Path(tempfile.gettempdir(), f"pyclassify-ports-{os.getuid()}")
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _next_free(number):
    for _ in range(LAST - FIRST):
        number = number + 1 if number < LAST else FIRST
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", number)):
            return number
    raise RuntimeError(f"no port of {FIRST} to {LAST} is free")
