"""Write files whole or not at all, and find the folder of cached ones."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file, as `open_atomically` does.

    Raises:
        OSError: It can't be written; the file that was there before is still there.
    """
    with open_atomically(path) as file:
        file.write(text.encode())


@contextmanager
def open_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing under another name, and rename it once the disk has stored it.

    Raises:
        OSError: It can't be written; the file that was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def find_cache_folder() -> Path:
    """Find the cache folder of this project (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyclassify"
