"""Scan the image files of a folder on all cores: size, mode and digests, or why they do not decode.

Results are cached in the user's cache folder by the size and times of each file. Training reuses
the results of `prepare`, and only files that are new or have changed are reread.
"""

import json
import multiprocessing
import os
import re
import signal
import stat
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image
from tqdm import tqdm

from pyclassify.data.images import (
    Pixels,
    UnreadableImageError,
    decode_rgb,
    digest_decoder,
    open_image,
    read_content,
)
from pyclassify.utils.files import find_cache_folder, write_atomically
from pyclassify.utils.launcher import count_cores
from pyclassify.utils.signals import stop_with_parent
from pyclassify.utils.text import format_error

_FORMAT_VERSION = 1  # raise it with any change of `FileFacts` or of the difference hash
_CHUNK_FILES, _CHUNK_BYTES = 64, 2**20  # maximum of the files of one task
_CHUNKS_PER_PROCESS = 2  # one running, one pending
_LINE_SECONDS = 60.0  # between two lines of progress, if output is not a terminal
_REASON = re.compile(r"does not decode as an image \((.*)\)")
_HASH_SIZE = 8
_KILLED = "the decoding process was killed, probably for lack of memory for an image of this size"


class FileFacts(NamedTuple):
    """The result of scanning a file.

    Attributes:
        status: The size in bytes, the modification time and the inode change time in ns; all 0 for
            a file that can't be opened.
        error: Why the file does not decode; empty for an image. If it is not empty, the attributes
            below are.
        digest: The SHA-256 of the bytes, in hexadecimal.
        width: The width in pixels, before the EXIF orientation is applied.
        height: The height in pixels, before the EXIF orientation is applied.
        mode: Pillow's name of the pixel type, such as RGB.
        hash: The difference hash, 64 bits.
    """

    status: tuple[int, int, int]
    error: str
    digest: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    hash: int = 0


def scan_files(files: Sequence[str], folder: Path, retry: bool = False) -> list[FileFacts]:
    """Scan all files that are new or have changed since the last scan, on all cores.

    Progress is a bar in a terminal, and otherwise at most one line a minute.

    Args:
        files: The paths of the images.
        folder: The folder of the images; the cache has one file per folder.
        retry: Whether to rescan files that did not decode in the last scan.

    Returns:
        The facts of each file, in order.
    """
    saved = _load(folder)
    found = {file: saved.get(_name(file, folder)) for file in files}
    todo = [
        file
        for file, facts in found.items()
        if facts is None or facts.status != _read_status(file) or (retry and facts.error)
    ]
    if todo:
        try:
            with _show_progress(folder, len(todo)) as progress:
                for file, facts in _read_in_processes(todo):
                    found[file] = facts
                    progress.update()
        finally:  # after an interruption, the next scan resumes here
            known = {_name(file, folder): facts for file, facts in found.items() if facts}
            _save(folder, saved | known)
    return [facts for facts in found.values() if facts is not None]


def load_facts(files: Sequence[str], folder: Path) -> list[FileFacts] | None:
    """Load the results of earlier scans, without reading an image.

    Args:
        files: The paths of the images.
        folder: The folder of the images.

    Returns:
        The facts of each file, in order; None if a file is new or has changed.
    """
    saved = _load(folder)
    facts = []
    for file in files:
        known = saved.get(_name(file, folder))
        if known is None or known.status != _read_status(file):
            return None
        facts.append(known)
    return facts


def find_damaged(files: Sequence[str], folder: Path) -> dict[str, str]:
    """Find the files that do not decode; scan files that are new or have changed.

    Args:
        files: The paths of the images.
        folder: The folder of the images.

    Returns:
        The reason of each such file, by its path in the folder.
    """
    facts = zip(files, scan_files(files, folder), strict=True)
    return {_name(file, folder): found.error for file, found in facts if found.error}


# Scan one file


def read_facts(file: str) -> FileFacts:
    """Scan a file: its content, or why it does not decode."""
    status = _read_status(file)
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # reading a pipe blocks
            raise UnreadableImageError("is not a regular file")
        content = read_content(file)
        pixels = decode_rgb(content)
        with open_image(content) as image:
            width, height, mode = image.width, image.height, image.mode
    except (OSError, UnreadableImageError) as error:
        return FileFacts(status, _format_reason(error))
    digest = sha256(content).hexdigest()
    return FileFacts(status, "", digest, width, height, mode, compute_difference_hash(pixels))


def _format_reason(error: Exception) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, OSError) and cause.strerror:  # without the path, which is next to it
        return cause.strerror
    reason = _REASON.fullmatch(message := format_error(error))
    return reason[1] if reason else message


def compute_difference_hash(pixels: Pixels) -> int:
    """Compute the difference hash of an image: similar images have similar bits.

    The image is reduced to 9 x 8 gray pixels; each bit is 1 if a pixel is brighter than its left
    neighbor (N. Krawetz, "Kind of Like That", 2013; `imagehash.dhash`).

    Args:
        pixels: uint8 [height, width, 3].

    Returns:
        64 bits, from the top left.
    """
    gray = Image.fromarray(pixels).convert("L")
    small = np.asarray(gray.resize((_HASH_SIZE + 1, _HASH_SIZE), Image.Resampling.LANCZOS))
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def _read_status(file: str) -> tuple[int, int, int]:
    try:
        status = os.stat(file)
    except OSError:
        return (0, 0, 0)
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


# Scan all files, in processes


def _read_in_processes(files: Sequence[str]) -> Iterator[tuple[str, FileFacts]]:
    """Read files in processes; continue after a file whose process is killed."""
    pending, count = deque(_make_chunks(files)), count_cores(1)
    while pending:
        running: dict[Future[list[FileFacts]], list[str]] = {}
        try:
            with _start_processes(min(count, len(pending))) as pool:
                while pending or running:
                    while pending and len(running) < count * _CHUNKS_PER_PROCESS:
                        future = pool.submit(_read_chunk, pending[0])
                        running[future] = pending.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        facts = future.result()
                        yield from zip(running.pop(future), facts, strict=True)
        except BrokenProcessPool:
            # The kernel kills processes that are out of memory: one of these files may be huge.
            for chunk in running.values():
                yield from _read_one_by_one(chunk)


def _read_one_by_one(files: Iterable[str]) -> Iterator[tuple[str, FileFacts]]:
    pending = deque(files)
    while pending:
        try:
            with _start_processes(1) as pool:
                while pending:
                    facts = pool.submit(_read_chunk, [pending[0]]).result()
                    yield pending.popleft(), facts[0]
        except BrokenProcessPool:
            yield (file := pending.popleft()), FileFacts(_read_status(file), _KILLED)


def _make_chunks(files: Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for file in files:
        chunk.append(file)
        size += _read_status(file)[0]
        if len(chunk) == _CHUNK_FILES or size > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _read_chunk(files: Sequence[str]) -> list[FileFacts]:
    return [read_facts(file) for file in files]


@contextmanager
def _start_processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes that end with this context, immediately after an error or a signal."""
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, initializer=_start_process)
    try:
        yield pool
        pool.shutdown()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.kill()  # a process that was just forked may miss SIGTERM


def _start_process() -> None:
    stop_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for signum in (signal.SIGINT, signal.SIGUSR1):  # the parent handles them and ends this process
        signal.signal(signum, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    # libtiff writes warnings to stderr, into the progress bar.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


class _Progress:
    """A progress bar in a terminal, and otherwise at most one line a minute."""

    def __init__(self, folder: Path, total: int) -> None:
        self._folder, self._total, self._count = folder, total, 0
        self._bar = tqdm(total=total, desc=str(folder), unit=" files", disable=None)
        self._next_line = time.monotonic() + _LINE_SECONDS

    def update(self) -> None:
        self._count += 1
        self._bar.update()
        if self._bar.disable and time.monotonic() > self._next_line:
            rank_zero_info(f"{self._folder}: checked {self._count:,} of {self._total:,} files")
            self._next_line = time.monotonic() + _LINE_SECONDS

    def close(self) -> None:
        self._bar.close()


@contextmanager
def _show_progress(folder: Path, total: int) -> Iterator[_Progress]:
    progress = _Progress(folder, total)
    try:
        yield progress
    finally:
        progress.close()


# The cache of results


def _find_file(folder: Path) -> Path:
    name = folder.absolute().name[:100]
    key = sha256(os.fsencode(folder.absolute())).hexdigest()[:12]
    return find_cache_folder() / "scans" / f"{name}-{key}.json"


def _describe_source() -> str:
    return f"pillow {version('pillow')}, decoder {digest_decoder()}, format {_FORMAT_VERSION}"


def _name(file: str, folder: Path) -> str:
    return os.path.relpath(file, folder)


def _load(folder: Path) -> dict[str, FileFacts]:
    with suppress(OSError, ValueError, TypeError, KeyError):
        saved = json.loads(_find_file(folder).read_text())
        if saved["source"] == _describe_source():
            return {
                name: FileFacts(tuple(status), *rest)
                for name, (status, *rest) in saved["files"].items()
            }
    return {}


def _save(folder: Path, files: dict[str, FileFacts]) -> None:
    path = _find_file(folder)
    # Without the file, the next scan rereads all files: slower, and otherwise equal.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"source": _describe_source(), "files": files}
        write_atomically(path, json.dumps(content, indent=None))
