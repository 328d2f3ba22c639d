"""Watch a training from a process that outlives it, so that its run always gets a true status.

A process that is ended by SIGKILL, aborts in C++ code or calls `os._exit` can't say how it ended,
and `mlflow run` overwrites what it did say. `start` starts this module as a program of its own, in
a session of its own. It reads what the training reports through a pipe, one JSON object a line:

    run_id, spool_root, tracking_uri, start_id   where the run is, as far as it is known
    expected, reason                             the status if the process ends before it is set
    final                                        the run's final status, which has been set
    is_abandoned                                 whether the process can't set the status
    watches_exit                                 whether to go on until the process has ended
    enforces                                     whether `mlflow run` may overwrite that status

Lines that are not JSON are the stack that `faulthandler` writes when the process crashes; they are
copied to the standard error. Once the process is gone without a final status, the program sets
FAILED and the tag `status_reason`. It loads MLflow only then.

`mlflow run` means to leave a status that the training set, but compares its name with numbers
(`mlflow.projects._maybe_set_run_terminated`, MLflow 3.17). It marks a run as FAILED whenever its
process exits with an error, and as FINISHED after exit code 0. So a status is enforced for a while.
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

TIMEOUT_SECONDS = 30.0  # for `mlflow run` to set its status, once the training has exited
_POLL_SECONDS = 0.2
_EXIT_SECONDS = 2.0  # for the parent of a process that has ended to read its exit status
_CHUNK_BYTES = 1 << 16
_MAX_DUMP_LINES = 2000
# `PIDFD_GET_INFO` of linux/pidfd.h, with the size of the first version of its struct.
_GET_INFO, _INFO_BYTES, _INFO_EXIT, _EXIT_OFFSET = 0xC040FF0B, 64, 1 << 3, 60
# What faulthandler calls the signals that it handles.
_CRASHES = {
    "Segmentation fault": "SIGSEGV",
    "Floating-point exception": "SIGFPE",
    "Floating point exception": "SIGFPE",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Illegal instruction": "SIGILL",
}
_STOPS = ("SIGHUP", "SIGINT", "SIGTERM")  # of these a process dies before its handlers stand
_UNKNOWN = "ended without leaving a status: SIGKILL (often the out-of-memory killer), or os._exit"

_open: "list[Monitor]" = []
_started: "list[subprocess.Popen[bytes]]" = []  # polled, so that none stays as a zombie


class Monitor:
    """The training's end of the pipe to its monitor.

    Args:
        process: The monitor.

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
        """Have crashes reported to the monitor, unless the user handles them.

        Lightning sets all handlers back after each command, and does not know this one.
        """
        if self._handles_crashes:
            faulthandler.disable()
            faulthandler.enable(self._pipe)

    def report(self, **message: Any) -> None:
        """Report what the monitor has to know; does nothing if the monitor is gone."""
        data = f"{json.dumps(message)}\n".encode()
        with suppress(OSError):
            while data and self._pipe >= 0:
                data = data[os.write(self._pipe, data) :]

    def close(self) -> None:
        """Let the monitor end, unless it has something left to do."""
        if self not in _open:
            return
        _open.remove(self)
        if self._handles_crashes:
            faulthandler.disable()
        with suppress(OSError):
            os.close(self._pipe)
        self._pipe = -1


def _close_in_child() -> None:
    # Otherwise the end of the training would not be seen before that of a worker that outlives it.
    for monitor in [*_open]:
        monitor.close()


os.register_at_fork(after_in_child=_close_in_child)


def start(**facts: Any) -> Monitor:
    """Start a monitor of this process, and report first facts to it.

    Args:
        facts: As in the module's description.

    Raises:
        OSError: No process can be started.
    """
    import subprocess

    _started[:] = [process for process in _started if process.poll() is None]
    stderr = None
    try:
        os.fstat(2)
    except OSError:  # it is closed
        stderr = subprocess.DEVNULL
    # A signal to a whole job or terminal is for the training: the monitor keeps these blocked.
    blocked = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    pidfds = _open_pidfd()  # here, as this process may end before its monitor has begun
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
    """Open a descriptor of this process; none before Linux 5.3 or on another system."""
    with suppress(OSError, AttributeError):
        return [os.pidfd_open(os.getpid())]
    return []


class _Training:
    """The process that is watched, as its monitor sees it.

    Args:
        pid: The process, which is this one's parent.
        pidfd: A descriptor of the process; -1 where there is none.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid, self.facts = pid, dict[str, Any]()
        self.dump: list[str] = []  # of faulthandler
        self._pidfd = pidfd
        self._text = b""
        self._is_open = True

    def watch(self) -> None:
        """Read what the training reports until it is over and nothing more is to be seen."""
        # Without a pidfd a worker process that has the pipe too may hide the end.
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
        if not line.startswith("Extension modules:"):  # hundreds, in one line
            _write_stderr(line)

    def find_outcome(self) -> tuple[str, str]:
        """Find how the process ended.

        Returns:
            The run's status and the reason; both are empty if the run has its status.
        """
        final, exit_code = self.facts.get("final"), self._read_exit_code()
        if final and (final != "FINISHED" or not (exit_code or self.dump)):
            return "", ""
        if not final and self.facts.get("expected"):
            return self.facts["expected"], self.facts.get("reason", "")
        status, reason = describe_end(exit_code, self.dump)
        if final:
            reason += ", after everything was logged"
        elif exit_code is not None and exit_code >= 0:
            reason += " without leaving a status, by os._exit"
        return status, reason

    def _read_exit_code(self) -> int | None:
        """Read the exit code, negative for a signal; None where the kernel does not tell it."""
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
    """Read the wait status of a process whose parent has not read it yet, from proc(5)."""
    try:
        # The name before, in parentheses, may have spaces and parentheses in it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[-1]) if fields[0] == "Z" else None


def describe_end(exit_code: int | None, dump: Sequence[str] = ()) -> tuple[str, str]:
    """Describe the end of a process that left no status.

    Args:
        exit_code: Its exit code, negative for a signal; None if it is not known.
        dump: The lines that faulthandler wrote.

    Returns:
        The run's status, and the reason.
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
    """Parse what faulthandler wrote: the signal, and where the thread was that got it."""
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
    """Close the training's standard error, for whose end another process may wait."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    os.close(null)


def enforce_final_status(
    client: Any, run_id: str, status: str, parent: int, spool: Path | None = None
) -> None:
    """Wait until another process ends the run with another status, and restore its status.

    Args:
        client: The store.
        run_id: The run.
        status: The run's final status.
        parent: The id of the process that set it. The wait ends `TIMEOUT_SECONDS` after its exit.
        spool: The run's folder in the spool; while a process writes there, the run was resumed.
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
    """Watch a process, and give its run the status that it could not set itself.

    Args:
        pid: The process, this one's parent.
        pidfd: A descriptor of the process; -1 where there is none.
    """
    training = _Training(pid, pidfd)
    training.watch()
    facts = training.facts
    final = facts.get("final")
    is_alive = final and not facts.get("is_abandoned") and os.getppid() == pid
    status, reason = ("", "") if is_alive else training.find_outcome()
    is_reported = bool(facts.get("expected"))  # by the training
    if status and not is_reported and (facts.get("run_id") or facts.get("start_id")):
        _write_stderr(f"pyclassify: error: the training has ended: {reason}; its run is {status}")
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
