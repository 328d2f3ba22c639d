"""A set of images in one file, which the processes of a machine map into one piece of memory.

Nothing is taken from such a file that is not, by its digest, what was written from its source, such
as a checked download; an interrupted write, a cut file and a flipped bit are found, and the file
made again.
"""

import errno
import glob
import json
import mmap
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from filelock import FileLock
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from pyclassify.utils import files
from pyclassify.utils.files import find_cache_folder, write_atomically

# What torch.load and a look at the content fail with where a file is not whole or not ours.
_READ_ERRORS = (
    *(RuntimeError, ValueError, LookupError, TypeError, EOFError, AttributeError),
    pickle.UnpicklingError,
)
_T = TypeVar("_T")
_DIGEST_LENGTH = 32  # MLflow keeps 36
_IMAGES_PER_CHUNK = 1024  # images
_NUM_THREADS = 16
_FILES_PER_TASK = 256
_MAX_DIGESTS = 1000  # digests


class _InvalidCacheError(Exception):
    """There is no file, or it is not whole, not ours or made from something else."""


class LabeledImages(NamedTuple):
    """images (uint8 [n, channels, height, width]), labels (int64 [n]) and the classes' names."""

    images: Tensor
    labels: Tensor
    classes: list[str]


def load_cached_images(path: Path, source: str, read: Callable[[], LabeledImages]) -> LabeledImages:
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
        return _map_file(path, source)
    except _InvalidCacheError:
        content = read()
    except OSError as error:  # what can't be read may be whole, and others may have mapped it
        _log_fallback(path, "read", error)
        return read()
    try:
        # By one process at a time: on a network's file system, a file that is replaced is lost to
        # the other machines that have mapped it.
        with FileLock(path.with_name(".lock")):
            with suppress(_InvalidCacheError):
                return _map_file(path, source)
            _write_file(path, source, content)
        return _map_file(path, source)
    except (OSError, RuntimeError, _InvalidCacheError) as error:  # a full disk may be either of two
        _log_fallback(path, "written", error)
        return content


def _log_fallback(path: Path, what: str, error: Exception) -> None:
    reason = getattr(error, "strerror", None) or str(error)
    rank_zero_info(
        f"{path} can't be {what} ({reason}): each process has the images in its own memory"
    )


def _map_file(path: Path, source: str) -> LabeledImages:
    _check_mappable(path)
    try:
        kept = torch.load(path, mmap=True, weights_only=True)
        content = LabeledImages(kept["images"], kept["labels"], kept["classes"])
        whole = kept["source"] == source and kept["digest"] == _digest_content(content)
    except (OSError, *_READ_ERRORS) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a seek beyond a cut file
            raise
        raise _InvalidCacheError(f"it does not hold the images: {error}") from error
    if not whole:
        raise _InvalidCacheError("it holds other images")
    return content


def _check_mappable(path: Path) -> None:
    # Of what can't be mapped, torch says no more than of what is broken.
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY):
            pass
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # the last: it is empty
        raise _InvalidCacheError(f"it does not hold the images: {error}") from error


def _write_file(path: Path, source: str, content: LabeledImages) -> None:
    kept = {**content._asdict(), "source": source, "digest": _digest_content(content)}
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):  # whose writers were killed
        part.unlink(missing_ok=True)
    with files.open_atomically(path) as file:
        torch.save(kept, file)


def _digest_content(content: LabeledImages) -> str:
    images, labels, classes = content
    pixels = digest_tensors(images, labels, torch.arange(len(images)))
    return f"{pixels} {classes}"


def digest_tensors(images: Tensor, labels: Tensor, index: Tensor) -> str:
    """Digest images in memory, without a copy of them all.

    Args:
        images: Any type, [n, ...].
        labels: [n].
        index: Which of the n belong to the set, in order.
    """
    content = sha256(f"{images.dtype} {tuple(images.shape[1:])}\n".encode())
    # numpy gathers images twenty times as fast as torch.
    pixels, places = images.numpy(), index.numpy()
    content.update(labels.numpy()[places].data)
    for start in range(0, len(places), _IMAGES_PER_CHUNK):
        content.update(pixels[places[start : start + _IMAGES_PER_CHUNK]].data)
    return content.hexdigest()[:_DIGEST_LENGTH]


def digest_files(files: Sequence[str], folder: Path) -> str:
    """Digest image files: their paths, of which the class is a part, and all that is in them.

    Files whose paths, sizes and times of change, which a copy may keep, and of their inodes, which
    it can't, are those of an earlier call are not read again: digests.json in the user's cache
    folder has their digest.

    Args:
        files: Their paths.
        folder: What the paths count from.
    """
    memory = find_cache_folder() / "digests.json"
    looks = sha256()
    for look in _map_in_threads(_describe_file, files):
        looks.update(look)
    key = looks.hexdigest()
    known = _load_digests(memory)
    if key not in known:
        known[key] = _digest_contents(files, folder)
        _save_digests(memory, known)
    return known[key]


def _digest_contents(files: Sequence[str], folder: Path) -> str:
    content = sha256()
    for file, digest in zip(files, _map_in_threads(_digest_file, files), strict=True):
        content.update(f"{os.path.relpath(file, folder)}\0{digest}\n".encode())
    return content.hexdigest()[:_DIGEST_LENGTH]


def _map_in_threads(look: Callable[[str], _T], files: Sequence[str]) -> Iterator[_T]:
    # Many at once, as each may wait for a file system that is elsewhere, and some hundreds by each
    # thread at a time, since to hand over a single file takes as long as to read it.
    def look_at_all(start: int) -> list[_T]:
        return [look(file) for file in files[start : start + _FILES_PER_TASK]]

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for looks in pool.map(look_at_all, range(0, len(files), _FILES_PER_TASK)):
            yield from looks


def _describe_file(file: str) -> bytes:
    stat = os.stat(file)
    facts = (os.path.abspath(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return ("\0".join(map(str, facts)) + "\n").encode()


def _digest_file(file: str) -> str:
    with open(file, "rb", buffering=0) as stream:
        return sha256(stream.read()).hexdigest()


def _load_digests(memory: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        known = json.loads(memory.read_text())
        if isinstance(known, dict):
            return known
    return {}


def _save_digests(memory: Path, known: dict[str, str]) -> None:
    # A memory that can't be written costs time, nothing else.
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memory, json.dumps(dict([*known.items()][-_MAX_DIGESTS:]), indent=0))
