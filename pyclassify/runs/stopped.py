"""A run that was stopped: what it was started with, and what keeps it from going on."""

import shlex
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyclassify.runs import spread
from pyclassify.runs.restore import make_absolute, saving_loggers, spell_name
from pyclassify.spool import lock
from pyclassify.tracking import capsule
from pyclassify.tracking.run import spool_root
from pyclassify.utils import options
from pyclassify.utils.masking import MASK
from pyclassify.utils.options import SHORT_OPTIONS

# A tag: the options that differ from the capsule's. Parameters of MLflow's can't be changed.
RESUMED_WITH = "pyclassify.resumed_with"

_EPOCHS = SHORT_OPTIONS["max_epochs"]
_PROCESSES = (SHORT_OPTIONS["devices"], SHORT_OPTIONS["num_nodes"])


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


def read_settings(options: list[str]) -> Iterator[tuple[str, str]]:
    """The settings that options have, NAME=VALUE each, the last first."""
    for option in reversed(options):
        yield spell_name(option), option.partition("=")[2]


def recall(run: Any) -> list[str]:
    """The options that the run's last attempt had, but for credentials."""
    told = shlex.split(run.data.tags.get(RESUMED_WITH, ""))
    return [option for option in told if MASK not in option]


def find_source(client: Any, run: Any) -> Any:
    """Find the run whose capsule tells how a run was started: its own, or that of a seed of it."""
    from pyclassify.runs.parent import list_children

    if spread.SEEDS not in run.data.tags:
        return run
    for child in list_children(client, run):
        if client.list_artifacts(child.info.run_id, capsule.FOLDER):
            return child
    raise ValueError(
        f"run {run.info.run_id} is the parent of seeds of which none got as far as to keep its "
        "capsule, so there is nothing to go on with; start it anew"
    )


def find_save_dir(config: dict[str, Any], started_in: Path) -> Path:
    """Find the folder that a configuration has its runs saved in."""
    for arguments in saving_loggers(config):
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
    if holder := lock.find_holder(spool_root(stopped.saved) / run_id):
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

    return any(name == key and MASK in value for key, value in options.flatten_config(config))


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
