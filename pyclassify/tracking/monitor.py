"""Monitor a training from a second process, so that its run always gets the correct status.

A process can't report its end after SIGKILL, an abort in C++ code or `os._exit`, and `mlflow run`
overwrites the status that a process has set. `start` runs this module as a separate process, in a
new session. It reads messages of the training through a pipe, one JSON object per line:

    run_id, spool_root, tracking_uri, start_id   where the run is, as far as known
    expected, reason                             the status if the process ends without setting one
    final                                        the final status that the process has set
    is_abandoned                                 whether the process can't set the status
    watches_exit                                 whether to wait until the process has exited
    enforces                                     whether `mlflow run` may overwrite the status

Lines that are not JSON are the stack that `faulthandler` writes in a crash; they are copied to the
standard error. If the process ends without a final status, the monitor sets FAILED and the tag
`status_reason`. It imports MLflow only then.

`mlflow run` should not overwrite a final status, but it compares the status's name with numbers
(`mlflow.projects._maybe_set_run_terminated`, MLflow 3.17): it sets FAILED after a nonzero exit code
and FINISHED after 0. Therefore the monitor enforces the status for a while.
"""

import faulthandler
import json
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess

    from mlflow import MlflowClient

TIMEOUT_SECONDS = 30.0  # for `mlflow run` to set its status after the training has exited
_POLL_SECONDS = 0.2
_EXIT_SECONDS = 2.0  # for the parent of a process that has exited to read its exit status
_CHUNK_BYTES = 1 << 16
_MAX_DUMP_LINES = 2000
# `PIDFD_GET_INFO` of linux/pidfd.h, with the size of the first version of its struct.
_GET_INFO, _INFO_BYTES, _INFO_EXIT, _EXIT_OFFSET = 0xC040FF0B, 64, 1 << 3, 60
# faulthandler's names of the signals that it handles.
_CRASHES = {
    "Segmentation fault": "SIGSEGV",
    "Floating-point exception": "SIGFPE",
    "Floating point exception": "SIGFPE",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Illegal instruction": "SIGILL",
}
_STOPS = ("SIGHUP", "SIGINT", "SIGTERM")  # they end a process that has no handlers yet
_UNKNOWN = "no final status (SIGKILL, often by the out-of-memory killer, or os._exit)"

_open: "list[Monitor]" = []
_started: "list[subprocess.Popen[bytes]]" = []  # polled, so that none remains a zombie


class Monitor:
    """The training's end of the pipe to its monitor process.

    Args:
        process: The monitor process.

    Example:
        >>> monitor = start(run_id="0123", tracking_uri="http://server:5000")
        >>> monitor.report(final="FINISHED")
        >>> monitor.close()
    """

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        pipe = process.stdin
        self._pipe = os.dup(pipe.fileno()) if pipe else -1  # not inherited (PEP 446)
        if pipe:
            pipe.close()
        process.stdin = None
        _started.append(process)
        _open.append(self)
        self._handles_crashes = not faulthandler.is_enabled()
        self.handle_crashes()

    def handle_crashes(self) -> None:
        """Send the stack of a crash to the monitor, unless the user has enabled `faulthandler`.

        Call it after a Trainer has ended: Lightning resets all signal handlers.
        """
        if self._handles_crashes:
            faulthandler.disable()
            faulthandler.enable(self._pipe)

    def report(self, **message: Any) -> None:
        """Send a message to the monitor; do nothing if the monitor has ended.

        Args:
            **message: Keys and values as in the module's description.
        """
        data = f"{json.dumps(message)}\n".encode()
        with suppress(OSError):
            while data and self._pipe >= 0:
                data = data[os.write(self._pipe, data) :]

    def close(self) -> None:
        """Close the pipe, so that the monitor finishes its work and exits."""
        if self not in _open:
            return
        _open.remove(self)
        if self._handles_crashes:
            faulthandler.disable()
        with suppress(OSError):
            os.close(self._pipe)
        self._pipe = -1


def _close_in_child() -> None:
    # Otherwise the pipe stays open until the last data worker exits, maybe after the training.
    for monitor in [*_open]:
        monitor.close()


os.register_at_fork(after_in_child=_close_in_child)


def start(**facts: Any) -> Monitor:
    """Start a monitor of this process, and send it a first message.

    Args:
        **facts: Keys and values as in the module's description.

    Raises:
        OSError: The process can't be started.
    """
    import subprocess

    _started[:] = [process for process in _started if process.poll() is None]
    stderr = None
    try:
        os.fstat(2)
    except OSError:  # it is closed
        stderr = subprocess.DEVNULL
    # A signal to a whole job or terminal must end the training only: the monitor blocks these.
    blocked = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    pidfds = _open_pidfd()  # opened here, as this process may end before the monitor starts
    try:
        process = subprocess.Popen(
            [sys.executable, "-IS", __file__, str(os.getpid()), *map(str, pidfds)],
            pass_fds=pidfds,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for pidfd in pidfds:
            os.close(pidfd)
    monitor = Monitor(process)
    paths = [str(Path(__file__).parents[2]), *map(os.path.abspath, sys.path)]
    monitor.report(sys_path=paths, **facts)
    return monitor


def _open_pidfd() -> list[int]:
    """Open a file descriptor of this process; empty before Linux 5.3 and on other systems."""
    with suppress(OSError, AttributeError):
        return [os.pidfd_open(os.getpid())]
    return []


class _Training:
    """The training process, from the view of its monitor.

    Args:
        pid: The process, the parent of this one.
        pidfd: A file descriptor of the process; -1 if there is none.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid, self.facts = pid, dict[str, Any]()
        self.dump: list[str] = []  # lines of faulthandler
        self._pidfd = pidfd
        self._text = b""
        self._is_open = True

    def watch(self) -> None:
        """Read messages until the training has ended, or has released its monitor."""
        # Without a pidfd, poll: a worker process that inherited the pipe may keep it open.
        timeout = None if self._pidfd >= 0 else _POLL_SECONDS
        while not self._has_died() and (self._is_open or not self._may_leave()):
            watched = [0] if self._is_open else []
            watched += [self._pidfd] if self._pidfd >= 0 else []
            if 0 in select.select(watched, [], [], timeout)[0]:
                self._read()
        while self._is_open and select.select([0], [], [], 0)[0]:
            self._read()

    def _has_died(self) -> bool:
        if self._pidfd >= 0 and select.select([self._pidfd], [], [], 0)[0]:
            return True
        return os.getppid() != self.pid

    def _may_leave(self) -> bool:
        if self.facts.get("is_abandoned"):
            return True
        return bool(self.facts.get("final")) and not self.facts.get("watches_exit")

    def _read(self) -> None:
        data = os.read(0, _CHUNK_BYTES)
        self._is_open = bool(data)
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            try:
                self.facts.update(json.loads(text))
            except ValueError:
                self._add_to_dump(text)
        if self.facts.get("final") and not self.facts.get("watches_exit"):
            _close_stderr()

    def _add_to_dump(self, line: str) -> None:
        if len(self.dump) < _MAX_DUMP_LINES:
            self.dump.append(line)
        if not line.startswith("Extension modules:"):  # one line with hundreds of names
            _write_stderr(line)

    def find_outcome(self) -> tuple[str, str]:
        """Find how the process ended.

        Returns:
            The run's status and the reason; both are empty if the run already has its status.
        """
        final, exit_code = self.facts.get("final"), self._read_exit_code()
        if final and (final != "FINISHED" or not (exit_code or self.dump)):
            return "", ""
        if not final and self.facts.get("expected"):
            return self.facts["expected"], self.facts.get("reason", "")
        status, reason = describe_end(exit_code, self.dump)
        if final and status == "KILLED":  # a stop signal, when the run was complete
            return "", ""
        if final:
            reason += ", after the run was complete"
        elif exit_code is not None and exit_code >= 0:
            reason += " without a final status (os._exit)"
        return status, reason

    def _read_exit_code(self) -> int | None:
        """Read the exit code, negative for a signal; None if the kernel can't report it."""
        if self._pidfd < 0 or not self._has_died():
            return None
        import fcntl

        request = struct.pack("=Q", _INFO_EXIT).ljust(_INFO_BYTES, b"\0")
        end = time.monotonic() + _EXIT_SECONDS
        while time.monotonic() < end:
            if (status := _read_zombie_status(self.pid)) is not None:
                return os.waitstatus_to_exitcode(status)
            try:
                info = fcntl.ioctl(self._pidfd, _GET_INFO, request)
            except OSError:  # a kernel before 6.15
                return None
            if struct.unpack_from("=Q", info)[0] & _INFO_EXIT:
                return os.waitstatus_to_exitcode(struct.unpack_from("=i", info, _EXIT_OFFSET)[0])
            time.sleep(0.02)
        return None


def _read_zombie_status(pid: int) -> int | None:
    """Read the wait status of a zombie process, which its parent has not read yet, from proc(5)."""
    try:
        # The process name comes before, in parentheses, and may contain spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[-1]) if fields[0] == "Z" else None


def describe_end(exit_code: int | None, dump: Sequence[str] = ()) -> tuple[str, str]:
    """Describe how a process without a final status ended.

    Args:
        exit_code: The exit code, negative for a signal; None if it is unknown.
        dump: The lines that faulthandler wrote.

    Returns:
        The run's status, FAILED or KILLED, and the reason.
    """
    crash, place = _parse_dump(dump)
    if exit_code is not None and exit_code < 0:
        with suppress(ValueError):
            crash = signal.Signals(-exit_code).name
        crash = crash or f"signal {-exit_code}"
    if crash in _STOPS:
        return "KILLED", crash
    if crash == "SIGKILL":
        return "FAILED", "SIGKILL (often the out-of-memory killer)"
    if crash:
        return "FAILED", crash + place
    if exit_code is not None:
        return "FAILED", f"exit code {exit_code}"
    return "FAILED", _UNKNOWN


def _parse_dump(dump: Sequence[str]) -> tuple[str, str]:
    """Parse the lines of faulthandler: the signal, and the top frame of the current thread."""
    crash = place = ""
    for number, line in enumerate(dump):
        if line.startswith("Fatal Python error: "):
            name = line.removeprefix("Fatal Python error: ")
            crash = _CRASHES.get(name, name)
        if line.startswith("Current thread") and not place:
            frame = dump[number + 1].strip() if number + 1 < len(dump) else ""
            place = f" in {frame.removeprefix('File ')}" if frame.startswith("File ") else ""
    return crash, place


def _write_stderr(line: str) -> None:
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())


def _close_stderr() -> None:
    """Close the inherited standard error, since another process may wait for its end."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    os.close(null)


def enforce_final_status(
    client: "MlflowClient", run_id: str, status: str, parent: int, spool: Path | None = None
) -> None:
    """Wait until another process overwrites the run's final status, and restore the status.

    Args:
        client: The client of the run's store.
        run_id: The run.
        status: The run's final status.
        parent: The ID of the process that set the status. The wait ends `TIMEOUT_SECONDS` after
            this process has exited.
        spool: The run's folder in the spool. A run that another process writes to was resumed, and
            its status is not changed.
    """
    from pyclassify.spool import lock

    deadline = None
    while deadline is None or time.monotonic() < deadline:
        if deadline is None and os.getppid() != parent:
            deadline = time.monotonic() + TIMEOUT_SECONDS
        current = client.get_run(run_id).info.status
        if current in ("FAILED", "FINISHED") and current != status:
            if spool is None or not lock.find_holder(spool):
                client.set_terminated(run_id, status)
            return
        if current != status:  # the run was resumed
            return
        time.sleep(_POLL_SECONDS)


def main(pid: int, pidfd: int = -1) -> None:
    """Monitor a process, and set the final status of its run if the process could not.

    Args:
        pid: The process, the parent of this one.
        pidfd: A file descriptor of the process; -1 if there is none.
    """
    training = _Training(pid, pidfd)
    training.watch()
    facts = training.facts
    final = facts.get("final")
    is_alive = final and not facts.get("is_abandoned") and os.getppid() == pid
    status, reason = ("", "") if is_alive else training.find_outcome()
    is_reported = bool(facts.get("expected"))  # by the training
    if status and not is_reported and (facts.get("run_id") or facts.get("start_id")):
        _write_stderr(f"pyclassify: error: the training ended with {reason}; its run is {status}")
    _close_stderr()
    enforces = final == "KILLED" and facts.get("enforces")
    if not facts.get("sys_path") or not (status or enforces):
        return
    sys.path[:] = facts["sys_path"]
    from pyclassify.spool import dead_run

    run = dead_run.DeadRun(
        facts.get("run_id"),
        facts.get("start_id", ""),
        Path(facts["spool_root"]) if facts.get("spool_root") else None,
        facts.get("tracking_uri") or "",
    )
    if status and not run.close(status, reason):
        return  # another attempt has started
    client = run.connect()
    if client is not None and run.run_id and facts.get("enforces"):
        enforce_final_status(client, run.run_id, status or str(final), pid, run.folder)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
