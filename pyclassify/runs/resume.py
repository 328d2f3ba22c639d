"""`pyclassify resume RUN_ID`: go on with a run that was stopped, as the same run.

No torch here: the training is a process of its own, on the code and configuration of the run's
capsule, which finds the run's newest checkpoint by the run's id.
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
from typing import Any

import yaml

from pyclassify.runs import stats
from pyclassify.runs.restore import (
    download_capsule,
    find_code,
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
from pyclassify.spool.server import configure_mlflow
from pyclassify.tracking import capsule
from pyclassify.tracking.run import find_spool_root
from pyclassify.utils import options
from pyclassify.utils.masking import MASK, mask_command
from pyclassify.utils.options import SHORT_OPTIONS, CommandParser, split_options
from pyclassify.utils.repository import check_out_worktree, find_root

# A tag: the options that differ from the capsule's. Parameters of MLflow's can't be changed.
RESUMED_WITH = "pyclassify.resumed_with"
_EPOCHS = SHORT_OPTIONS["max_epochs"]
_PROCESSES = (SHORT_OPTIONS["devices"], SHORT_OPTIONS["num_nodes"])


def resume(given: list[str]) -> int:
    """Go on with a run.

    Args:
        given: The run's id, and options.

    Returns:
        The exit code: the training's, or 128 and the signal that ended it.

    Raises:
        ValueError: There is no such run, or it can't go on; one line that says why.
        OSError: git can't restore its code.
    """
    asked, options = parse(given)
    configure_mlflow()
    client, run = look_up_run(asked.run)
    source = find_source(client, run)
    with (
        interrupt_on_stop_signals(),
        tempfile.TemporaryDirectory(prefix="pyclassify-resume-") as folder,
    ):
        kept = download_capsule(client, source.info.run_id, Path(folder))
        facts = json.loads((kept / "capsule.json").read_text())
        before = recall(run)
        config = prepare_config(
            kept, facts, [*before, *options], saves_in=Path(facts["started_in"])
        )
        stopped = Stopped(run, source, facts, config, before)
        check_state(stopped, options)
        check_options(stopped, options, asked.inexact)
        check_folder(stopped)
        words = [*before, *options, *(["--resume.inexact=true"] if asked.inexact else [])]
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        command = [facts["verb"], "--config", str(path), *words, *seeds_of(stopped)]
        with code_of(stopped, kept, Path(folder), asked.inexact) as (started_in, root):
            say(stopped)
            if options:
                told = shlex.join(mask_command([*before, *options]))
                client.set_tag(run.info.run_id, RESUMED_WITH, told)
            exit_code = run_training(
                command, started_in, make_environment(run.info, facts, root, folder)
            )
    if exit_code < 0:  # it was gone before it could say so
        client.set_terminated(run.info.run_id, "KILLED")
    return exit_code if exit_code >= 0 else 128 - exit_code


def parse(given: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line: what is for this verb, and the options of the training."""
    parser = CommandParser(
        prog="pyclassify resume",
        description="Go on with a run that was stopped, as the same run, from its newest "
        "checkpoint, with the code and the configuration that it was started with.",
        epilog="An option of `pyclassify train` beside --max_epochs makes it another training, "
        "and needs --inexact.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN_ID", help="the run's id")
    parser.add_argument("--max_epochs", metavar="N", type=int, help="train for so many in all")
    parser.add_argument(
        "--inexact", action="store_true", help="go on though the training may not be the same"
    )
    asked, more = parser.parse_known_args(given)
    options = [f"--max_epochs={asked.max_epochs}"] if asked.max_epochs is not None else []
    for word, *value in split_options(more):
        if not word.startswith("--") or word.partition("=")[0] == "--config":
            raise ValueError(
                f"resume takes one run's id and options, and was given {word} too; "
                "pyclassify resume RUN_ID --max_epochs 20"
            )
        options.append("=".join([word, *value]))
    return asked, options


@dataclass(frozen=True)
class Stopped:
    """A run that is to go on.

    Args:
        run: The run.
        source: The run that has the capsule: itself, or one of its seeds.
        facts: What is in capsule.json.
        config: The configuration.
        options: The options that differ from it.
    """

    run: Any
    source: Any
    facts: dict[str, Any]
    config: dict[str, Any]
    options: list[str]

    @property
    def is_parent(self) -> bool:
        """Whether it is the parent of several seeds."""
        return self.run is not self.source

    @property
    def saved(self) -> Path:
        """The folder that runs are saved in."""
        return find_save_dir(self.config, Path(self.facts["started_in"]))

    @property
    def folder(self) -> Path:
        """The folder of the run's checkpoints to go on from."""
        info = self.run.info
        return self.saved / info.experiment_id / info.run_id / "checkpoints" / "resume"

    def setting(self, name: str) -> Any:
        """What a setting of the trainer was in the last attempt."""
        found = self.config["trainer"].get(name.rpartition(".")[2])
        return next((value for key, value in read_settings(self.options) if key == name), found)


def seeds_of(stopped: Stopped) -> list[str]:
    """The options that make a parent's seeds out of the configuration of one."""
    if not stopped.is_parent:
        return []
    first, _, last = stopped.run.data.tags[stats.SEEDS_TAG].partition(" to ")
    return [f"--seeds={int(last) - int(first) + 1}", f"--seed={first}"]


@contextmanager
def code_of(
    stopped: Stopped, kept: Path, folder: Path, inexact: bool
) -> Iterator[tuple[Path, Path]]:
    """Have the run's code in place.

    Yields:
        The folder to start in, and the root of the repository that its code is of.

    Raises:
        ValueError: It can't be found; why, and the next move.
    """
    run_id, known = stopped.source.info.run_id, stopped.facts["git"]
    started_in = Path(stopped.facts["started_in"])
    if "missing" in known:
        if stopped.facts["package"] != capsule.digest_package() and not inexact:
            raise ValueError(
                f"the code of run {run_id} was in no commit ({known['missing']}), and pyclassify "
                "has changed since; --inexact goes on with the code of today"
            )
        yield started_in, started_in
        return
    # A run that is started in no repository has the code of this package's.
    places = (started_in, Path.cwd(), capsule.PACKAGE_FOLDER)
    near = next((each for each in places if each.is_dir() and find_root(each)), Path.cwd())
    root, code = find_code(kept, known, run_id, near)
    with check_out_worktree(root, code, folder / "tree") as there:
        yield there, root


def say(stopped: Stopped) -> None:
    """Tell from where it goes on, and what may keep it from being exact."""
    run_id, folder = stopped.run.info.run_id, stopped.folder
    steps = sorted(path.stem for path in folder.glob("step=*.ckpt"))
    if steps:
        sys.stderr.write(f"run {run_id} goes on from {folder / steps[-1]}.ckpt\n")
    elif not stopped.is_parent:
        sys.stderr.write(
            f"run {run_id} has no checkpoint to go on from in {folder}: it starts from the "
            "beginning\n"
        )
    threads, now = stopped.facts["hardware"]["threads"], os.environ.get("OMP_NUM_THREADS")
    if now and now != str(threads):
        sys.stderr.write(
            f"warning: it was trained with {threads} threads and OMP_NUM_THREADS is {now}, so the "
            "training may not be the same to the last bit\n"
        )


def read_settings(options: list[str]) -> Iterator[tuple[str, str]]:
    """The settings that options have, NAME=VALUE each, the last first."""
    for option in reversed(options):
        yield parse_option_name(option), option.partition("=")[2]


def recall(run: Any) -> list[str]:
    """The options that the run's last attempt had, but for credentials."""
    told = shlex.split(run.data.tags.get(RESUMED_WITH, ""))
    return [option for option in told if MASK not in option]


def find_source(client: Any, run: Any) -> Any:
    """Find the run whose capsule tells how a run was started: its own, or that of a seed of it."""
    from pyclassify.runs.seeds import list_child_runs

    if stats.SEEDS_TAG not in run.data.tags:
        return run
    for child in list_child_runs(client, run):
        if client.list_artifacts(child.info.run_id, capsule.CAPSULE_FOLDER):
            return child
    raise ValueError(
        f"run {run.info.run_id} is the parent of seeds of which none got as far as to keep its "
        "capsule, so there is nothing to go on with; start it anew"
    )


def find_save_dir(config: dict[str, Any], started_in: Path) -> Path:
    """Find the folder that a configuration has its runs saved in."""
    for arguments in list_saving_loggers(config):
        return Path(make_absolute(arguments["save_dir"], started_in))
    return started_in / "runs"


def check_state(stopped: Stopped, options: list[str]) -> None:
    """Refuse a run that is another's to go on with, or has nothing to go on with.

    Raises:
        ValueError: Why, and the next move.
    """
    run_id, tags = stopped.run.info.run_id, stopped.run.data.tags
    if stopped.facts["verb"] not in ("train", "fit"):
        raise ValueError(
            f"run {run_id} is of `pyclassify {stopped.facts['verb']}`, which trains nothing; "
            f"`pyclassify rerun {run_id}` does it again"
        )
    if "slurm_folder" in tags:
        raise ValueError(
            f"run {run_id} is of the backend slurm; `pyclassify slurm resume {run_id}` submits its "
            "job again, which goes on with it"
        )
    if holder := lock.find_holder(find_spool_root(stopped.saved) / run_id):
        raise ValueError(f"run {run_id} goes on in {holder}; let it, or stop it first")
    epochs = dict(read_settings(options)).get(_EPOCHS)
    had = stopped.setting(_EPOCHS)
    finished = stopped.run.info.status == "FINISHED"
    if finished and (epochs is None or int(epochs) <= int(had)):
        raise ValueError(
            f"run {run_id} is FINISHED, after {had} epochs; give more to go on with it, "
            f"--max_epochs {2 * int(had)}, or make it again by `pyclassify rerun {run_id}`"
        )


def check_options(stopped: Stopped, options: list[str], inexact: bool) -> None:
    """Refuse what makes it another training, unless that is asked for.

    Raises:
        ValueError: Why, and the next move.
    """
    for name, value in {} if inexact else dict(read_settings(options)).items():
        if name in _PROCESSES and str(stopped.setting(name)) == value:
            continue
        processes = stopped.facts["hardware"].get("processes")
        if name in _PROCESSES:
            raise ValueError(
                f"run {stopped.run.info.run_id} was trained by {processes} processes, and with "
                f"--{name} {value} it can't be the same training; --inexact goes on all the same, "
                "with the epoch that it was in from its start"
            )
        if name != _EPOCHS and not was_masked(stopped.config, name):
            raise ValueError(
                f"--{name} makes it another training than that of run {stopped.run.info.run_id}; "
                "leave it out, or give --inexact to go on all the same"
            )


def was_masked(config: dict[str, Any], name: str) -> bool:
    """Whether a setting lost its credentials in the capsule, and must be given."""

    return any(name == key and MASK in value for key, value in options.format_options(config))


def check_folder(stopped: Stopped) -> None:
    """Refuse a run that this machine has not the files of.

    Raises:
        ValueError: Why, and the next move.
    """
    run_id, facts, here = stopped.run.info.run_id, stopped.facts, socket.gethostname()
    if not stopped.saved.is_dir():
        there = facts.get("host") or "the machine that it ran on"
        where = f"on {there}, and this is {here}" if there != here else "and are gone"
        raise ValueError(
            f"the checkpoints of run {run_id} were in {stopped.saved} {where}; go on where they "
            f"are, or make the run again by `pyclassify rerun {run_id}`"
        )
