"""The write-ahead log of a run: what it logs, as records in files that are only appended to.

One folder a run, `ROOT/<run_id>/`:

    spool.json       the run as it was when the folder was made, and where it is to be uploaded
    000001.records   what the first process wrote, 000002.records the second, and so on
    artifacts/       the files, by their paths in the run, until it is over and they are uploaded
    delivered.json   how far the server has all: an offset in bytes for each file of records, and
                     the records of files that could not be stored yet
    refused.records  the rejected records, with the server's words: JSON, a line each
    writer.lock      held by the process that writes, delivery.lock by the one that uploads
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
               it is compared with the champion: min_accuracy, alpha, compare_on

A file has one writer. A last line that is not whole is where its process died while writing.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from zlib import crc32

from pyclassify.utils import files
from pyclassify.utils.masking import mask

if TYPE_CHECKING:
    from mlflow import MlflowClient

FINAL_STATUSES = ("FINISHED", "FAILED", "KILLED")  # with which a run has ended, in MLflow's words
REASON_TAG = "status_reason"  # the tag that says why a run is FAILED or KILLED
START_TAG = "pyclassify.start"  # of a run that is being made, until its maker knows its id
SPOOL_FILE = "spool.json"
PROGRESS_FILE = "delivered.json"
REJECTED_FILE = "refused.records"
DONE_FILE = "done"
MAX_POINTS = 1000  # MLflow's limit for a batch of metrics
_MAX_RECORDS = 5000  # of one batch; their metrics may take several calls
_SEGMENT_NAME = re.compile(r"(\d{6})\.records")
# PostgreSQL takes no NUL, and half of a surrogate pair, as Python reads a name of a file that is
# not of UTF-8, can't be sent: the server would fail at each try, and get nothing of the run.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")

Record = dict[str, Any]


class DamagedRecord(ValueError):
    """A line whose checksum is another: the file was changed, or its disk is failing."""


def encode(record: Record) -> bytes:
    """Encode a record as a line."""
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (crc32(text), text)


def decode(line: bytes) -> Record:
    """Decode a line.

    Raises:
        DamagedRecord: The line is not one that `encode` made.
    """
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % crc32(text):
        raise DamagedRecord(line[:80].decode(errors="replace"))
    return dict(json.loads(text))


def format_spool_uri(folder: Path) -> str:
    """Format the URI of the spools in a folder, for MLflow."""
    return f"spool://{quote(str(folder))}"


def is_spool(folder: Path) -> bool:
    """Whether a folder is the spool of a run."""
    return (folder / SPOOL_FILE).is_file()


def list_segments(folder: Path) -> dict[int, Path]:
    """List the files of a run's records by their numbers, in order."""
    segments = {
        int(match[1]): path
        for path in folder.iterdir()
        if (match := _SEGMENT_NAME.fullmatch(path.name))
    }
    return dict(sorted(segments.items()))


def count_bytes(folder: Path) -> int:
    """Count the bytes of a run's records; as many as before means that nothing was logged."""
    return sum(path.stat().st_size for path in list_segments(folder).values())


def is_uploaded(folder: Path) -> bool:
    """Whether the server has all that was written, be the run over or not."""
    size = count_bytes(folder)
    try:
        progress = load_json(folder / PROGRESS_FILE)
        return size == sum(progress["places"].values()) and not progress.get("waiting")
    except FileNotFoundError:
        return size == 0


def is_done(folder: Path) -> bool:
    """Whether a run was over and uploaded, and nothing was written since."""
    try:
        return int((folder / DONE_FILE).read_text()) == count_bytes(folder)
    except (OSError, ValueError):
        return False


def read_records(path: Path, offset: int = 0) -> Iterator[tuple[int, Record | DamagedRecord]]:
    """Read the whole lines of a file from an offset on, without one that is still being written.

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
        number = max(list_segments(folder), default=0)
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
        """Have the disk store what was written (fsync)."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file whole or not at all."""
    files.write_atomically(path, json.dumps(content, indent=2))


def load_json(path: Path) -> dict[str, Any]:
    """Read what `save_json` wrote."""
    return dict(json.loads(path.read_text()))


@dataclass
class Batch:
    """Some records of a run, by their kind.

    Attributes:
        offsets: How many bytes of each file of records are read with this batch, by its number.
        count: The number of records.
    """

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
    offsets: dict[int, int] = field(default_factory=dict)
    count: int = 0

    def add(self, record: Record | DamagedRecord) -> None:
        """Add a record; of what can be logged again the latest counts."""
        self.count += 1
        if isinstance(record, DamagedRecord):
            self.damaged.append(str(record))
            return
        match record["kind"]:
            case "metrics":
                self.points += record["points"]
            case "params":
                self.params |= _make_storable(record["values"])
            case "tags":
                self.tags |= _make_storable(record["values"])
            case "inputs":
                self.inputs += _make_storable(record["datasets"])
            case "experiment_tag":
                tag = _make_storable(record)
                self.experiment_tags.setdefault(tag["name"], tag["value"])
            case "artifact":
                self.artifacts[record["path"]] = record
            case "version":
                self.versions[f"version of {record['name']} ({record['path']})"] = record
            case "name":
                self.name = _make_storable(record["name"])
            case "status":
                self.status = record


def _make_storable(value: Any) -> Any:
    """Replace what no server can store in a value of JSON by U+FFFD, the replacement character."""
    match value:
        case str():
            return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)
        case dict():
            return {_make_storable(key): _make_storable(item) for key, item in value.items()}
        case list():
            return [_make_storable(item) for item in value]
    return value


def read_batches(folder: Path, offsets: Mapping[int, int]) -> Iterator[Batch]:
    """Read a run's records; the last batch may be small.

    Args:
        folder: The run's folder.
        offsets: How many bytes of each file are skipped, by its number.
    """
    batch = Batch()
    for number, path in list_segments(folder).items():
        for after, record in read_records(path, offsets.get(number, 0)):
            batch.add(record)
            batch.offsets[number] = after
            if batch.count >= _MAX_RECORDS or len(batch.points) >= MAX_POINTS:
                yield batch
                batch = Batch()
    if batch.count:
        yield batch


def create_from_server(root: Path, client: "MlflowClient", run_id: str) -> Path:
    """Create the spool of a run that the server has, unless there is one.

    Args:
        root: The folder of the spools.
        client: A client of the server.
        run_id: The run.

    Returns:
        The run's folder.

    Raises:
        mlflow.exceptions.MlflowException: The server does not know the run, or does not answer.
        OSError: The folder can't be written.
    """
    folder = root / run_id
    if is_spool(folder):
        return folder
    run = client.get_run(run_id)
    info, data = run.info, run.data
    datasets = run.inputs.dataset_inputs if run.inputs else []
    experiment = client.get_experiment(info.experiment_id)
    spool_info = {
        "experiment": {
            "name": experiment.name,
            "creation_time": experiment.creation_time,
            "tags": experiment.tags,
        },
        "info": {
            **{name: getattr(info, name) for name in ("run_id", "experiment_id", "run_name")},
            **{name: getattr(info, name) for name in ("status", "start_time", "end_time")},
            "user_id": info.user_id,
        },
        "params": data.params,
        "tags": data.tags,
        "metrics": [[m.key, m.value, m.timestamp, m.step] for m in data._metric_objs],
        "steps": {  # that are not to be logged again
            name: [metric.step for metric in client.get_metric_history(run_id, name)]
            for name in data.metrics
        },
        "inputs": [dataset.to_dictionary() for dataset in datasets],
    }
    _write(folder, spool_info, client.tracking_uri)
    return folder


def create_spool(
    folder: Path,
    experiment_id: str,
    run_name: str,
    tags: dict[str, str],
    start_time: int,
    tracking_uri: str = "",
    given_id: bool = False,
) -> Path:
    """Create the spool of a run that no server was asked about.

    Args:
        folder: The run's folder, called by its id.
        experiment_id: The experiment's id; `name:` and its name where that alone is known.
        run_name: The run's name.
        tags: Its tags.
        start_time: When it started, in milliseconds since 1970.
        tracking_uri: Where it is to be uploaded; nothing where MLFLOW_TRACKING_URI shall say.
        given_id: Whether the server has a run of this id; else the upload makes one.

    Returns:
        The run's folder.
    """
    info: dict[str, Any] = {
        "run_id": folder.name,
        "experiment_id": experiment_id,
        "run_name": run_name,
    }
    info |= {"status": "RUNNING", "start_time": start_time, "end_time": None}
    info |= {"user_id": tags.get("mlflow.user")}
    spool_info: dict[str, Any] = {
        "info": info,
        "params": {},
        "tags": {**tags, "mlflow.runName": run_name},
    }
    name = experiment_id.removeprefix("name:")
    spool_info |= {"metrics": [], "inputs": []}
    spool_info |= {"experiment": {"name": name, "creation_time": start_time, "tags": {}}}
    _write(folder, spool_info, tracking_uri, made_here=not given_id)
    return folder


def _write(
    folder: Path, spool_info: dict[str, Any], tracking_uri: str, made_here: bool = False
) -> None:
    (folder / "artifacts").mkdir(parents=True, exist_ok=True, mode=0o700)
    uri = mask(_make_absolute(tracking_uri))
    target = {"layout": 1, "tracking_uri": uri, "made_here": made_here}
    save_json(folder / SPOOL_FILE, {**target, **spool_info})


def _make_absolute(uri: str) -> str:
    """Make a database's address the same from every folder."""
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri or path.startswith("/") else f"sqlite:///{Path(path).absolute()}"
