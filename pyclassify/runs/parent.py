"""The parent run of seeds, and the runs under it.

Its metrics are named for what they are, `test_accuracy_mean`: under the children's own names they
would be averaged in as one more child. They are at step 0, so that `mlflow ui` draws bars, and
logged again after each child, the last point counting, so that a parent that is killed has what it
got to.

A parent run that is there already goes on with the runs that are under it.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunInfo
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from pyclassify.runs import seedwords, spread
from pyclassify.tracking import capsule, description, parameters, run

# Tags that say who started a run, and from what.
_ORIGIN = ("mlflow.user", "mlflow.source.")
_OF_NO_LEARNING = ("parameters", "system/")
# A tag of a run under a parent: its seed, which the run has as a parameter once it has begun.
_SEED = "pyclassify.seed"


class Parent:
    """A parent run that is being made: the one of `mlflow run`, or a new one.

    Args:
        seeds: The seeds, in the order of training.
        chosen: What options and configuration files set, of which the logger's settings count.
    """

    def __init__(self, seeds: Sequence[int], chosen: Mapping[str, Any]) -> None:
        logger = spread.find_logger(chosen)
        if uri := logger.get("tracking_uri"):
            mlflow.set_tracking_uri(uri)
        name = logger.get("run_name")
        started = run.start(
            logger.get("experiment_name"),
            f"{name}-{len(seeds)}seeds" if name else None,
            {spread.SEEDS: f"{seeds[0]} to {seeds[-1]}"},
            save_dir=logger.get("save_dir") or "runs",
        ).read()
        self._seeds, self._ids = seeds, [""] * len(seeds)
        self._info, self._client = started.info, MlflowClient()
        self._origin = {k: v for k, v in started.data.tags.items() if k.startswith(_ORIGIN)}
        self._children: list[Run] = []
        self._logged: dict[str, float] = {}
        self._lock = threading.Lock()  # a stop is recorded by another thread
        self._attempt(self._recall)
        self._attempt(parameters.log, self._client, self._info.run_id, {"seeds": str(len(seeds))})
        run.after_end(self._finish)

    def _recall(self) -> None:
        """Find what an earlier attempt came to, and its runs."""
        self._logged = dict(self._client.get_run(self._info.run_id).data.metrics)
        found = {_seed_of(child): child for child in _search(self._client, self._info)}
        self._ids = [found[seed].info.run_id if seed in found else "" for seed in self._seeds]
        self._children = [found[seed] for seed in self._seeds if seed in found]

    def unfinished(self) -> list[int]:
        """List the places of the seeds that have no finished run yet."""
        done = {child.info.run_id for child in self._children if child.info.status == "FINISHED"}
        return [place for place, run_id in enumerate(self._ids) if run_id not in done]

    def begin(self, place: int) -> dict[str, str]:
        """Make the run of a seed, unless there is one that was stopped.

        Args:
            place: Which of the seeds.

        Returns:
            The environment of the process that is to log to it.
        """
        if self._ids[place]:
            made = self._client.get_run(self._ids[place]).info
        else:
            tags = {**self._origin, MLFLOW_PARENT_RUN_ID: self._info.run_id}
            tags[_SEED] = str(self._seeds[place])
            made = self._client.create_run(self._info.experiment_id, tags=tags).info
            self._ids[place] = made.run_id
        self._attempt(self._record)
        return run.hand_over(made)

    def close(self, code: int) -> None:
        """Bring the runs up to date after a seed's process has ended.

        Args:
            code: Its exit code, negative where a signal ended it.
        """
        self._attempt(self._close, code)

    def has_learnt_nothing(self) -> bool:
        """Whether all that ran has failed before a metric of its training was logged."""
        names = [name for child in self._children for name in child.data.metrics]
        failed = [child.info.status == "FAILED" for child in self._children]
        return any(failed) and all(failed) and all(n.startswith(_OF_NO_LEARNING) for n in names)

    def tell(self) -> list[str]:
        """Say what the seeds came to, in lines for a terminal."""
        return seedwords.in_terminal(self._info, self._rows())

    def _rows(self) -> seedwords.Rows:
        known = {child.info.run_id: child for child in self._children}
        pairs = zip(self._seeds, self._ids, strict=True)
        return {seed: known.get(run_id) for seed, run_id in pairs}

    def _close(self, code: int) -> None:
        for run_id in filter(None, self._ids):
            if not self._client.get_run(run_id).info.end_time:  # gone before it could say so
                status = "FINISHED" if code == 0 else "KILLED" if code < 0 else "FAILED"
                self._client.set_terminated(run_id, status)
        self._record()

    def _record(self) -> None:
        with self._lock:
            self._children = [self._client.get_run(each) for each in self._ids if each]
            found = spread.summarise(self._children)
            # What a later seed took back, such as the interval of a loss that is not finite now.
            found = {**dict.fromkeys(self._logged.keys() - found.keys(), math.nan), **found}
            now = int(time.time() * 1000)
            changed = [
                Metric(name, value, now, 0)
                for name, value in found.items()
                if self._logged.get(name) != value
            ]
            self._client.log_batch(self._info.run_id, changed)
            self._logged = found
            self._describe()
            if name := spread.name_parent(self._children, len(self._seeds)):
                run.name(name)

    def _describe(self) -> None:
        """Write the run's description, unless a person wrote one."""
        there = self._client.get_run(self._info.run_id).data.tags.get(MLFLOW_RUN_NOTE, "")
        ours, theirs = description.unseal(there)
        if ours or not there:
            note = description.seal(seedwords.in_markdown(self._info, self._rows()))
            self._client.set_tag(self._info.run_id, MLFLOW_RUN_NOTE, note + theirs)

    def _finish(self) -> None:
        self._attempt(self._record)
        self._attempt(self._inherit)

    def _inherit(self) -> None:
        """Take over what the children agree on: parameters of ours, and the data."""
        children = [child for child in self._children if child.data.params]
        if children:
            agreed = spread.agree([child.data.params for child in children])
            parameters.log(self._client, self._info.run_id, agreed)
            if data := children[0].inputs:
                self._client.log_inputs(self._info.run_id, data.dataset_inputs)

    def _attempt(self, act: Callable[..., None], *args: Any) -> None:
        """Do what the seeds can go on without."""
        try:
            act(*args)
        except Exception as error:  # whatever the server has to say
            capsule.warn(f"the seeds' parent run {self._info.run_id} is not up to date ({error})")


def list_children(client: MlflowClient, parent: Run) -> list[Run]:
    """List the runs under a parent run of seeds, the first made first; none under other runs."""
    return _search(client, parent.info) if spread.SEEDS in parent.data.tags else []


def _search(client: MlflowClient, parent: RunInfo) -> list[Run]:
    condition = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.run_id}'"
    order = ["attributes.start_time ASC"]
    return list(client.search_runs([parent.experiment_id], condition, order_by=order))


def _seed_of(child: Run) -> int | None:
    seed = child.data.tags.get(_SEED) or child.data.params.get("seed_everything", "")
    return int(seed) if seed.isdigit() else None
