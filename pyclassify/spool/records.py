"""What a run logs, as records in files that nothing is ever taken out of.

One folder a run, `ROOT/<run_id>/`:

    spool.json       the run as it was when the folder was made, and where it is to be delivered
    000001.records   what the first process wrote, 000002.records the second, and so on
    artifacts/       the files, by their paths in the run, until the run is over and they delivered
    delivered.json   how far the server has all: an offset in bytes for each file of records, and
                     the records of files that could not be stored yet
    refused.records  what the server would not take, with its words: JSON, a line each
    writer.lock      held by the process that writes, delivery.lock by the one that delivers
    done             how many bytes the records had when the run was over and nothing was left

A record is a line: the CRC-32 of the rest in eight hexadecimal digits, a space, and a JSON object
(RFC 8259, and NaN and Infinity as Python writes them) with `kind` and

    metrics    points: [name, value, milliseconds since 1970, step], each (name, step) once
    params     values: {name: value}
    tags       values: {name: value}, None for one that is deleted
    name       name: the run's
    status     status, time: when it was said, end_time: the run's, or None
    inputs     datasets: [{dataset, tags}], as MLflow's own entities write them
    experiment_tag  name, value: one that its experiment may have already
    artifact   path: in the run, size in bytes, sha256
    version    name: the registered model's, path: of the files, tags, and how
               it is judged: min_accuracy, alpha, judge_by

A file has one writer. A last line that is not whole is where its process died while writing.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zlib import crc32

from pyclassify.utils import files

FINAL = ("FINISHED", "FAILED", "KILLED")  # the statuses that a run ends with
SPOOL = "spool.json"
DONE = "done"
_NAME = re.compile(r"(\d{6})\.records")

Record = dict[str, Any]


class DamagedRecord(ValueError):
    """A line whose checksum is another: the file was changed, or its disk is failing."""


def encode(record: Record) -> bytes:
    """Spell a record as a line."""
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (crc32(text), text)


def decode(line: bytes) -> Record:
    """Read a line.

    Raises:
        DamagedRecord: It is none that `encode` made.
    """
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % crc32(text):
        raise DamagedRecord(line[:80].decode(errors="replace"))
    return dict(json.loads(text))


def uri_of(folder: Path) -> str:
    """The URI of the spools in a folder, for MLflow."""
    return f"spool://{quote(str(folder))}"


def is_spool(folder: Path) -> bool:
    """Whether a folder is the spool of a run."""
    return (folder / SPOOL).is_file()


def segments(folder: Path) -> dict[int, Path]:
    """The files of a run's records by their numbers, in order."""
    found = {
        int(name[1]): each for each in folder.iterdir() if (name := _NAME.fullmatch(each.name))
    }
    return dict(sorted(found.items()))


def measure(folder: Path) -> int:
    """The bytes of a run's records: it is as it was where they are as many."""
    return sum(path.stat().st_size for path in segments(folder).values())


def is_delivered(folder: Path) -> bool:
    """Whether the server has all that was written, be the run over or not."""
    size = measure(folder)
    try:
        known = load(folder / "delivered.json")
        return size == sum(known["places"].values()) and not known.get("waiting")
    except FileNotFoundError:
        return size == 0


def is_done(folder: Path) -> bool:
    """Whether a run was over and delivered, and nothing was written since."""
    try:
        return int((folder / DONE).read_text()) == measure(folder)
    except (OSError, ValueError):
        return False


def read(path: Path, offset: int = 0) -> Iterator[tuple[int, Record | DamagedRecord]]:
    """Read the whole lines of a file from an offset on; one that another still writes is none yet.

    Yields:
        The offset after each line, and its record.
    """
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                yield offset, decode(line)
            except (DamagedRecord, ValueError) as error:
                yield offset, DamagedRecord(f"{path} at byte {offset - len(line)}: {error}")


class Segment:
    """A file of records, open for this process alone.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        number = max(segments(folder), default=0)
        while True:  # another process may have taken the same number
            number += 1
            self.path = folder / f"{number:06}.records"
            try:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._file = os.open(self.path, flags, 0o600)
                break
            except FileExistsError:
                continue
        self.number, self._size = number, 0

    def append(self, lines: bytes) -> None:
        """Write lines, all or none.

        Raises:
            OSError: The disk is full, or away.
        """
        written = 0
        try:
            while written < len(lines):
                written += os.write(self._file, lines[written:])
        except OSError:
            if written:
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(lines)

    def sync(self) -> None:
        """Have the disk keep what was written."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def replace(path: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file whole or not at all."""
    files.write_atomically(path, json.dumps(content, indent=2))


def load(path: Path) -> dict[str, Any]:
    """Read what `replace` wrote."""
    return dict(json.loads(path.read_text()))
