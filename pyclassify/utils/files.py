"""Files written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import (
    contextmanager,
)
from pathlib import Path
from typing import IO


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file, as `open_atomically` does.

    Raises:
        OSError: It can't be written; what was there before is still there.
    """
    with open_atomically(path) as file:
        file.write(text.encode())


@contextmanager
def open_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Write a file under another name, have the disk keep it, and only then name it.

    Raises:
        OSError: It can't be written; what was there before is still there.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def find_cache_folder() -> Path:
    """The cache folder of this project (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyclassify"
