"""The records of a spool in batches, each of what one or a few calls to the server take."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyclassify.spool import records
from pyclassify.spool.records import DamagedRecord, Record

POINTS = 1000  # MLflow's limit for a batch of metrics
_RECORDS = 5000  # of one batch; their metrics may take several calls

# PostgreSQL takes no NUL, and half of a surrogate pair, as Python reads a name of a file that is
# not of UTF-8, can't be sent: the server would fail at each try, and get nothing of the run.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


@dataclass
class Batch:
    """Some records of a run, by what they are."""

    points: list[list[Any]] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str | None] = field(default_factory=dict)
    inputs: list[Any] = field(default_factory=list)
    experiment_tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, Record] = field(default_factory=dict)
    versions: dict[str, Record] = field(default_factory=dict)
    name: str = ""
    status: Record | None = None
    damaged: list[str] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    count: int = 0

    def add(self, record: Record | DamagedRecord) -> None:
        """Take a record in; of what can be said again the latest counts."""
        self.count += 1
        if isinstance(record, DamagedRecord):
            self.damaged.append(str(record))
            return
        match record["kind"]:
            case "metrics":
                self.points += record["points"]
            case "params":
                self.params |= _storable(record["values"])
            case "tags":
                self.tags |= _storable(record["values"])
            case "inputs":
                self.inputs += _storable(record["datasets"])
            case "experiment_tag":
                tag = _storable(record)
                self.experiment_tags.setdefault(tag["name"], tag["value"])
            case "artifact":
                self.artifacts[record["path"]] = record
            case "version":
                self.versions[f"version of {record['name']} ({record['path']})"] = record
            case "name":
                self.name = _storable(record["name"])
            case "status":
                self.status = record


def _storable(value: Any) -> Any:
    """A value of JSON with U+FFFD, the replacement character, for what no server can store."""
    match value:
        case str():
            return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)
        case dict():
            return {_storable(name): _storable(inner) for name, inner in value.items()}
        case list():
            return [_storable(inner) for inner in value]
    return value


def read_batches(folder: Path, places: Mapping[int, int]) -> Iterator[Batch]:
    """Read a run's records; the last batch may be small.

    Args:
        folder: The run's folder.
        places: How many bytes of each file are left out, by its number.
    """
    batch = Batch()
    for number, path in records.segments(folder).items():
        for after, record in records.read(path, places.get(number, 0)):
            batch.add(record)
            batch.places[number] = after
            if batch.count >= _RECORDS or len(batch.points) >= POINTS:
                yield batch
                batch = Batch()
    if batch.count:
        yield batch
