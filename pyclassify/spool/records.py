"""The write-ahead log of a run: everything that it logs, as records in append-only files.

Each run has one folder, `ROOT/<run_id>/`:

    spool.json        the run when the folder was created, and the server to upload it to
    000001.records    the segment of the first process, 000002.records of the second, and so on
    artifacts/        the files, by their paths in the run, until the run has ended and is uploaded
    models/<id>/      the files of a logged model, by their paths in the model, as long
    uploaded.json     the progress: `offsets`, the uploaded bytes of each segment, `pending`, the
                      records of files that could not be stored yet, and `models`, the ID and the
                      location that each logged model has at the server
    rejected.records  the rejected records (quarantine), each with the server's message, as JSON
    writer.lock       the lock of the process that writes
    upload.lock       the lock of the process that uploads
    done              the size of the records in bytes when the run had ended and was uploaded

A record is a line: the CRC-32 of the rest in eight hexadecimal digits, a space, and a JSON object
(RFC 8259, with NaN and Infinity as Python writes them). Its `kind` decides the other keys:

    metrics    points: [name, value, milliseconds since 1970, step], each (name, step) once
    params     values: {name: value}
    tags       values: {name: value}, None for a deleted tag
    name       name: the run's name
    status     status, time: when it was set, end_time: of the run, or None
    inputs     datasets: [{dataset, tags}], as MLflow's entities write them
    experiment_tag  name, value: set unless the experiment has the tag
    artifact   path: in the run, size in bytes, sha256; with model: path in that logged model
    version    name: the registered model's, model: the logged model, and how the version
               is compared with the champion: min_accuracy, alpha, compare_on; written by
               older releases, path: of the files in the run, and tags, in place of model

A logged model has an ID of the spool, `m-` and 32 hexadecimal digits, until the upload creates the
model at the server, which gives it another. Its records, by that ID in `model`, are:

    model          name, type, params, tags, time: when it was created
    model_params   values: {name: value}
    model_tags     values: {name: value}, None for a deleted tag
    model_status   status: READY once all files are logged, or FAILED
    model_metrics  points: [model, name, value, milliseconds since 1970, step, and the name and
                   the digest of the data set, or None]
    outputs        models: [model, step], the models that the run has produced

A model without a status when its run ends, because the process died in between, is FAILED.

A segment has one writer. Its last line may be incomplete if the process died while writing it.
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

FINAL_STATUSES = ("FINISHED", "FAILED", "KILLED")  # MLflow's statuses of a run that has ended
REASON_TAG = "status_reason"  # the tag with the reason why a run is FAILED or KILLED
START_TAG = "pyclassify.start"  # of a run that is being created, until its ID is known
SPOOL_FILE = "spool.json"
PROGRESS_FILE = "uploaded.json"
REJECTED_FILE = "rejected.records"
MODELS_FOLDER = "models"
MODEL_NAME = "model"  # of the logged model of a training, beside those of a user's code
UPLOAD_LOCK_FILE = "upload.lock"
DONE_FILE = "done"
MAX_POINTS = 1000  # MLflow's limit for a batch of metrics
_MAX_RECORDS = 5000  # of one batch; its metrics may take several requests
_SEGMENT_NAME = re.compile(r"(\d{6})\.records")
# PostgreSQL rejects NUL, and a lone surrogate (Python's reading of a file name that is not UTF-8)
# can't be encoded: each retry would fail, and nothing of the run would be uploaded.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")

Record = dict[str, Any]


class DamagedRecord(ValueError):
    """A line with a wrong checksum: the file was changed, or the disk is failing."""


def encode(record: Record) -> bytes:
    """Encode a record as a line."""
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (crc32(text), text)


def decode(line: bytes) -> Record:
    """Decode a line.

    Raises:
        DamagedRecord: The checksum is wrong.
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
    """List the segments of a run by their numbers, in order."""
    segments = {
        int(match[1]): path
        for path in folder.iterdir()
        if (match := _SEGMENT_NAME.fullmatch(path.name))
    }
    return dict(sorted(segments.items()))


def count_bytes(folder: Path) -> int:
    """Count the bytes of a run's records; the count grows with each record."""
    return sum(path.stat().st_size for path in list_segments(folder).values())


def is_uploaded(folder: Path) -> bool:
    """Whether all records written so far are uploaded, of a running run too."""
    size = count_bytes(folder)
    try:
        progress = load_json(folder / PROGRESS_FILE)
        return size == sum(progress["offsets"].values()) and not progress.get("pending")
    except FileNotFoundError:
        return size == 0


def is_done(folder: Path) -> bool:
    """Whether a run had ended and was uploaded, and nothing was written since."""
    try:
        return int((folder / DONE_FILE).read_text()) == count_bytes(folder)
    except (OSError, ValueError):
        return False


def read_records(path: Path, offset: int = 0) -> Iterator[tuple[int, Record | DamagedRecord]]:
    """Read the complete lines of a segment from an offset on.

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
    """A file of records that only this process writes to.

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
            OSError: The disk is full or not available.
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
    """Write a small JSON file atomically."""
    files.write_atomically(path, json.dumps(content, indent=2))


def load_json(path: Path) -> dict[str, Any]:
    """Read what `save_json` wrote."""
    return dict(json.loads(path.read_text()))


@dataclass
class Batch:
    """Some records of a run, by their kind.

    Attributes:
        offsets: The bytes of each segment that are read with this batch, by the segment's number.
        count: The number of records.
    """

    points: list[list[Any]] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str | None] = field(default_factory=dict)
    inputs: list[Any] = field(default_factory=list)
    experiment_tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, Record] = field(default_factory=dict)
    models: dict[str, Record] = field(default_factory=dict)
    model_params: dict[str, dict[str, str]] = field(default_factory=dict)
    model_tags: dict[str, dict[str, str | None]] = field(default_factory=dict)
    model_points: list[list[Any]] = field(default_factory=list)
    model_statuses: dict[str, Record] = field(default_factory=dict)
    outputs: list[list[Any]] = field(default_factory=list)
    versions: dict[str, Record] = field(default_factory=dict)
    name: str = ""
    status: Record | None = None
    damaged: list[str] = field(default_factory=list)
    offsets: dict[int, int] = field(default_factory=dict)
    count: int = 0

    def add(self, record: Record | DamagedRecord) -> None:
        """Add a record; the latest value of a parameter, a tag or an artifact counts."""
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
                self.artifacts[get_path(record)] = record
            case "version":
                model = record.get("model") or record["path"]
                self.versions[f"version of {record['name']} ({model})"] = record
            case "name":
                self.name = _make_storable(record["name"])
            case "status":
                self.status = record
            case _:
                self._add_of_model(record)

    def _add_of_model(self, record: Record) -> None:
        match record["kind"]:
            case "model":
                self.models[record["model"]] = _make_storable(record)
            case "model_params":
                params = self.model_params.setdefault(record["model"], {})
                params |= _make_storable(record["values"])
            case "model_tags":
                tags = self.model_tags.setdefault(record["model"], {})
                tags |= _make_storable(record["values"])
            case "model_metrics":
                self.model_points += _make_storable(record["points"])
            case "model_status":
                self.model_statuses[f"status of {record['model']}"] = record
            case "outputs":
                self.outputs += record["models"]


def get_path(record: Record) -> str:
    """Return the path of an artifact's record, which for a logged model's file names the model."""
    model, path = record.get("model"), str(record["path"])
    return f"{MODELS_FOLDER}/{model}/{path}" if model else path


def get_file(folder: Path, record: Record) -> Path:
    """Return the copy of an artifact in the spool."""
    return folder / ("" if record.get("model") else "artifacts") / get_path(record)


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
    """Create the spool of a run that exists at the server, unless the run has a spool.

    Args:
        root: The folder of the spools.
        client: A client of the server.
        run_id: The run.

    Returns:
        The run's folder.

    Raises:
        mlflow.exceptions.MlflowException: The run does not exist, or the server does not respond.
        OSError: The folder can't be written.
    """
    folder = root / run_id
    if is_spool(folder):
        return folder
    run = client.get_run(run_id)
    info, data = run.info, run.data
    datasets = run.inputs.dataset_inputs if run.inputs else []
    outputs = run.outputs.model_outputs if run.outputs else []
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
        "steps": {  # already logged: the first value of each step counts
            name: [metric.step for metric in client.get_metric_history(run_id, name)]
            for name in data.metrics
        },
        "inputs": [dataset.to_dictionary() for dataset in datasets],
        "outputs": [[model.model_id, model.step] for model in outputs],
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
    is_at_server: bool = False,
) -> Path:
    """Create the spool of a run offline, without a request to the server.

    Args:
        folder: The run's folder, named by the run's ID.
        experiment_id: The experiment's ID, or `name:` and its name if the ID is not known.
        run_name: The run's name.
        tags: Its tags.
        start_time: When it started, in milliseconds since 1970.
        tracking_uri: The server to upload it to; empty for that of MLFLOW_TRACKING_URI.
        is_at_server: Whether the run exists at the server; otherwise the upload creates it.

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
    _write(folder, spool_info, tracking_uri, is_at_server)
    return folder


def _write(
    folder: Path, spool_info: dict[str, Any], tracking_uri: str, is_at_server: bool = True
) -> None:
    (folder / "artifacts").mkdir(parents=True, exist_ok=True, mode=0o700)
    uri = mask(_make_absolute(tracking_uri))
    target = {"layout": 1, "tracking_uri": uri, "is_at_server": is_at_server}
    save_json(folder / SPOOL_FILE, {**target, **spool_info})


def _make_absolute(uri: str) -> str:
    """Make a database's address the same from every folder."""
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri or path.startswith("/") else f"sqlite:///{Path(path).absolute()}"
