"""Write files atomically, describe errors of disks, and find the cache folder."""

import errno
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DISK_ERRORS = (
    *_FULL_DISK,
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENXIO),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPIPE, errno.EBUSY, errno.ENOTEMPTY),
)
# torch's messages for a file that could not be written.
_FAILED_WRITE = re.compile("PytorchStreamWriter failed|file write failed|unexpected pos")
_PROBE_BYTES = 4096  # a page: a file of fewer bytes may fit on a full file system


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file, as `open_atomically` does.

    Raises:
        OSError: The file can't be written; its previous version is unchanged.
    """
    with open_atomically(path) as file:
        file.write(text.encode())


@contextmanager
def open_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing under another name, and rename it once the disk has stored it.

    Raises:
        OSError: The file can't be written; its previous version is unchanged.
    """
    # Processes on two machines that share the folder may have the same process ID.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def open_deferring_errors(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for a writer that can't handle errors; raise the first one at the end.

    After an error nothing more is written.

    Raises:
        OSError: The file could not be written; it is removed.
    """
    try:
        file = _ErrorDeferrer(path, "wb")
        with io.BufferedWriter(file) as buffered:
            yield buffered
        if file.error is not None:
            raise file.error
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # as write(2) leaves it
            error.filename = str(path)
        raise


class _ErrorDeferrer(io.FileIO):
    """A file whose `write` takes all bytes also after an error, which it saves."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


def check_writable(folder: Path) -> None:
    """Check that files can be written to a folder, which is created if it is missing.

    Raises:
        OSError: The folder can't be written; the message names it and the reason.
    """
    probe = folder / f".{os.getpid()}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with probe.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"{folder} can't be written: {_describe(error, probe)}") from error


def _describe(error: OSError, probe: Path) -> str:
    """Describe an error, with its file unless that is `probe`."""
    reason = error.strerror or str(error)
    return f"{reason} ({error.filename})" if error.filename not in (None, str(probe)) else reason


def is_disk_error(error: BaseException) -> bool:
    """Whether an error is one of a disk, a folder or a file, and not of a program."""
    if isinstance(error, RuntimeError):
        return _FAILED_WRITE.search(str(error)) is not None
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def describe_disk_error(error: BaseException) -> str:
    """Describe an error of a disk in one line, with the file; if the disk is full, with a remedy.

    Args:
        error: An error for which `is_disk_error` is true.
    """
    number = getattr(error, "errno", None) or errno.ENOSPC
    reason = getattr(error, "strerror", None) or os.strerror(number)
    names = [getattr(error, name, None) for name in ("filename", "filename2")]
    files = [os.fsdecode(name) for name in names if isinstance(name, str | bytes)]
    message = f"{' and '.join(files)}: {reason}" if files else reason
    if number in _FULL_DISK:
        folders = [Path.cwd(), Path(tempfile.gettempdir())]
        free = [f"{_count_free_mb(folder):,} MB in {folder}" for folder in folders]
        message += (
            f" (free: {', '.join(free)}); free space, or give another folder for runs by "
            "--trainer.logger.save_dir, or for temporary files by TMPDIR"
        )
    return message


def _count_free_mb(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free >> 20
    except OSError:
        return 0


def find_cache_folder() -> Path:
    """Find the cache folder of this project (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyclassify"
