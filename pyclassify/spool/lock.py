"""One writer of a run at a time: `flock(2)` on a file in the run's folder of the spool.

The file, `writer.lock`, stays there; the run is locked while a process holds the lock. The kernel
releases it when that process ends, however it ends. The file has one line of JSON: its last holder.
"""

import errno
import fcntl
import json
import os
import socket
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

LOCK_FILE = "writer.lock"
# For the monitor of an attempt that has died, which holds the lock while it writes the status.
_PATIENCE_SECONDS = 0.5
# A file system without such locks; Lustre is mounted without them by default.
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)

_locked: dict[Path, int] = {}  # the descriptors of this process's lock files


class RunLockedError(OSError):
    """Another process writes to the run."""


@dataclass(frozen=True)
class Holder:
    """The process that writes to a run.

    Args:
        pid: The process's number.
        host: The machine that it runs on.
        job_id: SLURM's number of its job; empty outside of jobs.
        since: Seconds since 1970.
    """

    pid: int
    host: str
    job_id: str
    since: float

    def __str__(self) -> str:
        job = f" (SLURM job {self.job_id})" if self.job_id else ""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}{job}, since {when}"


def acquire(folder: Path) -> None:
    """Lock a run until `release`, or until this process ends; a second call changes nothing.

    Processes that this one forks or starts don't hold the lock.

    Args:
        folder: The run's folder, which is made where it is missing; its name is the run's id.

    Raises:
        RunLockedError: Another process holds the lock; the message says which, and what to do.
        OSError: The file can't be written.
    """
    path = folder.resolve() / LOCK_FILE
    if path in _locked:
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _open(path)
    try:
        end = time.monotonic() + _PATIENCE_SECONDS
        while not (is_locked := _lock(descriptor, path)) and time.monotonic() < end:
            time.sleep(0.05)
        if not is_locked:
            raise RunLockedError(
                f"the run {folder.name} is being written by {_read_holder(path)}; let it go on, or "
                f"stop it and then `pyclassify resume {folder.name}`"
            )
        _write_holder(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    _locked[path] = descriptor


def release(folder: Path) -> None:
    """Let another process write to the run, before this one ends."""
    descriptor = _locked.pop(folder.resolve() / LOCK_FILE, None)
    if descriptor is not None:
        os.close(descriptor)


def find_holder(folder: Path) -> str:
    """Describe the process that writes to a run; empty if there is none that this machine sees."""
    path = folder.resolve() / LOCK_FILE
    if not path.exists():
        return ""
    if path in _locked:
        return _read_holder(path)
    descriptor = _open(path)
    try:
        return "" if _lock(descriptor, path) else _read_holder(path)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    # Closed when another program replaces this process or a child of it (PEP 446).
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        warnings.warn(
            f"{path} can't be locked ({error.strerror}); see to it that no two processes write to "
            "this run",
            stacklevel=3,
        )
    return True


def _write_holder(descriptor: int) -> None:
    job_id = os.environ.get("SLURM_JOB_ID", "")
    holder = Holder(os.getpid(), socket.gethostname(), job_id, round(time.time(), 3))
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{json.dumps(asdict(holder))}\n".encode(), 0)


def _read_holder(path: Path) -> str:
    try:
        return str(Holder(**json.loads(path.read_text())))
    except (OSError, ValueError, TypeError):  # it is writing the line at this moment
        return "another process, which has just begun"


def _release_in_child() -> None:
    # Otherwise a data worker that outlives its parent would keep the run locked.
    while _locked:
        os.close(_locked.popitem()[1])


os.register_at_fork(after_in_child=_release_in_child)
