"""Train a recipe with several seeds (`--seeds 5`), so that recipes are compared beyond chance.

Each seed is trained by a process of its own, one after another, as a child run of one parent run,
which logs the seed statistics: mean, standard deviation and confidence interval of each metric.
With several processes of a launcher (srun, torchrun), each process starts its part of every
training, and only the first one makes runs. Nothing here loads torch, and only the process that
makes runs loads MLflow and SciPy.

Training resumes if it is started again with the same parent run: finished seeds are skipped,
interrupted ones resume, and missing ones are trained.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyclassify.utils import launcher
from pyclassify.utils.options import (
    TRAINING_COMMANDS,
    find_logger_settings,
    has_seeds_option,
    list_settings,
    only_shows,
    split_options,
)
from pyclassify.utils.signals import wait_for_child

if TYPE_CHECKING:
    from pyclassify.runs.parent_run import ParentRun

_SEED_OPTIONS = ("--seed", "--seed_everything")


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
    return 1 if only_shows(argv) else int(value), drop_options(argv, "--seeds")


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
    parent = _start_parent(seeds, config) if launcher.is_rank_zero() else None
    failed: list[int] = []
    try:
        for index in choose_seed_indices(parent, run_id, config, count):
            command = [*drop_options(argv, *_SEED_OPTIONS), "--seed", str(seeds[index])]
            exit_code = _train_seed(command, index, parent)
            if exit_code == launcher.REQUEUE_EXIT_CODE:
                raise KeyboardInterrupt("SIGUSR1")
            if exit_code != 0 or (parent and parent.has_failed(index)):
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


def _start_parent(seeds: Sequence[int], config: Mapping[str, Any]) -> "ParentRun":
    from pyclassify.runs.parent_run import ParentRun  # loads MLflow and SciPy

    return ParentRun(seeds, config)


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
