"""Digests of images and labels, by which the same data are known again: SHA-256, 32 digits."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from pyclassify.utils import files as atomic

_T = TypeVar("_T")

_DIGITS = 32  # MLflow keeps 36
_AT_ONCE = 1024  # images
_THREADS = 16
_FILES_AT_ONCE = 256
_REMEMBERED = 1000  # digests


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
    for start in range(0, len(places), _AT_ONCE):
        content.update(pixels[places[start : start + _AT_ONCE]].data)
    return content.hexdigest()[:_DIGITS]


def digest_files(files: Sequence[str], folder: Path, memory: Path) -> str:
    """Digest image files: their paths, of which the class is a part, and all that is in them.

    Files whose paths, sizes and times of change, which a copy may keep, and of their inodes, which
    it can't, are those of an earlier call are not read again.

    Args:
        files: Their paths.
        folder: What the paths count from.
        memory: The file that earlier digests are in; it need not exist.
    """
    looks = sha256()
    for look in _map_in_threads(_look, files):
        looks.update(look)
    key = looks.hexdigest()
    known = _recall(memory)
    if key not in known:
        known[key] = _digest_contents(files, folder)
        _remember(memory, known)
    return known[key]


def _digest_contents(files: Sequence[str], folder: Path) -> str:
    content = sha256()
    for file, digest in zip(files, _map_in_threads(_digest_file, files), strict=True):
        content.update(f"{os.path.relpath(file, folder)}\0{digest}\n".encode())
    return content.hexdigest()[:_DIGITS]


def _map_in_threads(look: Callable[[str], _T], files: Sequence[str]) -> Iterator[_T]:
    # Many at once, as each may wait for a file system that is elsewhere, and some hundreds by each
    # thread at a time, since to hand over a single file takes as long as to read it.
    def look_at_all(start: int) -> list[_T]:
        return [look(file) for file in files[start : start + _FILES_AT_ONCE]]

    with ThreadPoolExecutor(_THREADS) as pool:
        for looks in pool.map(look_at_all, range(0, len(files), _FILES_AT_ONCE)):
            yield from looks


def _look(file: str) -> bytes:
    stat = os.stat(file)
    facts = (os.path.abspath(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return ("\0".join(map(str, facts)) + "\n").encode()


def _digest_file(file: str) -> str:
    with open(file, "rb", buffering=0) as stream:
        return sha256(stream.read()).hexdigest()


def _recall(memory: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        known = json.loads(memory.read_text())
        if isinstance(known, dict):
            return known
    return {}


def _remember(memory: Path, known: dict[str, str]) -> None:
    # A memory that can't be written costs time, nothing else.
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_atomically(memory, json.dumps(dict([*known.items()][-_REMEMBERED:]), indent=0))
