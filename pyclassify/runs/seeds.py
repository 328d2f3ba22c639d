"""Train a recipe with several seeds (`--seeds 5`), so that recipes can be compared statistically.

Each seed is trained by its own process, one after another, as a child run of one parent run, which
logs the seed statistics: mean, standard deviation and confidence interval of each metric. With
several processes of a launcher (srun, torchrun), each process starts its rank of every training,
and only rank zero creates runs. Nothing here loads torch, and only the process that creates runs
loads MLflow and SciPy.

Training resumes if it is restarted with the same parent run: finished seeds are skipped,
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
    USAGE_EXIT_CODE,
    UsageError,
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
        UsageError: The value is not a whole number >= 1, or the command does not train.
    """
    options = [*split_options(argv)]
    found = [option for option in options if has_seeds_option(option[:1])]
    if not found:
        return 1, argv
    name, equals, value = found[-1][0].partition("=")
    if not equals:
        value = found[-1][1] if len(found[-1]) > 1 else ""
    if not re.fullmatch(r"0*[1-9]\d*", value, re.ASCII):
        raise UsageError(
            f"invalid seeds: {value or 'no value'} (expected a whole number >= 1, such as {name} 5)"
        )
    command = next((option[0] for option in options if not option[0].startswith("-")), None)
    if command in TRAINING_COMMANDS and command not in ("train", "fit"):
        raise UsageError(
            f"{name} is an option of train and fit, and {command} does not train; leave it out"
        )
    return 1 if only_shows(argv) else int(value), drop_options(argv, "--seeds")


def drop_options(argv: list[str], *names: str) -> list[str]:
    """Drop options from a command line, with their values."""
    rest = (option for option in split_options(argv) if option[0].partition("=")[0] not in names)
    return [word for option in rest for word in option]


def train_seeds(argv: list[str], count: int) -> None:
    """Train with each seed, and write the seed report to standard output.

    After a failed seed, the others are still trained, unless the first one failed before its first
    training step (an option is misspelled, data are missing): the others would fail too.

    Args:
        argv: The command line without --seeds, as LightningCLI can parse it.
        count: The number of seeds.

    Raises:
        UsageError: The first seed is not a number, the logger is disabled, a configuration file
            can't be read, or the first seed was refused as a usage error.
        ValueError: This process can't reach the tracking server.
        ChildProcessError: A seed failed.
        KeyboardInterrupt: A seed saved a checkpoint and exited, to be requeued.
    """
    seeds, config = list_seeds(argv, count), dict(list_settings(argv))
    _check_logging(config, count)
    run_id = os.environ.get("MLFLOW_RUN_ID")  # MLflow removes it when the run starts
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
                _check_failure(seeds, index, parent, exit_code)
    finally:
        if parent:
            sys.stdout.write("\n" + "".join(f"{line}\n" for line in parent.format_report()))
    # Only rank zero fails: if another rank failed first, the launcher would stop rank zero before
    # it has reported.
    if failed and parent:
        which = f"seed{'s' if len(failed) > 1 else ''} {', '.join(map(str, failed))}"
        raise ChildProcessError(f"{which} of {count} failed; see the errors above")


def list_seeds(argv: list[str], count: int) -> range:
    """List the seeds: from the one that options or configuration files set, or from 0.

    Raises:
        UsageError: The first seed is not a number, or so large that the last one exceeds 32 bits,
            or a configuration file can't be read.
    """
    first: Any = 0
    for name, value in list_settings(argv):
        if f"--{name}" in _SEED_OPTIONS:
            first = value
    if not re.fullmatch(r"\d+", str(first), re.ASCII) or int(first) + count > 2**32:
        raise UsageError(
            f"invalid seed: {first} (expected a whole number from 0 to {2**32 - count}, the first "
            f"of {count} seeds); give it by --seed"
        )
    return range(int(first), int(first) + count)


def _start_parent(seeds: Sequence[int], config: Mapping[str, Any]) -> "ParentRun":
    from pyclassify.runs.parent_run import ParentRun  # loads MLflow and SciPy

    return ParentRun(seeds, config)


def _check_logging(config: Mapping[str, Any], count: int) -> None:
    if str(config.get("trainer.logger")).lower() == "false":
        raise UsageError(
            f"trainer.logger is false, and the statistics of {count} seeds are logged to runs; "
            "leave out trainer.logger or --seeds"
        )
    if os.environ.get("MLFLOW_TRACKING_URI", "").startswith("spool:"):
        raise ValueError(
            f"--seeds {count} needs the tracking server, to create a run for each seed, and this "
            "process can't reach it; train one seed per job, or give the nodes access to the server"
        )


def _check_failure(
    seeds: Sequence[int], index: int, parent: "ParentRun | None", exit_code: int
) -> None:
    """Raise an error if the first seed failed before its first training step."""
    if index == 0 and parent and launcher.is_single_process() and parent.failed_at_start():
        is_usage_error = exit_code == USAGE_EXIT_CODE
        raise (UsageError if is_usage_error else ChildProcessError)(
            f"seed {seeds[0]} failed before its first training step, so the other "
            f"{len(seeds) - 1} were not trained; see its error above"
        )


def choose_seed_indices(
    parent: "ParentRun | None", run_id: str | None, config: Mapping[str, Any], count: int
) -> list[int]:
    """Choose the seeds to train, by index: all except those that are finished.

    Args:
        parent: The parent run, on rank zero; the other ranks wait for its choice.
        run_id: The id of the parent run, if the run existed before.
        config: The dotted settings of options and configuration files.
        count: The number of seeds.
    """
    if run_id is None:  # a new parent run, without child runs
        return [*range(count)]
    if launcher.is_single_process():
        return parent.list_unfinished() if parent else [*range(count)]
    folder = Path(find_logger_settings(config).get("save_dir") or "runs", "seeds", run_id)
    if parent:
        launcher.publish(folder, parent.list_unfinished())
    indices: list[int] = launcher.wait_for_value(folder)
    return indices


def _train_seed(command: list[str], index: int, parent: "ParentRun | None") -> int:
    """Train with one seed in a child process, and forward stop signals to it.

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
