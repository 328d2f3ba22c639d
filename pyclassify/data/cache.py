"""A set of images in one file, which the processes of a machine map into one piece of memory.

Nothing is taken from such a file that is not, by its digest, what was written from its source, such
as a checked download; an interrupted write, a cut file and a flipped bit are found, and the file
made again.
"""

import errno
import glob
import mmap
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from pyclassify.data.digest import digest_tensors
from pyclassify.utils import files

# What torch.load and a look at the content fail with where a file is not whole or not ours.
_TROUBLE = (
    *(RuntimeError, ValueError, LookupError, TypeError, EOFError, AttributeError),
    pickle.UnpicklingError,
)


class _MissingError(Exception):
    """There is no file, or it is not whole, not ours or made from something else."""


class Images(NamedTuple):
    """images (uint8 [n, channels, height, width]), labels (int64 [n]) and the classes' names."""

    images: Tensor
    labels: Tensor
    classes: list[str]


def share(path: Path, source: str, read: Callable[[], Images]) -> Images:
    """Map a set that lies in a file, which is made first where it is not there or not whole.

    What is mapped takes memory once, however many processes do; a process that writes to it gets
    a copy of its own (mmap(2), MAP_PRIVATE).

    Args:
        path: The file.
        source: Tells what the set is made from; a file that was made from something else is made
            again.
        read: Reads the set, into memory.

    Returns:
        The set, mapped; or in memory where the file can't be read or written.
    """
    try:
        return _map(path, source)
    except _MissingError:
        content = read()
    except OSError as error:  # what can't be read may be whole, and others may have mapped it
        _tell(path, "read", error)
        return read()
    try:
        # By one process at a time: on a network's file system, a file that is replaced is lost to
        # the other machines that have mapped it.
        with FileLock(path.with_name(".lock")):
            with suppress(_MissingError):
                return _map(path, source)
            _write(path, source, content)
        return _map(path, source)
    except (OSError, RuntimeError, _MissingError) as error:  # a full disk may be either of two
        _tell(path, "written", error)
        return content


def _tell(path: Path, what: str, error: Exception) -> None:
    reason = getattr(error, "strerror", None) or str(error)
    rank_zero_info(
        f"{path} can't be {what} ({reason}): each process has the images in its own memory"
    )


def _map(path: Path, source: str) -> Images:
    _try_to_map(path)
    try:
        kept = torch.load(path, mmap=True, weights_only=True)
        content = Images(kept["images"], kept["labels"], kept["classes"])
        whole = kept["source"] == source and kept["digest"] == _digest(content)
    except (OSError, *_TROUBLE) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a seek beyond a cut file
            raise
        raise _MissingError(f"it does not hold the images: {error}") from error
    if not whole:
        raise _MissingError("it holds other images")
    return content


def _try_to_map(path: Path) -> None:
    # Of what can't be mapped, torch says no more than of what is broken.
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY):
            pass
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # the last: it is empty
        raise _MissingError(f"it does not hold the images: {error}") from error


def _write(path: Path, source: str, content: Images) -> None:
    kept = {**content._asdict(), "source": source, "digest": _digest(content)}
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):  # whose writers were killed
        part.unlink(missing_ok=True)
    with files.open_atomically(path) as file:
        torch.save(kept, file)


def _digest(content: Images) -> str:
    images, labels, classes = content
    pixels = digest_tensors(images, labels, torch.arange(len(images)))
    return f"{pixels} {classes}"
