"""Cache a data set in one memory-mapped file, and digest images by their content.

A cache file is used only if its digest matches its content and its source is the expected one (for
example the checksums of a download). After an interrupted write, a truncation or a flipped bit, the
file is invalid and is rewritten.
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

from pyclassify.utils.files import find_cache_folder, open_atomically, write_atomically

# What torch.load raises for a file that is damaged or was not written here.
_READ_ERRORS = (
    *(RuntimeError, ValueError, LookupError, TypeError, EOFError, AttributeError),
    pickle.UnpicklingError,
)
_DIGEST_LENGTH = 32  # MLflow stores at most 36 characters
_IMAGES_PER_CHUNK = 1024
_NUM_THREADS = 16
_FILES_PER_TASK = 256
_MAX_SAVED_DIGESTS = 1000
_T = TypeVar("_T")


class LabeledImages(NamedTuple):
    """Images with their labels.

    Attributes:
        images: uint8 [n, channels, height, width].
        labels: int64 [n].
        classes: The names of the classes, by label.
    """

    images: Tensor
    labels: Tensor
    classes: list[str]


def load_cached_images(path: Path, source: str, read: Callable[[], LabeledImages]) -> LabeledImages:
    """Map a data set from its cache file; write the file first if it is missing or invalid.

    All processes that map the file share its memory. A process that writes to the tensors gets its
    own copy of those pages (mmap(2), MAP_PRIVATE).

    Args:
        path: The cache file.
        source: Identifies what the data set is read from. A file with another source is replaced.
        read: Reads the data set into memory.

    Returns:
        The mapped data set; a data set in memory if the file can't be read or written.
    """
    try:
        return _map_file(path, source)
    except _InvalidCacheError:
        content = read()
    except OSError as error:  # the file may be valid, and mapped by other processes
        _log_fallback(path, "read", error)
        return read()
    try:
        # One writer at a time: on a network file system, other machines lose a file that they have
        # mapped when it is replaced.
        with FileLock(path.with_name(".lock")):
            with suppress(_InvalidCacheError):
                return _map_file(path, source)
            _write_file(path, source, content)
        return _map_file(path, source)
    except (OSError, RuntimeError, _InvalidCacheError) as error:  # a full disk raises either
        _log_fallback(path, "written", error)
        return content


class _InvalidCacheError(Exception):
    """The cache file is missing, damaged or made from another source."""


def _log_fallback(path: Path, what: str, error: Exception) -> None:
    reason = getattr(error, "strerror", None) or str(error)
    rank_zero_info(
        f"the cache file {path} can't be {what} ({reason}); each process holds its own copy of the "
        "images in memory"
    )


def _map_file(path: Path, source: str) -> LabeledImages:
    _check_mappable(path)
    try:
        saved = torch.load(path, mmap=True, weights_only=True)
        content = LabeledImages(saved["images"], saved["labels"], saved["classes"])
        valid = saved["source"] == source and saved["digest"] == _digest_content(content)
    except (OSError, *_READ_ERRORS) as error:
        # EINVAL: a seek beyond the end of a truncated file.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise _InvalidCacheError(f"{path} is not a cache file: {error}") from error
    if not valid:
        raise _InvalidCacheError(f"{path} has other images")
    return content


def _check_mappable(path: Path) -> None:
    # torch raises the same error for a file that can't be mapped and for a damaged file.
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY):
            pass
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: it is empty
        raise _InvalidCacheError(f"{path} is not a cache file: {error}") from error


def _write_file(path: Path, source: str, content: LabeledImages) -> None:
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):  # of killed writers
        leftover.unlink(missing_ok=True)
    with open_atomically(path) as file:
        torch.save(
            {**content._asdict(), "source": source, "digest": _digest_content(content)}, file
        )


def _digest_content(content: LabeledImages) -> str:
    images, labels, classes = content
    return f"{digest_tensors(images, labels, torch.arange(len(images)))} {classes}"


def digest_tensors(images: Tensor, labels: Tensor, index: Tensor) -> str:
    """Digest images in memory, without a copy of all of them.

    Args:
        images: Any type, [n, ...].
        labels: [n].
        index: The indices of the images that belong to the data set, in order, int64 [up to n].

    Returns:
        32 hexadecimal digits.
    """
    digest = sha256(f"{images.dtype} {tuple(images.shape[1:])}\n".encode())
    # numpy gathers images twenty times as fast as torch.
    pixels, indices = images.numpy(), index.numpy()
    digest.update(labels.numpy()[indices].data)
    for start in range(0, len(indices), _IMAGES_PER_CHUNK):
        digest.update(pixels[indices[start : start + _IMAGES_PER_CHUNK]].data)
    return digest.hexdigest()[:_DIGEST_LENGTH]


def digest_files(files: Sequence[str], folder: Path) -> str:
    """Digest image files: their relative paths, which name the class, and their content.

    Digests are saved in digests.json in the user's cache folder, by the absolute paths, sizes,
    modification times and inode change times of the files (a copy can preserve the modification
    time, not the inode change time). Files that match are not reread.

    Args:
        files: The paths of the images.
        folder: The folder that their paths are relative to.

    Returns:
        32 hexadecimal digits.
    """
    stats = sha256()
    for description in map_in_threads(_describe_file, files):
        stats.update(description)
    key = stats.hexdigest()
    path = find_cache_folder() / "digests.json"
    saved = _load_digests(path)
    if key not in saved:
        saved[key] = _digest_contents(files, folder)
        _save_digests(path, saved)
    return saved[key]


def _digest_contents(files: Sequence[str], folder: Path) -> str:
    digest = sha256()
    for file, file_digest in zip(files, map_in_threads(_digest_file, files), strict=True):
        digest.update(os.fsencode(f"{os.path.relpath(file, folder)}\0{file_digest}\n"))
    return digest.hexdigest()[:_DIGEST_LENGTH]


def map_in_threads(function: Callable[[str], _T], files: Sequence[str]) -> Iterator[_T]:
    """Call a function for each file, in threads; results have the order of the files."""

    # Threads, as each call may wait for a network file system. Hundreds of files per task, as
    # submitting a task takes as long as reading a file.
    def call_all(start: int) -> list[_T]:
        return [function(file) for file in files[start : start + _FILES_PER_TASK]]

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for results in pool.map(call_all, range(0, len(files), _FILES_PER_TASK)):
            yield from results


def _describe_file(file: str) -> bytes:
    stat = os.stat(file)
    fields = (os.path.abspath(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return os.fsencode("\0".join(map(str, fields)) + "\n")


def _digest_file(file: str) -> str:
    with open(file, "rb", buffering=0) as stream:
        return sha256(stream.read()).hexdigest()


def _load_digests(path: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        saved = json.loads(path.read_text())
        if isinstance(saved, dict):
            return saved
    return {}


def _save_digests(path: Path, digests: dict[str, str]) -> None:
    # Without the file, the next run rereads the images: it starts later, and is otherwise equal.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        latest = dict([*digests.items()][-_MAX_SAVED_DIGESTS:])
        write_atomically(path, json.dumps(latest, indent=0))
