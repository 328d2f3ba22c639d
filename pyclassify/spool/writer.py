"""Write to a run's spool, its write-ahead log, in this process."""

import copy
import threading
import warnings
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyclassify.spool import records
from pyclassify.spool.records import DamagedRecord, Record, Segment

MAX_PENDING_BYTES = 1 << 28  # buffered in memory while the disk can't be written

_lock = threading.Lock()
_writers: dict[Path, "RunWriter"] = {}


def open_writer(folder: Path) -> "RunWriter":
    """Open a run's folder for writing, once per process.

    Raises:
        OSError: The folder does not exist, or can't be read.
    """
    with _lock:
        if folder not in _writers:
            _writers[folder] = RunWriter(folder)
        return _writers[folder]


def close_writer(folder: Path) -> None:
    """Close a run's folder, if it is open in this process."""
    with _lock:
        if writer := _writers.pop(folder, None):
            writer.close()


def list_open_runs(root: Path) -> list["RunState"]:
    """List the runs of a folder of spools that are open in this process, the latest first."""
    with _lock:
        return [
            writer.state for folder, writer in reversed(_writers.items()) if folder.parent == root
        ]


class RunWriter:
    """A run's state, and this process's segment of its log, created with the first record.

    While the disk can't be written, records are buffered in memory, up to `MAX_PENDING_BYTES`.

    Args:
        folder: The run's folder.

    Attributes:
        refresh: Called before the run is read, to update it from the server.

    Example:
        >>> writer = open_writer(Path("runs/spool/RUN_ID"))
        >>> writer.append({"kind": "tags", "values": {"a": "1"}})
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, RunState(folder)
        self.refresh: Callable[[], None] = lambda: None
        self._lock = threading.RLock()
        self._segment: Segment | None = None
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._has_warned = self._is_dropping = False
        # A finished run that is trained for longer replaces its results, which are at step 0.
        results = (point for point in self.state.metrics.values() if point[3] == 0)
        self._renewable = {point[0]: point[1] for point in results if self.state.finished}

    def append(self, record: Record) -> None:
        """Append a record."""
        with self._lock:
            self.state.apply(record)
            self._append_line(records.encode(record))

    def append_points(self, points: list[list[Any]]) -> None:
        """Append metric values [name, value, milliseconds, step]; the first of each step counts."""
        with self._lock:
            new = [point for point in points if self._is_new(point)]
            for point in new:
                self.state.update_latest(point)
            if new:
                self._append_line(records.encode({"kind": "metrics", "points": new}))

    def flush(self) -> bool:
        """Write the records in memory to the disk; return whether none is left in memory."""
        with self._lock:
            try:
                while self._pending:
                    self._segment = self._segment or Segment(self.folder)
                    self._segment.append(self._pending[0])
                    self._pending_bytes -= len(self._pending.popleft())
            except OSError as error:
                if not self._has_warned:
                    warnings.warn(
                        f"{self.folder} can't be written ({error.strerror}); what the run logs is "
                        f"buffered in memory, up to {MAX_PENDING_BYTES >> 20} MB",
                        stacklevel=2,
                    )
                self._has_warned = True
                return False
            if self._has_warned:
                self._has_warned = self._is_dropping = False
                warnings.warn(f"{self.folder} can be written again", stacklevel=2)
            return True

    def list_pending(self) -> list[Record]:
        """List the records that are only in memory."""
        with self._lock:
            return [records.decode(line) for line in self._pending]

    def sync(self) -> None:
        """Have the disk store what was written (fsync)."""
        with self._lock:
            if self._segment is not None:
                self._segment.sync()

    def close(self) -> None:
        """Write the records in memory, and close the file."""
        with self._lock:
            self.flush()
            if self._segment is not None:
                self._segment.close()
                self._segment = None

    def _is_new(self, point: list[Any]) -> bool:
        name, value, _, step = point
        if self.state.steps.setdefault(name, _StepSet()).add(step):
            return True
        # A finished run was trained for more epochs: its new result counts, unless it is equal.
        return step == 0 and name in self._renewable and self._renewable.pop(name) != value

    def _append_line(self, line: bytes) -> None:
        if self._pending_bytes + len(line) > MAX_PENDING_BYTES:
            self._drop()
            return
        self._pending.append(line)
        self._pending_bytes += len(line)
        self.flush()

    def _drop(self) -> None:
        """Drop a record rather than stop the training."""
        if not self._is_dropping:
            warnings.warn(
                f"{self.folder} can't be written and {MAX_PENDING_BYTES >> 20} MB are buffered in "
                "memory; what the run logs from now on is lost. Free space on the disk",
                stacklevel=2,
            )
        self._is_dropping = True


class RunState:
    """The state of a run: what the server had when the spool was created, and its records since.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        spool_info = records.load_json(folder / records.SPOOL_FILE)
        self.folder = folder
        self.info: dict[str, Any] = spool_info["info"]
        self.params: dict[str, str] = spool_info["params"]
        self.tags: dict[str, str] = spool_info["tags"]
        self.metrics: dict[str, list[Any]] = {point[0]: point for point in spool_info["metrics"]}
        self.inputs: list[Any] = spool_info["inputs"]
        self.models: dict[str, LoggedModelState] = {}
        self.outputs: list[list[Any]] = spool_info.get("outputs", [])  # [model, step]
        self.experiment: dict[str, Any] = spool_info["experiment"]
        self.finished = self.info["status"] == "FINISHED"  # now or at an earlier time
        self.steps: dict[str, _StepSet] = {}
        for name, steps in spool_info.get("steps", {}).items():
            for step in steps:
                self.steps.setdefault(name, _StepSet()).add(step)
        for path in records.list_segments(folder).values():
            for _, record in records.read_records(path):
                if not isinstance(record, DamagedRecord):
                    self.apply(record)

    def apply(self, record: Record) -> None:
        """Apply a record."""
        match record["kind"]:
            case "metrics":
                for point in record["points"]:
                    self.steps.setdefault(point[0], _StepSet()).add(point[3])
                    self.update_latest(point)
            case "params":
                self.params.update(record["values"])
            case "tags":
                for name, value in record["values"].items():
                    if value is None:
                        self.tags.pop(name, None)
                    else:
                        self.tags[name] = value
            case "experiment_tag":
                self.experiment["tags"].setdefault(record["name"], record["value"])
            case "name":
                self.info["run_name"] = self.tags["mlflow.runName"] = record["name"]
            case "status":
                self.info.update(status=record["status"], end_time=record["end_time"])
                self.finished = self.finished or record["status"] == "FINISHED"
                if record["status"] in records.FINAL_STATUSES:
                    self._fail_pending_models()
            case "inputs":
                self.inputs += record["datasets"]
            case "outputs":
                self.outputs += record["models"]
            case "model":
                fields = {name: record[name] for name in ("name", "type", "time", "params", "tags")}
                self.models[record["model"]] = LoggedModelState(**copy.deepcopy(fields))
            case "model_metrics":
                for model, *point in record["points"]:
                    if model in self.models:
                        self.models[model].points.append(point)
            case "model_params" | "model_tags" | "model_status":
                if model_state := self.models.get(record["model"]):
                    model_state.apply(record)

    def update_latest(self, point: list[Any]) -> None:
        """Make a point the metric's latest, in MLflow's order: by step, then by time."""
        latest = self.metrics.get(point[0])
        if latest is None or (point[3], point[2]) >= (latest[3], latest[2]):
            self.metrics[point[0]] = point

    def _fail_pending_models(self) -> None:
        for model in self.models.values():
            if model.status == "PENDING":
                model.status = "FAILED"


@dataclass
class LoggedModelState:
    """The state of a logged model: its first record, and those since.

    Attributes:
        points: Its metrics: [name, value, milliseconds, step, name and digest of the data set].
    """

    name: str
    type: str | None
    time: int
    params: dict[str, str]
    tags: dict[str, str]
    status: str = "PENDING"
    points: list[list[Any]] = field(default_factory=list)

    def apply(self, record: Record) -> None:
        """Apply a record."""
        match record["kind"]:
            case "model_params":
                self.params.update(record["values"])
            case "model_tags":
                tags = {**self.tags, **record["values"]}
                self.tags = {name: value for name, value in tags.items() if value is not None}
            case "model_status":
                self.status = record["status"]


class _StepSet:
    """The steps at which a metric has a value, in eight bytes each."""

    def __init__(self) -> None:
        self._steps = array("q")

    def add(self, step: int) -> bool:
        """Add a step; return whether it is new."""
        steps = self._steps
        if not steps or step > steps[-1]:
            steps.append(step)
            return True
        index = bisect_left(steps, step)
        if steps[index] == step:
            return False
        steps.insert(index, step)
        return True
