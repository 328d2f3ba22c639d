"""An exclusive lock for the writer of a run: `flock(2)` on a file in the run's spool.

The file, `writer.lock`, is removed only with the run's folder; the run is locked while a process
holds the lock. The kernel releases the lock when that process ends for any reason. The file has one
line of JSON, which names the last holder.
"""

import errno
import fcntl
import json
import os
import shutil
import socket
import time
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

LOCK_FILE = "writer.lock"
# For the monitor of a run whose process has died: it holds the lock while it writes the status.
_TIMEOUT_SECONDS = 0.5
# The errors of a file system without locks; Lustre is mounted without them by default.
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)

_locked: dict[Path, int] = {}  # the descriptors of this process's lock files


class RunLockedError(OSError):
    """Another process holds the lock of the run."""


@dataclass(frozen=True)
class Holder:
    """The process that holds the lock of a run.

    Args:
        pid: The process ID.
        host: The machine.
        job_id: The ID of its SLURM job; empty outside of jobs.
        since: When the lock was acquired, in seconds since 1970.
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
    """Acquire the lock of a run until `release`, or until this process ends.

    A second call has no effect. Child processes do not hold the lock.

    Args:
        folder: The run's folder, created if it is missing; its name is the run's ID.

    Raises:
        RunLockedError: Another process holds the lock; the message names it and the remedy.
        OSError: The file can't be written.
    """
    path = folder.resolve() / LOCK_FILE
    if path in _locked:
        return
    end = time.monotonic() + _TIMEOUT_SECONDS
    while (descriptor := _acquire_file(path)) is None:
        if time.monotonic() > end:
            raise RunLockedError(
                f"the run {folder.name} is locked by {_read_holder(path)}; wait until it ends, or "
                f"stop it and run `pyclassify resume {folder.name}`"
            )
        time.sleep(0.05)
    try:
        _write_holder(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    _locked[path] = descriptor


def _acquire_file(path: Path) -> int | None:
    """Open and lock a file; None if another process has locked it, or removes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        descriptor = _open(path)
        try:
            # A removed file is no lock: other processes create and lock another one.
            if _lock(descriptor, path) and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    return None


def remove_folder(folder: Path) -> None:
    """Remove the folder of a run whose lock this process holds, and release the lock.

    The file of the lock is removed last, so that no process writes to the run meanwhile.

    Raises:
        OSError: A file can't be removed.
    """
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()
    (folder / LOCK_FILE).unlink()
    release(folder)  # NFS keeps an open file in the folder
    with suppress(OSError):  # another process has created the run's folder again
        folder.rmdir()


def release(folder: Path) -> None:
    """Release the lock of a run, so that another process may write to it."""
    descriptor = _locked.pop(folder.resolve() / LOCK_FILE, None)
    if descriptor is not None:
        os.close(descriptor)


def find_holder(folder: Path) -> str:
    """Describe the process that holds the lock of a run; empty if this machine sees none."""
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
    # Not inherited by programs that this process or its children execute (PEP 446).
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
            f"{path} can't be locked ({error.strerror}); make sure that only one process writes to "
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
    except (OSError, ValueError, TypeError):  # the holder has not written its line yet
        return "another process, which has just started"


def _release_in_child() -> None:
    # Otherwise a data worker that is still alive after its parent holds the lock.
    while _locked:
        os.close(_locked.popitem()[1])


os.register_at_fork(after_in_child=_release_in_child)
