"""Train a recipe with several seeds (`--seeds 5`), so that recipes are compared beyond chance.

Each seed is trained by a process of its own, one after another, as a child run of one parent run,
which logs the seed statistics: mean, standard deviation and confidence interval of each metric.
Nothing here loads torch. With several processes of a launcher (srun, torchrun), each process starts
its part of every training, and only the first one makes runs.

Training resumes if it is started again with the same parent run: finished seeds are skipped,
interrupted ones resume, and missing ones are trained.
"""

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunInfo
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from pyclassify.runs import stats
from pyclassify.tracking import capsule, description, parameters, run
from pyclassify.tracking.description import escape_markdown
from pyclassify.tracking.ui import (
    RECIPE_VIEW,
    WORKFLOW_QUERY,
    format_fast_ui_command,
    link_run,
    link_runs,
)
from pyclassify.utils import launcher
from pyclassify.utils.options import (
    FLAGS,
    TRAINING_COMMANDS,
    has_seeds_option,
    list_settings,
    split_options,
)
from pyclassify.utils.signals import wait_for_child

_SEED_OPTIONS = ("--seed", "--seed_everything")
# The tag of a child run with its seed, which training logs as a parameter once it has begun.
_SEED_TAG = "pyclassify.seed"
# The tags that say who started a run, and from what.
_ORIGIN_TAGS = ("mlflow.user", "mlflow.source.")
# The metrics that are logged before the first training step.
_START_METRICS = ("parameters", "system/")

_RunsBySeed = Mapping[int, Run | None]


def read_seed_count(argv: list[str]) -> tuple[int, list[str]]:
    """Read the option --seeds.

    Returns:
        The number of trainings, and the command line without the option.

    Raises:
        ValueError: The value is not a whole number from 1, or the command doesn't train.
    """
    options = [*split_options(argv)]
    found = [option for option in options if has_seeds_option(option[:1])]
    if not found:
        return 1, argv
    name, equals, value = found[-1][0].partition("=")
    if not equals:
        value = found[-1][1] if len(found[-1]) > 1 else ""
    if not re.fullmatch(r"0*[1-9]\d*", value, re.ASCII):
        raise ValueError(
            f"seeds is {value or 'given without a value'}; give how many seeds to train with, a "
            f"whole number from 1: {name} 5"
        )
    command = next((option[0] for option in options if not option[0].startswith("-")), None)
    if command in TRAINING_COMMANDS and command not in ("train", "fit"):
        raise ValueError(f"seeds is for train and fit, and {command} trains nothing; leave it out")
    only_shows = any(word in FLAGS or word.endswith(".help") for word, *_ in options)
    return 1 if only_shows else int(value), drop_options(argv, "--seeds")


def drop_options(argv: list[str], *names: str) -> list[str]:
    """Drop options from a command line, with their values."""
    rest = (option for option in split_options(argv) if option[0].partition("=")[0] not in names)
    return [word for option in rest for word in option]


def train_seeds(argv: list[str], count: int) -> None:
    """Train with each seed, and write the seed report to standard output.

    After a seed that failed the others are trained all the same. Only if the first one failed
    before its first training step (an option is misspelled, data are missing) are the others
    skipped, which would fail likewise.

    Args:
        argv: The command line without --seeds; one that LightningCLI can read.
        count: The number of seeds.

    Raises:
        ValueError: The first seed is not a number, or no run can be made for a seed.
        OSError: A configuration file can't be read.
        ChildProcessError: A seed failed.
        KeyboardInterrupt: A seed saved a checkpoint and left, to be requeued.
    """
    seeds, config = list_seeds(argv, count), dict(list_settings(argv))
    _check_runs_can_be_made(config, count)
    run_id = os.environ.get("MLFLOW_RUN_ID")  # MLflow removes it when the run is started
    parent = ParentRun(seeds, config) if launcher.is_rank_zero() else None
    failed: list[int] = []
    try:
        for index in choose_seed_indices(parent, run_id, config, count):
            command = [*drop_options(argv, *_SEED_OPTIONS), "--seed", str(seeds[index])]
            exit_code = _train_seed(command, index, parent)
            if exit_code == launcher.REQUEUE_EXIT_CODE:
                raise KeyboardInterrupt("SIGUSR1")
            if exit_code != 0:
                failed.append(seeds[index])
                _check_failure(seeds, index, parent)
    finally:
        if parent:
            sys.stdout.write("\n" + "".join(f"{line}\n" for line in parent.format_report()))
    # Only the first process fails: a launcher would stop the first one, which still has to report,
    # as soon as another one failed.
    if failed and parent:
        which = f"seed{'s' if len(failed) > 1 else ''} {', '.join(map(str, failed))}"
        raise ChildProcessError(f"{which} of {count} failed; see what is said of each above")


def list_seeds(argv: list[str], count: int) -> range:
    """List the seeds: from the one that options or configuration files set, or from 0.

    Raises:
        ValueError: The first seed is not a number, or so large that the last one exceeds 32 bits.
        OSError: A configuration file can't be read.
    """
    first: Any = 0
    for name, value in list_settings(argv):
        if f"--{name}" in _SEED_OPTIONS:
            first = value
    if not re.fullmatch(r"\d+", str(first), re.ASCII) or int(first) + count > 2**32:
        raise ValueError(
            f"seeds is {count} and the first of them, seed, is {first}; give a whole number from 0 "
            f"to {2**32 - count} as --seed"
        )
    return range(int(first), int(first) + count)


def _check_runs_can_be_made(config: Mapping[str, Any], count: int) -> None:
    if str(config.get("trainer.logger")).lower() == "false":
        raise ValueError(
            f"trainer.logger is false and seeds is {count}: what the seeds come to is told by "
            "their runs; leave it out"
        )
    if os.environ.get("MLFLOW_TRACKING_URI", "").startswith("spool:"):
        raise ValueError(
            f"seeds is {count} and this process can't reach the tracking server, which makes their "
            "runs; train one seed a job, or have the nodes reach the server"
        )


def _check_failure(seeds: Sequence[int], index: int, parent: "ParentRun | None") -> None:
    """Raise ChildProcessError if the first seed failed in a way that the others would too."""
    if index == 0 and parent and launcher.is_single_process() and parent.failed_at_start():
        raise ChildProcessError(
            f"seed {seeds[0]} failed before it had learnt anything, and the other "
            f"{len(seeds) - 1} would fail likewise; see what is said of it above"
        )


def choose_seed_indices(
    parent: "ParentRun | None", run_id: str | None, config: Mapping[str, Any], count: int
) -> list[int]:
    """Choose the seeds to train, by index: all except those that have finished before.

    Args:
        parent: The parent run, in the process that makes runs; the other processes wait for it.
        run_id: The id of the parent run, if the run existed before.
        config: The dotted settings of options and configuration files.
        count: The number of seeds.
    """
    if run_id is None:  # the parent run is new and has no child runs
        return [*range(count)]
    if launcher.is_single_process():
        return parent.list_unfinished() if parent else [*range(count)]
    folder = Path(find_logger_settings(config).get("save_dir") or "runs", "seeds", run_id)
    if parent:
        launcher.publish(folder, parent.list_unfinished())
    indices: list[int] = launcher.wait_for_value(folder)
    return indices


def _train_seed(command: list[str], index: int, parent: "ParentRun | None") -> int:
    """Train with one seed in a child process, which stop signals are passed on to.

    Returns:
        The exit code; negative if a signal ended the process.
    """
    environ = {**os.environ, **launcher.choose_rendezvous(index)}
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        environ.pop(name, None)
    exit_code = -signal.SIGTERM.value
    try:
        if parent:
            environ |= parent.start_seed(index)
        with subprocess.Popen([sys.executable, "-m", "pyclassify", *command], env=environ) as child:
            exit_code = wait_for_child(child)
    finally:
        if parent:
            parent.end_seed(exit_code)
    return exit_code


class ParentRun:
    """The parent run of several seeds: the run of `mlflow run`, or a new one.

    The server may fail at any time, which costs a warning: training continues.

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
        self._lock = threading.Lock()  # after a stop signal another thread updates the run
        self._warn_on_error(self._load_children)
        params = {"seeds": str(len(seeds))}
        self._warn_on_error(parameters.log_parameters, self._client, self._info.run_id, params)
        run.call_after_end(self._finish)

    def list_unfinished(self) -> list[int]:
        """List the indices of the seeds without a finished run."""
        finished = {c.info.run_id for c in self._children if c.info.status == "FINISHED"}
        return [index for index, run_id in enumerate(self._run_ids) if run_id not in finished]

    def start_seed(self, index: int) -> dict[str, str]:
        """Make the run of a seed, or find the one that was interrupted.

        Args:
            index: The index of the seed.

        Returns:
            The environment variables of the process that is to log to the run.
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
        """Load the child runs and statistics of an earlier attempt."""
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
                status = "FINISHED" if exit_code == 0 else "KILLED" if exit_code < 0 else "FAILED"
                self._client.set_terminated(run_id, status)
        self._update()

    def _update(self) -> None:
        """Log the statistics, description and name that follow from the child runs."""
        with self._lock:
            self._children = [self._client.get_run(run_id) for run_id in self._run_ids if run_id]
            self._log_statistics(stats.summarize_seeds(self._children))
            self._describe()
            if name := _name_parent(self._children, len(self._seeds)):
                run.name_run(name)

    def _log_statistics(self, statistics: dict[str, float]) -> None:
        # A later seed can void a statistic, such as the interval of a loss that is NaN now.
        voided = dict.fromkeys(self._logged.keys() - statistics.keys(), math.nan)
        statistics = {**voided, **statistics}
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
        """Log what the child runs have in common: parameters and data."""
        children = [child for child in self._children if child.data.params]
        if children:
            common = _find_common_params([child.data.params for child in children])
            parameters.log_parameters(self._client, self._info.run_id, common)
            if data := children[0].inputs:
                self._client.log_inputs(self._info.run_id, data.dataset_inputs)

    def _warn_on_error(self, action: Callable[..., None], *args: Any) -> None:
        try:
            action(*args)
        except Exception as error:  # whatever the server raises
            capsule.warn_masked(
                f"the seeds' parent run {self._info.run_id} is not up to date ({error})"
            )


def list_child_runs(client: MlflowClient, parent: Run) -> list[Run]:
    """List the child runs of a parent of seeds, oldest first; none for other runs."""
    return _search_children(client, parent.info) if stats.SEEDS_TAG in parent.data.tags else []


def find_logger_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Find the settings of the run logger, which may be one of several loggers.

    Args:
        config: Dotted settings, as `options.list_settings` lists them.
    """
    prefix = "trainer.logger."
    single = {key.removeprefix(prefix): v for key, v in config.items() if key.startswith(prefix)}
    loggers = config.get("trainer.logger")
    for logger in loggers if isinstance(loggers, list) else ():
        if isinstance(logger, dict) and str(logger.get("class_path")).endswith("RunLogger"):
            return {**(logger.get("init_args") or {}), **single}
    return single


def _search_children(client: MlflowClient, parent: RunInfo) -> list[Run]:
    condition = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.run_id}'"
    order = ["attributes.start_time ASC"]
    return list(client.search_runs([parent.experiment_id], condition, order_by=order))


def _read_seed(child: Run) -> int | None:
    seed = child.data.tags.get(_SEED_TAG) or child.data.params.get("seed_everything", "")
    return int(seed) if seed.isdigit() else None


def _find_common_params(params: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Find the parameters that training logged (with a slash in the name) alike in all runs."""
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
    rows |= {"run": parent.run_id, "next": format_fast_ui_command(uri)}
    links = ["", "These runs:", link_run(uri, experiment, parent.run_id)]
    links += ["", "Recipes, each the mean of its runs:"]
    links.append(link_runs(uri, experiment, RECIPE_VIEW.key))
    return [*(f"{key:14} {row}" for key, row in rows.items()), *links]


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
