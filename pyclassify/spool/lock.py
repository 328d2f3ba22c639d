"""One writer of a run at a time: `flock(2)` on a file in the run's folder of the spool.

The file, `writer.lock`, stays there; what counts is whether a process holds it. The kernel lets go
of it when that process ends, however it ends. It has one line of JSON: who held it last.
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

# A file system that has no such locks; Lustre is mounted without them by default.
_UNKNOWN = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)

_locked: dict[Path, int] = {}


class RunLockedError(OSError):
    """Another process writes to the run."""


@dataclass(frozen=True)
class Holder:
    """Who holds a run.

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
    """Be the run's only writer until this process ends; taking it twice is taking it once.

    Processes that this one forks or starts don't hold it: it is free when this one is gone.

    Args:
        folder: The run's folder, which is made where it is missing; its name is the run's id.

    Raises:
        RunLockedError: Another process holds it; who, and the next move.
        OSError: The file can't be written.
    """
    path = folder.resolve() / LOCK_FILE
    if path in _locked:
        return
    folder.mkdir(parents=True, exist_ok=True)
    opened = _open(path)
    try:
        if not _lock(opened, path):
            raise RunLockedError(
                f"the run {folder.name} is being written by {_name(path)}; let it go on, or stop "
                f"it and then `pyclassify resume {folder.name}`"
            )
        _sign(opened)
    except BaseException:
        os.close(opened)
        raise
    _locked[path] = opened


def release(folder: Path) -> None:
    """Let another process write to the run, before this one ends."""
    opened = _locked.pop(folder.resolve() / LOCK_FILE, None)
    if opened is not None:
        os.close(opened)


def find_holder(folder: Path) -> str:
    """Say who writes to a run now; nothing where nobody does, as far as this machine can tell."""
    path = folder.resolve() / LOCK_FILE
    if not path.exists():
        return ""
    if path in _locked:
        return _name(path)
    opened = _open(path)
    try:
        return "" if _lock(opened, path) else _name(path)
    finally:
        os.close(opened)


def _open(path: Path) -> int:
    # Closed when another program takes this process's or a child's place (PEP 446).
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _lock(opened: int, path: Path) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        warnings.warn(
            f"{path} can't be locked ({error.strerror}); see to it that no two processes write to "
            "this run",
            stacklevel=3,
        )
    return True


def _sign(opened: int) -> None:
    job_id = os.environ.get("SLURM_JOB_ID", "")
    holder = Holder(os.getpid(), socket.gethostname(), job_id, round(time.time(), 3))
    os.ftruncate(opened, 0)
    os.pwrite(opened, f"{json.dumps(asdict(holder))}\n".encode(), 0)


def _name(path: Path) -> str:
    try:
        return str(Holder(**json.loads(path.read_text())))
    except (OSError, ValueError, TypeError):  # it is signing at this moment
        return "another process, which has just begun"


def _forget_in_child() -> None:
    # Else a data worker that outlives its parent would keep the run.
    while _locked:
        os.close(_locked.popitem()[1])


os.register_at_fork(after_in_child=_forget_in_child)
