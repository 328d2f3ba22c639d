"""Python in processes of its own: forked where that is enough, started where it is the point.

`start` and `run` take the arguments of `python`. They fork from a server that has imported torch,
Lightning and MLflow (see `fork_server`), one for each process of pytest. What has to be a new
interpreter, since its start, its imports or its environment's libraries are tested, is started with
`fresh=True`.
"""

import atexit
import contextlib
import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

from tests.support import budget, waiting
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
PIPE, STDOUT = subprocess.PIPE, subprocess.STDOUT
PYTHON = sys.executable  # which a test may replace
# Of pytest itself, before a test changes it: what the server has, all its forks have.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
TIMEOUT_SECONDS = 300  # for a process to end, before it counts as hung

_starting = threading.Lock()


class Forked:
    """A process that the server forked, to be used as `subprocess.Popen` is.

    Its output goes to files, so that no reader has to keep up with it; `stdout` and `stderr` may be
    a file, PIPE, STDOUT or, without them, this process's own. More options are those of
    `fork_server.become`.
    """

    def __init__(self, argv, cwd=None, env=None, stdout=None, stderr=None, **options):
        self.args, self.returncode = argv, None
        self._files = {}
        out = self._open("stdout", stdout)
        err = out if stderr == STDOUT else self._open("stderr", stderr)
        read, write = os.pipe()
        self._status = os.fdopen(read)
        request = {"argv": list(map(str, argv)), "cwd": str(cwd or Path.cwd()), **options}
        request["env"] = dict(os.environ if env is None else env)
        with open(os.devnull) as nothing:
            try:
                ask_server(request, [nothing.fileno(), out, err, write])
            finally:
                os.close(write)
        line = self._status.readline()
        if not line:
            raise RuntimeError("the fork server has ended")
        self.pid = int(line)

    def _open(self, name, target):
        if target == PIPE:
            self._files[name] = file = tempfile.TemporaryFile("w+")  # noqa: SIM115
            return file.fileno()
        if target is None:
            return {"stdout": 1, "stderr": 2}[name]
        return target if isinstance(target, int) else target.fileno()

    def poll(self):
        """The exit status, negative for a signal, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=TIMEOUT_SECONDS):
        """Wait for the end; its exit status."""
        if self.returncode is None:
            if not self._has_ended(timeout):
                raise subprocess.TimeoutExpired(self.args, timeout)
            line = self._status.readline()
            self._status.close()
            if not line:
                raise RuntimeError("the fork server has ended")
            self.returncode = int(line)
        return self.returncode

    def _has_ended(self, timeout):
        bound = timeout * waiting.HEADROOM
        return bool(
            select.select([self._status], [], [], bound)[0]
            or (bound and select.select([self._status], [], [], waiting.scale(timeout) - bound)[0])
        )

    def communicate(self, timeout=TIMEOUT_SECONDS):
        """Wait for the end; what it wrote to stdout and to stderr."""
        self.wait(timeout)
        return self.read("stdout"), self.read("stderr")

    def read(self, name="stdout"):
        """What it has written to a pipe so far."""
        if name not in self._files:
            return None
        path = f"/proc/self/fd/{self._files[name].fileno()}"
        return Path(path).read_text(errors="replace")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wait()

    def send_signal(self, number):
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def start(*argv, fresh=False, **options):
    """Start `python *argv`, with the options of `subprocess.Popen` for its folder and output."""
    if fresh:
        options = {"text": True, "stdin": subprocess.DEVNULL, "start_new_session": True, **options}
        return subprocess.Popen([PYTHON, *map(str, argv)], **options)
    return Forked(argv, **options)


def run(*argv, timeout=TIMEOUT_SECONDS, check=False, **options):
    """Run `python *argv` to its end, with `returncode`, `stdout` and `stderr` of it."""
    process = start(*argv, **{"stdout": PIPE, "stderr": PIPE, **options})
    try:
        out, err = _communicate(process, timeout)
    finally:
        end(process)
    if check and process.returncode:
        raise AssertionError(f"{argv} ended with {process.returncode}:\n{err or out}")
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def _communicate(process, timeout):
    if isinstance(process, Forked):
        return process.communicate(timeout)
    try:
        return process.communicate(timeout=timeout * waiting.HEADROOM)
    except subprocess.TimeoutExpired:
        return process.communicate(timeout=waiting.scale(timeout))


def end(process):
    """Kill a process that still runs, and its process group."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def make_folder(prefix):
    """Make a folder that is removed at the end, of this run of tests or of this process."""
    folder = tempfile.mkdtemp(prefix=prefix, dir=os.environ.get(budget.FOLDER))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def run_ranks(file, *arguments, ranks=2):
    """Run a script as torchrun does, one process for each rank, to the end of all.

    A rank is told by the environment, so that Lightning starts no process itself.

    Raises:
        AssertionError: One has failed; with what all have written.
    """
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1"}
    variables |= {"MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "tested"}
    variables |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
    started = [
        start(
            file,
            *arguments,
            env={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=PIPE,
            stderr=STDOUT,
        )
        for rank in range(ranks)
    ]
    try:
        written = [each.communicate()[0] for each in started]
    finally:
        for each in started:
            end(each)
    assert [each.returncode for each in started] == [0] * ranks, "\n".join(written)


def ask_server(request, descriptors):
    """Have the server fork a process, with a pipe as the last of four file descriptors."""
    budget.note_start("f")
    with _starting:
        server = _start_server()
    socket.send_fds(server, [json.dumps(request).encode()], descriptors)


@functools.cache
def _start_server():
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        subprocess.Popen(
            [PYTHON, Path(__file__).with_name("fork_server.py")],
            cwd=ROOT,
            env=_ENVIRONMENT,
            stdin=its,
            start_new_session=True,
        )
    atexit.register(ours.close)
    return ours


STOP = """
import os, signal, sys, time
from pyclassify.utils import signals

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""


@contextmanager
def running(code):
    """Start code in a session of its own; it says "ready" when it can be stopped.

    Python is started: without torch that takes less than to fork what has imported it.
    """
    process = start("-c", STOP + code, fresh=True, cwd=ROOT, stdout=PIPE)
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        end(process)
        process.communicate()


def rest(process):
    """Wait for the end, and give the lines said after "ready"."""
    process.wait(waiting.scale(60))
    return process.stdout.read().splitlines()
