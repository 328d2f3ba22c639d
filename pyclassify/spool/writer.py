"""A run's spool open for writing in this process."""

import threading
import warnings
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyclassify.spool import records
from pyclassify.spool.records import DamagedRecord, Record, Segment

MAX_PENDING_BYTES = 1 << 28  # kept in memory while the disk takes nothing


_lock = threading.Lock()


_opened: dict[Path, "RunWriter"] = {}


def open_writer(folder: Path) -> "RunWriter":
    """Open a run's folder, once a process.

    Raises:
        OSError: There is none, or it can't be read.
    """
    with _lock:
        if folder not in _opened:
            _opened[folder] = RunWriter(folder)
        return _opened[folder]


class RunState:
    """What is known of a run.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        known = records.load_json(folder / records.SPOOL_FILE)
        self.folder = folder
        self.info: dict[str, Any] = known["info"]
        self.params: dict[str, str] = known["params"]
        self.tags: dict[str, str] = known["tags"]
        self.metrics: dict[str, list[Any]] = {each[0]: each for each in known["metrics"]}
        self.inputs: list[Any] = known["inputs"]
        self.experiment: dict[str, Any] = known["experiment"]
        self.finished = self.info["status"] == "FINISHED"  # at any time so far
        self.steps: dict[str, StepSet] = {}
        for name, steps in known.get("steps", {}).items():
            for step in steps:
                self.steps.setdefault(name, StepSet()).add(step)
        for path in records.list_segments(folder).values():
            for _, record in records.read_records(path):
                if not isinstance(record, DamagedRecord):
                    self.apply(record)

    def apply(self, record: Record) -> None:
        """Take a record in."""
        match record["kind"]:
            case "metrics":
                for point in record["points"]:
                    self.steps.setdefault(point[0], StepSet()).add(point[3])
                    self.show(point)
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
            case "inputs":
                self.inputs += record["datasets"]

    def show(self, point: list[Any]) -> None:
        """Make a point the metric's latest, as MLflow does: by step, then by time and value."""
        latest = self.metrics.get(point[0])
        if latest is None or (point[3], point[2]) >= (latest[3], latest[2]):
            self.metrics[point[0]] = point


def list_open_runs(root: Path) -> list[RunState]:
    """The runs of a spool that are open in this process, the latest first."""
    with _lock:
        return [each.mirror for folder, each in reversed(_opened.items()) if folder.parent == root]


def close_writer(folder: Path) -> None:
    """Close a run's folder, if it is open here."""
    with _lock:
        if opened := _opened.pop(folder, None):
            opened.close()


class RunWriter:
    """A run's mirror and this process's file of records, which is made when it is first needed.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.mirror = folder, RunState(folder)
        self.refresh: Callable[[], None] = lambda: None  # by what others said to the server
        self._lock = threading.RLock()
        self._segment: Segment | None = None
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._warned = self._overflowed = False
        # What a finished run said of itself as a whole, at step 0, and may say anew.
        results = (each for each in self.mirror.metrics.values() if each[3] == 0)
        self._renewable = {each[0]: each[1] for each in results if self.mirror.finished}

    def append(self, record: Record) -> None:
        """Add a record; while the disk takes none it is kept in memory."""
        with self._lock:
            self.mirror.apply(record)
            self._keep(records.encode(record))

    def append_points(self, points: list[list[Any]]) -> None:
        """Add points of metrics, [name, value, milliseconds, step]; the first of a step counts."""
        with self._lock:
            new = [each for each in points if self._is_new(each)]
            for point in new:
                self.mirror.show(point)
            if new:
                self._keep(records.encode({"kind": "metrics", "points": new}))

    def _is_new(self, point: list[Any]) -> bool:
        name, value, _, step = point
        if self.mirror.steps.setdefault(name, StepSet()).add(step):
            return True
        # More epochs after the end: the last result counts, and an equal one is the same.
        return step == 0 and name in self._renewable and self._renewable.pop(name) != value

    def _keep(self, line: bytes) -> None:
        if self._bytes + len(line) > MAX_PENDING_BYTES:
            self._drop()
            return
        self._waiting.append(line)
        self._bytes += len(line)
        self.flush()

    def _drop(self) -> None:
        """Training is worth more than its log."""
        if not self._overflowed:
            warnings.warn(
                f"{self.folder} can't be written and {MAX_PENDING_BYTES >> 20} MB wait for it in "
                "memory: what is logged from now on is lost until there is room on its disk",
                stacklevel=2,
            )
        self._overflowed = True

    def flush(self) -> bool:
        """Write what waits; whether all is written."""
        with self._lock:
            try:
                while self._waiting:
                    self._segment = self._segment or Segment(self.folder)
                    self._segment.append(self._waiting[0])
                    self._bytes -= len(self._waiting.popleft())
            except OSError as error:
                if not self._warned:
                    warnings.warn(
                        f"{self.folder} can't be written ({error.strerror}); what is logged is "
                        "kept in memory until it can",
                        stacklevel=2,
                    )
                self._warned = True
                return False
            if self._warned:
                self._warned = self._overflowed = False
                warnings.warn(f"{self.folder} can be written again", stacklevel=2)
            return True

    def waiting(self) -> list[Record]:
        """What is in memory alone, as the disk takes nothing."""
        with self._lock:
            return [records.decode(line) for line in self._waiting]

    def sync(self) -> None:
        """Have the disk keep what was written."""
        with self._lock:
            if self._segment is not None:
                self._segment.sync()

    def close(self) -> None:
        with self._lock:
            self.flush()
            if self._segment is not None:
                self._segment.close()
                self._segment = None


class StepSet:
    """The steps that a metric has a value for: eight bytes each."""

    def __init__(self) -> None:
        self._steps = array("q")

    def add(self, step: int) -> bool:
        """Add a step; whether it is new."""
        steps = self._steps
        if not steps or step > steps[-1]:
            steps.append(step)
            return True
        place = bisect_left(steps, step)
        if steps[place] == step:
            return False
        steps.insert(place, step)
        return True
