"""A run as its spool knows it: what was there when the spool was made, and all records since."""

from array import array
from bisect import bisect_left
from pathlib import Path
from typing import Any

from pyclassify.spool import records
from pyclassify.spool.records import DamagedRecord, Record


class Steps:
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


class Mirror:
    """What is known of a run.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        known = records.load(folder / records.SPOOL)
        self.folder = folder
        self.info: dict[str, Any] = known["info"]
        self.params: dict[str, str] = known["params"]
        self.tags: dict[str, str] = known["tags"]
        self.metrics: dict[str, list[Any]] = {each[0]: each for each in known["metrics"]}
        self.inputs: list[Any] = known["inputs"]
        self.experiment: dict[str, Any] = known["experiment"]
        self.finished = self.info["status"] == "FINISHED"  # at any time so far
        self.steps: dict[str, Steps] = {}
        for name, steps in known.get("steps", {}).items():
            for step in steps:
                self.steps.setdefault(name, Steps()).add(step)
        for path in records.segments(folder).values():
            for _, record in records.read(path):
                if not isinstance(record, DamagedRecord):
                    self.apply(record)

    def apply(self, record: Record) -> None:
        """Take a record in."""
        match record["kind"]:
            case "metrics":
                for point in record["points"]:
                    self.steps.setdefault(point[0], Steps()).add(point[3])
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
