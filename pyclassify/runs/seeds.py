"""`--seeds 5`: train a recipe with five seeds, so that two recipes are compared by more than luck.

They are trained one after another, each by a process of its own, as runs under one parent run. No
torch here. Of processes that a launcher started (srun, torchrun) each starts its own share of every
training, and only the first of them makes runs.

Started again under the same parent run, they go on where they were: a seed that finished is left,
one that was stopped goes on, and one that is missing is trained.
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
from pyclassify.utils.launcher import choose_rendezvous, is_single_process
from pyclassify.utils.options import (
    FLAGS,
    TRAINING_COMMANDS,
    has_seeds_option,
    list_settings,
    split_options,
)
from pyclassify.utils.signals import wait_for_child

SEED_OPTIONS = ("--seed", "--seed_everything")
# Tags that say who started a run, and from what.
_ORIGIN = ("mlflow.user", "mlflow.source.")
_OF_NO_LEARNING = ("parameters", "system/")
# A tag of a run under a parent: its seed, which the run has as a parameter once it has begun.
_SEED = "pyclassify.seed"


def read_count(given: list[str]) -> tuple[int, list[str]]:
    """Take --seeds out of a command line.

    Returns:
        How many trainings are asked for, and the words that are left.

    Raises:
        ValueError: It is no number from 1, or the verb trains nothing.
    """
    options = [*split_options(given)]
    asked = [option for option in options if has_seeds_option(option[:1])]
    if not asked:
        return 1, given
    name, equals, value = asked[-1][0].partition("=")
    if not equals:
        value = asked[-1][1] if len(asked[-1]) > 1 else ""
    if not re.fullmatch(r"0*[1-9]\d*", value, re.ASCII):
        raise ValueError(
            f"seeds is {value or 'given without a value'}; give how many seeds to train with, a "
            f"whole number from 1: {name} 5"
        )
    verb = next((option[0] for option in options if not option[0].startswith("-")), None)
    if verb in TRAINING_COMMANDS and verb not in ("train", "fit"):
        raise ValueError(f"seeds is for train and fit, and {verb} trains nothing; leave it out")
    only_shows = any(word in FLAGS or word.endswith(".help") for word, *_ in options)
    return 1 if only_shows else int(value), drop_options(given, "--seeds")


def list_seeds(words: list[str], count: int) -> range:
    """List the seeds: from that of the options or the configuration on, or from 0.

    Raises:
        ValueError: That is no number, or leaves too few above it.
        OSError: A configuration file can't be read.
    """
    first: Any = 0
    for name, value in list_settings(words):
        if f"--{name}" in SEED_OPTIONS:
            first = value
    if not re.fullmatch(r"\d+", str(first), re.ASCII) or int(first) + count > 2**32:
        raise ValueError(
            f"seeds is {count} and the first of them, seed, is {first}; give a whole number from 0 "
            f"to {2**32 - count} as --seed"
        )
    return range(int(first), int(first) + count)


def drop_options(given: list[str], *names: str) -> list[str]:
    """Leave options out of a command line, with their values."""
    left = (option for option in split_options(given) if option[0].partition("=")[0] not in names)
    return [word for option in left for word in option]


def train_seeds(words: list[str], count: int) -> None:
    """Train with each seed, and tell on standard output how it went.

    One that fails leaves the others to go on. Only where the first fails before it has learnt
    anything (an option misspelled, data missing), the others would as well, and are left.

    Args:
        words: The command line, without --seeds; one that LightningCLI can read.
        count: How many seeds.

    Raises:
        ValueError: The command line is wrong, as far as can be told without torch.
        OSError: A configuration file can't be read; or, as ChildProcessError, a seed failed.
    """
    seeds, chosen = list_seeds(words, count), dict(list_settings(words))
    if str(chosen.get("trainer.logger")).lower() == "false":
        raise ValueError(
            f"trainer.logger is false and seeds is {count}: what the seeds come to is told by "
            "their runs; leave it out"
        )
    if os.environ.get("MLFLOW_TRACKING_URI", "").startswith("spool:"):
        raise ValueError(
            f"seeds is {count} and this process can't reach the tracking server, which makes their "
            "runs; train one seed a job, or have the nodes reach the server"
        )
    parent, given = None, os.environ.get("MLFLOW_RUN_ID")  # which MLflow takes out of it
    if launcher.is_rank_zero():
        parent = ParentRun(seeds, chosen)
    failed: list[int] = []
    try:
        for place in choose_seed_indices(parent, given, chosen, count):
            seed = seeds[place]
            command = [*drop_options(words, *SEED_OPTIONS), "--seed", str(seed)]
            code = train_one(command, place, parent)
            if code == launcher.REQUEUE_EXIT_CODE:  # it has saved and left, to go on later
                raise KeyboardInterrupt("SIGUSR1")
            if code != 0:
                failed.append(seed)
                if place == 0 and parent and is_single_process() and parent.has_learnt_nothing():
                    raise ChildProcessError(
                        f"seed {seed} failed before it had learnt anything, and the other "
                        f"{count - 1} would fail likewise; see what is said of it above"
                    )
    finally:
        if parent:
            sys.stdout.write("\n" + "".join(f"{line}\n" for line in parent.tell()))
    # Another process that left as failed would have its launcher stop the first, which has to tell.
    if failed and parent:
        which = f"seed{'s' if len(failed) > 1 else ''} {', '.join(map(str, failed))}"
        raise ChildProcessError(f"{which} of {count} failed; see what is said of each above")


def choose_seed_indices(
    parent: Any, run_id: str | None, chosen: dict[str, Any], count: int
) -> list[int]:
    """List which of the seeds are to be trained: all, but for those that have finished before.

    Args:
        parent: The parent run, in the process that makes runs; the others hear of it.
        run_id: Its id, where it was there before.
        chosen: What options and configuration files set.
        count: How many seeds there are.
    """
    if run_id is None:  # a new run, under which there is none
        return [*range(count)]
    if is_single_process():
        return parent.unfinished() if parent else [*range(count)]
    from pyclassify.runs.stats import find_logger

    folder = Path(find_logger(chosen).get("save_dir") or "runs", "seeds", run_id)
    if parent:
        launcher.publish(folder, parent.unfinished())
    places: list[int] = launcher.wait_for_value(folder)
    return places


def train_one(command: list[str], place: int, parent: Any) -> int:
    """Train with one seed; a stop is passed on, and waited for.

    Args:
        command: The verb and its options.
        place: How many were trained before it.
        parent: The parent run, in the process that makes runs.

    Returns:
        The exit code, negative for a signal's.
    """
    environ = {**os.environ, **choose_rendezvous(place)}
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        environ.pop(name, None)
    code = -signal.SIGTERM.value
    try:
        if parent:
            environ |= parent.begin(place)
        with subprocess.Popen([sys.executable, "-m", "pyclassify", *command], env=environ) as child:
            code = wait_for_child(child)
    finally:
        if parent:
            parent.close(code)
    return code


Rows = Mapping[int, Run | None]


class ParentRun:
    """A parent run that is being made: the one of `mlflow run`, or a new one.

    Args:
        seeds: The seeds, in the order of training.
        chosen: What options and configuration files set, of which the logger's settings count.
    """

    def __init__(self, seeds: Sequence[int], chosen: Mapping[str, Any]) -> None:
        logger = stats.find_logger(chosen)
        if uri := logger.get("tracking_uri"):
            mlflow.set_tracking_uri(uri)
        name = logger.get("run_name")
        started = run.start_run(
            logger.get("experiment_name"),
            f"{name}-{len(seeds)}seeds" if name else None,
            {stats.SEEDS_TAG: f"{seeds[0]} to {seeds[-1]}"},
            save_dir=logger.get("save_dir") or "runs",
        ).read()
        self._seeds, self._ids = seeds, [""] * len(seeds)
        self._info, self._client = started.info, MlflowClient()
        self._origin = {k: v for k, v in started.data.tags.items() if k.startswith(_ORIGIN)}
        self._children: list[Run] = []
        self._logged: dict[str, float] = {}
        self._lock = threading.Lock()  # a stop is recorded by another thread
        self._attempt(self._recall)
        self._attempt(
            parameters.log_parameters, self._client, self._info.run_id, {"seeds": str(len(seeds))}
        )
        run.call_after_end(self._finish)

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
        return run.make_run_environment(made)

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
        return in_terminal(self._info, self._rows())

    def _rows(self) -> Rows:
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
            found = stats.summarize_seeds(self._children)
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
            if name := stats.name_parent(self._children, len(self._seeds)):
                run.name_run(name)

    def _describe(self) -> None:
        """Write the run's description, unless a person wrote one."""
        there = self._client.get_run(self._info.run_id).data.tags.get(MLFLOW_RUN_NOTE, "")
        ours, theirs = description.unseal(there)
        if ours or not there:
            note = description.seal(in_markdown(self._info, self._rows()))
            self._client.set_tag(self._info.run_id, MLFLOW_RUN_NOTE, note + theirs)

    def _finish(self) -> None:
        self._attempt(self._record)
        self._attempt(self._inherit)

    def _inherit(self) -> None:
        """Take over what the children agree on: parameters of ours, and the data."""
        children = [child for child in self._children if child.data.params]
        if children:
            agreed = stats.agree([child.data.params for child in children])
            parameters.log_parameters(self._client, self._info.run_id, agreed)
            if data := children[0].inputs:
                self._client.log_inputs(self._info.run_id, data.dataset_inputs)

    def _attempt(self, act: Callable[..., None], *args: Any) -> None:
        """Do what the seeds can go on without."""
        try:
            act(*args)
        except Exception as error:  # whatever the server has to say
            capsule.warn_masked(
                f"the seeds' parent run {self._info.run_id} is not up to date ({error})"
            )


def list_child_runs(client: MlflowClient, parent: Run) -> list[Run]:
    """List the runs under a parent run of seeds, the first made first; none under other runs."""
    return _search(client, parent.info) if stats.SEEDS_TAG in parent.data.tags else []


def _search(client: MlflowClient, parent: RunInfo) -> list[Run]:
    condition = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.run_id}'"
    order = ["attributes.start_time ASC"]
    return list(client.search_runs([parent.experiment_id], condition, order_by=order))


def _seed_of(child: Run) -> int | None:
    seed = child.data.tags.get(_SEED) or child.data.params.get("seed_everything", "")
    return int(seed) if seed.isdigit() else None


"""Each seed and its run, unless that is still to come."""


def in_terminal(parent: RunInfo, rows: Rows) -> list[str]:
    """Say what seeds came to, in lines for a terminal."""
    children = list(filter(None, rows.values()))
    metric = stats.choose_metric(children)
    lines = {}
    for seed, child in rows.items():
        if child:
            told = f"{child.info.run_id[:8]}  {child.info.status:8}  {_value(child, metric)}"
            lines[f"seed {seed}"] = told.rstrip()
    lines[metric] = stats.format_mean_and_deviation(stats.read_metric(children, metric))
    uri, experiment = mlflow.get_tracking_uri(), parent.experiment_id
    lines |= {"run": parent.run_id, "next": format_fast_ui_command(uri)}
    links = ["", "These runs:", link_run(uri, experiment, parent.run_id)]
    links += ["", "Recipes, each the mean of its runs:"]
    links.append(link_runs(uri, experiment, RECIPE_VIEW.key))
    return [*(f"{key:14} {line}" for key, line in lines.items()), *links]


def in_markdown(parent: RunInfo, rows: Rows) -> str:
    """Say it with a table of the seeds, for the run's page."""
    children = list(filter(None, rows.values()))
    metric = stats.choose_metric(children)
    title, page = metric.replace("_", " "), f"#/experiments/{parent.experiment_id}/runs"
    said = stats.format_mean_and_deviation(stats.read_metric(children, metric))
    lines = [f"**{title}: {said}**", "", f"| seed | run | status | {title} |", "|--|--|--|--|"]
    for seed, child in rows.items():
        link = status = value = ""
        if child:
            name = escape_markdown(child.info.run_name)
            link = f"[{name}]({page}/{child.info.run_id}?{WORKFLOW_QUERY})"
            status, value = child.info.status, _value(child, metric)
        lines.append(f"| {seed} | {link} | {status} | {value} |")
    return "\n".join(lines)


def _value(run: Run, metric: str) -> str:
    value = run.data.metrics.get(metric)
    return "" if value is None else f"{value:.4f}"
