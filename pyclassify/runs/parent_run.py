"""The parent run of several seeds, and the seed report of its child runs."""

import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunInfo
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from pyclassify.runs import stats
from pyclassify.spool.records import REASON_TAG
from pyclassify.tracking import capsule, description, parameters, run
from pyclassify.tracking.monitor import describe_end
from pyclassify.tracking.ui import (
    RECIPE_VIEW,
    WORKFLOW_QUERY,
    format_fast_ui_command,
    link_run,
    link_runs,
)
from pyclassify.utils.options import find_logger_settings
from pyclassify.utils.text import escape_markdown

# The tag of a child run with its seed; training logs the seed as a parameter later.
_SEED_TAG = "pyclassify.seed"
# The tags with the user and the source of a run.
_ORIGIN_TAGS = ("mlflow.user", "mlflow.source.")
# The metrics that are logged before the first training step.
_START_METRICS = ("parameters", "system/")
_MONITOR_SECONDS = 10.0  # to wait for a seed's monitor to set the status that the seed did not set

_RunsBySeed = Mapping[int, Run | None]


class ParentRun:
    """The parent run of several seeds: the run of `mlflow run`, or a new one.

    Errors of the tracking server become warnings, and training continues.

    Args:
        seeds: The seeds, in the order of training.
        config: The dotted settings of options and configuration files, of which those of the run
            logger count.

    Example:
        >>> parent = ParentRun(range(5), {"trainer.logger.run_name": "AlexNet"})
        >>> environ = parent.start_seed(0)
        >>> parent.end_seed(subprocess.call(["pyclassify", "train"], env=environ))
    """

    def __init__(self, seeds: Sequence[int], config: Mapping[str, Any]) -> None:
        logger = find_logger_settings(config)
        if uri := logger.get("tracking_uri"):
            mlflow.set_tracking_uri(uri)
        name = logger.get("run_name")
        started = run.start_run(
            logger.get("experiment_name"),
            f"{name}-{len(seeds)}seeds" if name else None,
            {stats.SEEDS_TAG: f"{seeds[0]} to {seeds[-1]}"},
            save_dir=logger.get("save_dir") or "runs",
        ).get_run()
        self._seeds, self._run_ids = seeds, [""] * len(seeds)
        self._info, self._client = started.info, MlflowClient()
        tags = started.data.tags.items()
        self._origin = {key: value for key, value in tags if key.startswith(_ORIGIN_TAGS)}
        self._children: list[Run] = []
        self._logged: dict[str, float] = {}
        self._lock = threading.Lock()  # after a stop signal, another thread updates the run
        self._warn_on_error(self._load_children)
        params = {"seeds": str(len(seeds))}
        self._warn_on_error(parameters.log_parameters, self._client, self._info.run_id, params)
        run.call_after_end(self._finish)

    def list_unfinished(self) -> list[int]:
        """List the indices of the seeds without a finished run."""
        finished = {c.info.run_id for c in self._children if c.info.status == "FINISHED"}
        return [index for index, run_id in enumerate(self._run_ids) if run_id not in finished]

    def start_seed(self, index: int) -> dict[str, str]:
        """Create the run of a seed, or find the interrupted one.

        Args:
            index: The index of the seed.

        Returns:
            The environment variables for the process that logs to the run.
        """
        if self._run_ids[index]:
            child = self._client.get_run(self._run_ids[index]).info
        else:
            tags = {**self._origin, MLFLOW_PARENT_RUN_ID: self._info.run_id}
            tags[_SEED_TAG] = str(self._seeds[index])
            child = self._client.create_run(self._info.experiment_id, tags=tags).info
            self._run_ids[index] = child.run_id
        self._warn_on_error(self._update)
        return run.make_run_environment(child)

    def end_seed(self, exit_code: int) -> None:
        """Update the runs after the process of a seed has ended.

        Args:
            exit_code: The exit code of the process; negative if a signal ended it.
        """
        self._warn_on_error(self._end_children, exit_code)

    def has_failed(self, index: int) -> bool:
        """Whether a seed's run has ended without success, whatever its exit code was."""
        statuses = {child.info.run_id: child.info.status for child in self._children}
        return statuses.get(self._run_ids[index]) in ("FAILED", "KILLED")

    def failed_at_start(self) -> bool:
        """Whether every child run so far failed before its first training step."""
        metrics = [name for child in self._children for name in child.data.metrics]
        failed = [child.info.status == "FAILED" for child in self._children]
        has_trained = any(not name.startswith(_START_METRICS) for name in metrics)
        return any(failed) and all(failed) and not has_trained

    def format_report(self) -> list[str]:
        """Format the seed report, in lines for a terminal."""
        return _format_terminal_report(self._info, self._map_children())

    def _load_children(self) -> None:
        """Load the child runs and statistics of the previous attempt."""
        self._logged = dict(self._client.get_run(self._info.run_id).data.metrics)
        found = {_read_seed(child): child for child in _search_children(self._client, self._info)}
        self._run_ids = [found[seed].info.run_id if seed in found else "" for seed in self._seeds]
        self._children = [found[seed] for seed in self._seeds if seed in found]

    def _map_children(self) -> _RunsBySeed:
        children = {child.info.run_id: child for child in self._children}
        pairs = zip(self._seeds, self._run_ids, strict=True)
        return {seed: children.get(run_id) for seed, run_id in pairs}

    def _end_children(self, exit_code: int) -> None:
        for run_id in filter(None, self._run_ids):
            if not self._client.get_run(run_id).info.end_time:  # the process could not end it
                if exit_code == 0:  # its monitor sets it, or the upload of its spool does
                    self._wait_for_end(run_id)
                    continue
                status, reason = describe_end(exit_code)
                self._client.set_tag(run_id, REASON_TAG, reason)
                self._client.set_terminated(run_id, status)
        self._update()

    def _wait_for_end(self, run_id: str) -> None:
        deadline = time.monotonic() + _MONITOR_SECONDS
        while time.monotonic() < deadline:
            if self._client.get_run(run_id).info.end_time:
                return
            time.sleep(0.2)

    def _update(self) -> None:
        """Update statistics, description and name from the child runs."""
        with self._lock:
            self._children = [self._client.get_run(run_id) for run_id in self._run_ids if run_id]
            self._log_statistics(stats.summarize_seeds(self._children))
            self._describe()
            if name := _name_parent(self._children, len(self._seeds)):
                run.name_run(name)

    def _log_statistics(self, statistics: dict[str, float]) -> None:
        # A later seed can invalidate a statistic: the interval of a loss that is now NaN.
        invalid = dict.fromkeys(self._logged.keys() - statistics.keys(), math.nan)
        statistics = {**invalid, **statistics}
        now = int(time.time() * 1000)
        changed = [
            Metric(name, value, now, 0)
            for name, value in statistics.items()
            if self._logged.get(name) != value
        ]
        self._client.log_batch(self._info.run_id, changed)
        self._logged = statistics

    def _describe(self) -> None:
        """Write the run's description, unless a person wrote one."""
        tags = self._client.get_run(self._info.run_id).data.tags
        before = tags.get(MLFLOW_RUN_NOTE, "")
        ours, theirs = description.unseal(before)
        if ours or not before:
            note = description.seal(_format_markdown_report(self._info, self._map_children()))
            self._client.set_tag(self._info.run_id, MLFLOW_RUN_NOTE, note + theirs)

    def _finish(self) -> None:
        self._warn_on_error(self._update)
        self._warn_on_error(self._log_recipe)

    def _log_recipe(self) -> None:
        """Log the parameters and data that all child runs have in common."""
        children = [child for child in self._children if child.data.params]
        if children:
            common = _find_common_params([child.data.params for child in children])
            parameters.log_parameters(self._client, self._info.run_id, common)
            if data := children[0].inputs:
                self._client.log_inputs(self._info.run_id, data.dataset_inputs)

    def _warn_on_error(self, action: Callable[..., None], *args: Any) -> None:
        try:
            action(*args)
        except Exception as error:  # each kind of store raises its own
            capsule.warn_masked(
                f"the parent run {self._info.run_id} of the seeds could not be updated ({error})"
            )


def list_child_runs(client: MlflowClient, parent: Run) -> list[Run]:
    """List the child runs of a parent of seeds, oldest first; none for other runs."""
    return _search_children(client, parent.info) if stats.SEEDS_TAG in parent.data.tags else []


def _search_children(client: MlflowClient, parent: RunInfo) -> list[Run]:
    condition = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.run_id}'"
    order = ["attributes.start_time ASC"]
    return list(client.search_runs([parent.experiment_id], condition, order_by=order))


def _read_seed(child: Run) -> int | None:
    seed = child.data.tags.get(_SEED_TAG) or child.data.params.get("seed_everything", "")
    return int(seed) if seed.isdigit() else None


def _find_common_params(params: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Find the parameters of training (with a slash in the name) that are equal in all runs."""
    first, *others = params
    return {
        name: value
        for name, value in first.items()
        if "/" in name and all(other.get(name) == value for other in others)
    }


def _name_parent(children: Sequence[Run], count: int) -> str | None:
    """Name a parent by its child runs: AlexNet-CIFAR10-5seeds for AlexNet-CIFAR10-seed0."""
    matches = (re.fullmatch(r"(.+)-seed\d+", child.info.run_name or "") for child in children)
    return next((f"{match[1]}-{count}seeds" for match in matches if match), None)


def _format_terminal_report(parent: RunInfo, runs: _RunsBySeed) -> list[str]:
    children = list(filter(None, runs.values()))
    metric = stats.choose_metric(children)
    rows = {}
    for seed, child in runs.items():
        if child:
            row = f"{child.info.run_id[:8]}  {child.info.status:8}  {_format_value(child, metric)}"
            rows[f"seed {seed}"] = row.rstrip()
    rows[metric] = stats.format_mean_and_deviation(stats.read_metric(children, metric))
    uri, experiment = mlflow.get_tracking_uri(), parent.experiment_id
    rows["run"] = parent.run_id
    links = {
        "look": format_fast_ui_command(uri),
        "these runs": link_run(uri, experiment, parent.run_id),
        "recipes": link_runs(uri, experiment, RECIPE_VIEW.key),
        "compare": f"pyclassify compare {parent.run_id[:8]} OTHER_RUN_ID",
    }
    blocks = ([f"{key:14} {row}" for key, row in block.items()] for block in (rows, links))
    return [*next(blocks), "", *next(blocks)]


def _format_markdown_report(parent: RunInfo, runs: _RunsBySeed) -> str:
    """Format the seed report as the description of the run's page."""
    children = list(filter(None, runs.values()))
    metric = stats.choose_metric(children)
    title, page = metric.replace("_", " "), f"#/experiments/{parent.experiment_id}/runs"
    mean = stats.format_mean_and_deviation(stats.read_metric(children, metric))
    lines = [f"**{title}: {mean}**", "", f"| seed | run | status | {title} |", "|--|--|--|--|"]
    for seed, child in runs.items():
        link = status = value = ""
        if child:
            name = escape_markdown(child.info.run_name)
            link = f"[{name}]({page}/{child.info.run_id}?{WORKFLOW_QUERY})"
            status, value = child.info.status, _format_value(child, metric)
        lines.append(f"| {seed} | {link} | {status} | {value} |")
    return "\n".join(lines)


def _format_value(child: Run, metric: str) -> str:
    value = child.data.metrics.get(metric)
    return "" if value is None else f"{value:.4f}"
