"""`pyclassify resume RUN_ID`: resume an interrupted run, as the same run, from its last checkpoint.

The training is a separate process, with the code and configuration of the run's capsule; it finds
the checkpoint by the run's ID. Before it starts, the checks here refuse a run that can't be
resumed, or not exactly. MLflow is imported after the command line is parsed, so that `--help` is
fast; nothing here loads torch.
"""

import argparse
import json
import os
import shlex
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pyclassify.runs.restore import (
    download_capsule,
    find_code,
    has_capsule,
    interrupt_on_stop_signals,
    list_saving_loggers,
    look_up_run,
    make_absolute,
    make_environment,
    parse_option_name,
    prepare_config,
    run_training,
)
from pyclassify.spool import lock
from pyclassify.tracking.capsule import PACKAGE_FOLDER, digest_package
from pyclassify.tracking.run import find_spool_root
from pyclassify.utils.git import find_root
from pyclassify.utils.launcher import SLURM_FOLDER_TAG
from pyclassify.utils.masking import MASK, mask_command
from pyclassify.utils.mlflow_settings import configure_mlflow
from pyclassify.utils.options import SHORT_OPTIONS, CommandParser, format_options, split_options
from pyclassify.utils.repository import check_out_code

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# The tag with the options that differ from the capsule's: MLflow's parameters can't be changed.
_RESUMED_WITH_TAG = "pyclassify.resumed_with"
_EPOCHS = SHORT_OPTIONS["max_epochs"]
_PROCESSES = (SHORT_OPTIONS["devices"], SHORT_OPTIONS["num_nodes"])


def resume(argv: list[str]) -> int:
    """Resume a run.

    Args:
        argv: The run's ID, and options.

    Returns:
        The exit code of the training, or 128 plus the number of the signal that ended it.

    Raises:
        UsageError: The command line is invalid.
        ValueError: The run does not exist, or can't be resumed.
        OSError: git can't restore the run's code.
    """
    args, options = _parse_args(argv)
    configure_mlflow()
    client, run = look_up_run(args.run)
    source = _find_source(client, run)
    with (
        interrupt_on_stop_signals(),
        tempfile.TemporaryDirectory(prefix="pyclassify-resume-") as folder,
    ):
        capsule = download_capsule(client, source.info.run_id, Path(folder))
        facts = json.loads((capsule / "capsule.json").read_text())
        previous = _read_previous_options(run)
        all_options = [*previous, *options]
        config = prepare_config(capsule, facts, all_options, save_root=Path(facts["started_in"]))
        interrupted = _InterruptedRun(run, source, facts, config, previous)
        _check_state(interrupted, options)
        if not args.allow_inexact:
            _check_options(interrupted, options)
        _check_folder(interrupted)
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        command = [facts["subcommand"], "--config", str(path), *all_options]
        command += ["--resume.allow_inexact=true"] if args.allow_inexact else []
        command += _list_seed_options(interrupted)
        with _restore_code(interrupted, capsule, Path(folder), args.allow_inexact) as (start, root):
            _report_start(interrupted)
            if options:
                masked = shlex.join(mask_command(all_options))
                client.set_tag(run.info.run_id, _RESUMED_WITH_TAG, masked)
            environ = make_environment(run.info, facts, root, folder)
            exit_code = run_training(command, start, environ)
    if exit_code < 0:  # the process could not end the run
        client.set_terminated(run.info.run_id, "KILLED")
    return exit_code if exit_code >= 0 else 128 - exit_code


def _parse_args(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command's own options; the others, NAME=VALUE each, are those of the training."""
    parser = CommandParser(
        "pyclassify resume",
        description="Resume an interrupted run, as the same run, from its newest checkpoint, with "
        "the code and the configuration of its capsule.",
        epilog="Other options of `pyclassify train` change the training, and need --allow-inexact.",
        examples=[
            "pyclassify resume 3f2a91c0",
            "pyclassify resume 3f2a91c0 --max_epochs 20",
            "pyclassify resume 3f2a91c0 --devices 2 --allow-inexact",
        ],
    )
    parser.add_argument("run", metavar="RUN_ID", help="give the run's ID, or its first 8 digits")
    parser.add_argument(
        "--max_epochs",
        metavar="N",
        type=int,
        help="train for N epochs in total (default: as many as before)",
    )
    parser.add_argument(
        "--allow-inexact",
        action="store_true",
        help="resume even if the training would differ from an uninterrupted one",
    )
    args, others = parser.parse_known_args(argv)
    options = [f"--max_epochs={args.max_epochs}"] if args.max_epochs is not None else []
    for word, *value in split_options(others):
        if not word.startswith("--") or word.partition("=")[0] == "--config":
            parser.error(
                f"unexpected argument {word!r} (expected one run's ID and options, such as "
                "pyclassify resume RUN_ID --max_epochs 20)"
            )
        options.append("=".join([word, *value]))
    return args, options


def _find_source(client: "MlflowClient", run: "Run") -> "Run":
    """Find the run with the capsule: the run itself, or one of its seeds."""
    from pyclassify.runs.parent_run import list_child_runs
    from pyclassify.runs.stats import SEEDS_TAG

    if SEEDS_TAG not in run.data.tags:
        return run
    for child in list_child_runs(client, run):
        if has_capsule(client, child.info.run_id):
            return child
    raise ValueError(
        f"run {run.info.run_id} is the parent of seeds, none of which logged its capsule, so there "
        "is nothing to resume; start the training again"
    )


def _read_previous_options(run: "Run") -> list[str]:
    """Read the options that the run was last resumed with, except masked ones."""
    options = shlex.split(run.data.tags.get(_RESUMED_WITH_TAG, ""))
    return [option for option in options if MASK not in option]


def _parse_settings(options: list[str]) -> dict[str, str]:
    """Parse options, NAME=VALUE each, to settings; the last value of each."""
    return {parse_option_name(option): option.partition("=")[2] for option in options}


@dataclass(frozen=True)
class _InterruptedRun:
    """A run to resume.

    Args:
        run: The run.
        source: The run with the capsule: the run itself, or one of its seeds.
        facts: The content of capsule.json.
        config: The configuration.
        previous_options: The options that the run was last resumed with.
    """

    run: "Run"
    source: "Run"
    facts: dict[str, Any]
    config: dict[str, Any]
    previous_options: list[str]

    @property
    def is_parent(self) -> bool:
        """Whether the run is the parent of several seeds."""
        return self.run is not self.source

    @property
    def save_dir(self) -> Path:
        """The folder that runs are saved in."""
        started_in = Path(self.facts["started_in"])
        for logger in list_saving_loggers(self.config):
            return Path(make_absolute(logger["save_dir"], started_in))
        return started_in / "runs"

    @property
    def checkpoint_folder(self) -> Path:
        """The folder of the checkpoints to resume from."""
        info = self.run.info
        return self.save_dir / info.experiment_id / info.run_id / "checkpoints" / "resume"

    def get_trainer_setting(self, name: str) -> Any:
        """Return a setting of the trainer, by its dotted name, in the last attempt."""
        configured = self.config["trainer"].get(name.rpartition(".")[2])
        return _parse_settings(self.previous_options).get(name, configured)


def _check_state(interrupted: _InterruptedRun, options: list[str]) -> None:
    """Raise ValueError if the run can't be resumed, or not by this command."""
    run_id, tags = interrupted.run.info.run_id, interrupted.run.data.tags
    if (subcommand := interrupted.facts["subcommand"]) not in ("train", "fit"):
        raise ValueError(
            f"run {run_id} is of `pyclassify {subcommand}`, which does not train; "
            f"repeat it by `pyclassify rerun {run_id}`"
        )
    if SLURM_FOLDER_TAG in tags:
        raise ValueError(
            f"run {run_id} is a SLURM job; resume it by `pyclassify slurm resume {run_id}`, which "
            "submits the job again"
        )
    if holder := lock.find_holder(find_spool_root(interrupted.save_dir) / run_id):
        raise ValueError(
            f"run {run_id} is still running in {holder}; wait for it, or stop it first"
        )
    max_epochs = _parse_settings(options).get(_EPOCHS)
    trained = interrupted.get_trainer_setting(_EPOCHS)
    finished = interrupted.run.info.status == "FINISHED"
    if finished and (max_epochs is None or int(max_epochs) <= int(trained)):
        raise ValueError(
            f"run {run_id} is FINISHED after {trained} epochs; train it for longer, such as "
            f"--max_epochs {2 * int(trained)}, or repeat it by `pyclassify rerun {run_id}`"
        )


def _check_options(interrupted: _InterruptedRun, options: list[str]) -> None:
    """Raise ValueError if an option changes the training."""
    run_id = interrupted.run.info.run_id
    for name, value in _parse_settings(options).items():
        if name in _PROCESSES and str(interrupted.get_trainer_setting(name)) == value:
            continue
        if name in _PROCESSES:
            processes = interrupted.facts["hardware"].get("processes")
            raise ValueError(
                f"run {run_id} was trained by {processes} processes, and can't be resumed exactly "
                f"with --{name} {value}; leave it out, or give --allow-inexact to resume "
                "after the same fraction of the epoch"
            )
        if name != _EPOCHS and not _is_masked(interrupted.config, name):
            raise ValueError(
                f"--{name} changes the training of run {run_id}; leave it out, or give "
                "--allow-inexact to resume with the change"
            )


def _is_masked(config: dict[str, Any], name: str) -> bool:
    """Whether the credentials of a setting are masked in the capsule, so that it must be given."""
    return any(name == key and MASK in value for key, value in format_options(config))


def _check_folder(interrupted: _InterruptedRun) -> None:
    """Raise ValueError if this machine lacks the run's files."""
    if interrupted.save_dir.is_dir():
        return
    run_id, here = interrupted.run.info.run_id, socket.gethostname()
    there = interrupted.facts.get("host") or "the machine that it ran on"
    rerun = f"repeat it by `pyclassify rerun {run_id}`"
    if there == here:
        raise ValueError(
            f"run {run_id} has no checkpoints: {interrupted.save_dir} does not exist; {rerun}"
        )
    raise ValueError(
        f"the checkpoints of run {run_id} are in {interrupted.save_dir} on {there}, and this is "
        f"{here}; resume it there, or {rerun}"
    )


def _list_seed_options(interrupted: _InterruptedRun) -> list[str]:
    """List the options that turn the configuration of one seed into that of the parent."""
    if not interrupted.is_parent:
        return []
    from pyclassify.runs.stats import SEEDS_TAG

    first, _, last = interrupted.run.data.tags[SEEDS_TAG].partition(" to ")
    return [f"--seeds={int(last) - int(first) + 1}", f"--seed={first}"]


@contextmanager
def _restore_code(
    interrupted: _InterruptedRun, capsule: Path, folder: Path, allow_inexact: bool
) -> Iterator[tuple[Path, Path]]:
    """Restore the run's code, and yield the folder to start in and the root of the repository.

    Raises:
        ValueError: The code is not found.
    """
    run_id, git_facts = interrupted.source.info.run_id, interrupted.facts["git"]
    started_in = Path(interrupted.facts["started_in"])
    if "missing" in git_facts:
        if interrupted.facts["package"] != digest_package() and not allow_inexact:
            raise ValueError(
                f"the code of run {run_id} was not in a git commit ({git_facts['missing']}), and "
                "pyclassify has changed since; give --allow-inexact to resume with the current code"
            )
        yield started_in, started_in
        return
    # A run that was started outside of any repository has the code of this package's repository.
    candidates = (started_in, Path.cwd(), PACKAGE_FOLDER)
    repositories = (path for path in candidates if path.is_dir() and find_root(path))
    root, code = find_code(capsule, git_facts, run_id, next(repositories, Path.cwd()))
    with check_out_code(root, code, folder / "tree") as worktree:
        yield worktree, root


def _report_start(interrupted: _InterruptedRun) -> None:
    """Print where the run resumes from, and warn if the training may not be exact."""
    run_id, folder = interrupted.run.info.run_id, interrupted.checkpoint_folder
    checkpoints = sorted(path.stem for path in folder.glob("step=*.ckpt"))
    if checkpoints:
        sys.stderr.write(f"run {run_id} resumes from {folder / checkpoints[-1]}.ckpt\n")
    elif not interrupted.is_parent:
        sys.stderr.write(
            f"run {run_id} has no checkpoint in {folder}, so it starts from the beginning\n"
        )
    threads, now = interrupted.facts["hardware"]["threads"], os.environ.get("OMP_NUM_THREADS")
    if now and now != str(threads):
        sys.stderr.write(
            f"warning: the run was trained with {threads} threads and OMP_NUM_THREADS is {now}, so "
            f"the result may not be bitwise identical; set OMP_NUM_THREADS={threads}\n"
        )
