"""A program `python` that forks from the tests' server, for what starts Python in its turn.

A training with seeds, `pyclassify resume`, Lightning and torchrun start `sys.executable`, a project
of MLflow's starts `python`. Each would import torch, Lightning and MLflow anew. `start` and `run`
of this module give a forked process another `sys.executable`: a small program that has the server
fork, passes signals on to the fork, and ends as it does.

A fork is in a session of its own and no child of who asked for it. Where it is tested what happens
to a process group, or to a child whose parent is gone, Python itself has to be started.
"""

import contextlib
import functools
import json
import os
import signal
import socket
import sys
import threading

from tests.support import processes
from tests.support.fork_server import MAX_REQUEST_BYTES

# Without `site`, whose paths it does not need: it is there in a few hundredths of a second.
PROGRAM = """#!{python} -ISE
import os, sys
if sys.argv[1:2] == ["-IS"]:  # the monitor of a training, which has to be its child
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
import json, signal, socket
stops = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
signal.pthread_sigmask(signal.SIG_BLOCK, stops)
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({requests!r})
read, write = os.pipe()
request = dict(argv=sys.argv[1:], cwd=os.getcwd(), env=dict(os.environ))
socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2, write])
os.close(write)
status = os.fdopen(read)
pid = int(status.readline())
server.send(str(pid).encode())

def pass_on(number, _):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass

for each in stops:
    if signal.getsignal(each) != signal.SIG_IGN:
        signal.signal(each, pass_on)
signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
code = int(status.readline())
server.send(b"ended")
if code < 0:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if code != -signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@functools.cache
def program():
    """The path of the program, whose name is python."""
    folder = processes.make_folder("python-")
    requests = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    requests.bind(str(folder / "requests"))
    requests.listen(64)
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    path = folder / "python"
    path.write_text(PROGRAM.format(python=processes.PYTHON, requests=requests.getsockname()))
    path.chmod(0o700)
    return str(path)


def start(*argv, **options):
    """Start a process as `processes.start` does."""
    return processes.start(*argv, executable=program(), **options)


def run(*argv, **options):
    """Run a process as `processes.run` does."""
    return processes.run(*argv, executable=program(), **options)


def replace_python(monkeypatch):
    """Have what this process starts by `sys.executable` fork, and what that starts in turn."""
    monkeypatch.setattr(sys, "executable", program())


def _listen(requests):
    while True:
        asking, _ = requests.accept()
        threading.Thread(target=_serve, args=(asking,), daemon=True).start()


def _serve(asking):
    """Have a process forked for who asks, and kill it when they are killed."""
    with asking:
        content, descriptors, *_ = socket.recv_fds(asking, MAX_REQUEST_BYTES, 4)
        if not content:  # it was killed before it asked
            return
        request = json.loads(content)
        try:
            processes.ask_server({**request, "executable": program()}, descriptors)
        finally:  # or who asks would wait for ever
            for each in descriptors:
                os.close(each)
        pid = asking.recv(64)
        if pid and not asking.recv(64):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
