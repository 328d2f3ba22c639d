"""`--seeds 5`: train a recipe with five seeds, so that two recipes are compared by more than luck.

They are trained one after another, each by a process of its own, as runs under one parent run. No
torch here. Of processes that a launcher started (srun, torchrun) each starts its own share of every
training, and only the first of them makes runs.

Started again under the same parent run, they go on where they were: a seed that finished is left,
one that was stopped goes on, and one that is missing is trained.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from pyclassify.cli.options import spell_out
from pyclassify.utils import launcher
from pyclassify.utils.launcher import is_alone, meet_elsewhere
from pyclassify.utils.options import FLAGS, VERBS, are_asked_for, settings, split_words
from pyclassify.utils.signals import wait_for

SEED_OPTIONS = ("--seed", "--seed_everything")
# On a stop a process waits for its child, which may have a checkpoint to write before it leaves,
# and ends by itself where it hangs.
PATIENCE = 60.0


def read_count(given: list[str]) -> tuple[int, list[str]]:
    """Take --seeds out of a command line.

    Returns:
        How many trainings are asked for, and the words that are left.

    Raises:
        ValueError: It is no number from 1, or the verb trains nothing.
    """
    options = [*split_words(given)]
    asked = [option for option in options if are_asked_for(option[:1])]
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
    if verb in VERBS and verb not in ("train", "fit"):
        raise ValueError(f"seeds is for train and fit, and {verb} trains nothing; leave it out")
    only_shows = any(word in FLAGS or word.endswith(".help") for word, *_ in options)
    return 1 if only_shows else int(value), leave_out(given, "--seeds")


def list_seeds(words: list[str], count: int) -> range:
    """List the seeds: from that of the options or the configuration on, or from 0.

    Raises:
        ValueError: That is no number, or leaves too few above it.
        OSError: A configuration file can't be read.
    """
    first: Any = 0
    for name, value in settings(words):
        if f"--{name}" in SEED_OPTIONS:
            first = value
    if not re.fullmatch(r"\d+", str(first), re.ASCII) or int(first) + count > 2**32:
        raise ValueError(
            f"seeds is {count} and the first of them, seed, is {first}; give a whole number from 0 "
            f"to {2**32 - count} as --seed"
        )
    return range(int(first), int(first) + count)


def leave_out(given: list[str], *names: str) -> list[str]:
    """Leave options out of a command line, with their values."""
    left = (option for option in split_words(given) if option[0].partition("=")[0] not in names)
    return [word for option in left for word in option]


def train(words: list[str], count: int) -> None:
    """Train with each seed, and tell on standard output how it went.

    One that fails leaves the others to go on. Only where the first fails before it has learnt
    anything (an option misspelled, data missing), the others would as well, and are left.

    Args:
        words: The command line, without --seeds.
        count: How many seeds.

    Raises:
        ValueError: The command line is wrong, as far as can be told without torch.
        OSError: A configuration file can't be read; or, as ChildProcessError, a seed failed.
    """
    spell_out(words)
    seeds, chosen = list_seeds(words, count), dict(settings(words))
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
        from pyclassify.runs.parent import Parent

        parent = Parent(seeds, chosen)
    failed: list[int] = []
    try:
        for place in choose_places(parent, given, chosen, count):
            seed = seeds[place]
            command = [*leave_out(words, *SEED_OPTIONS), "--seed", str(seed)]
            code = train_one(command, place, parent)
            if code == os.EX_TEMPFAIL:  # it has saved and left, to go on later
                raise KeyboardInterrupt("SIGUSR1")
            if code != 0:
                failed.append(seed)
                if place == 0 and parent and is_alone() and parent.has_learnt_nothing():
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


def choose_places(parent: Any, run_id: str | None, chosen: dict[str, Any], count: int) -> list[int]:
    """List which of the seeds are to be trained: all, but for those that have finished before.

    Args:
        parent: The parent run, in the process that makes runs; the others hear of it.
        run_id: Its id, where it was there before.
        chosen: What options and configuration files set.
        count: How many seeds there are.
    """
    if run_id is None:  # a new run, under which there is none
        return [*range(count)]
    if is_alone():
        return parent.unfinished() if parent else [*range(count)]
    from pyclassify.runs.spread import find_logger

    folder = Path(find_logger(chosen).get("save_dir") or "runs", "seeds", run_id)
    if parent:
        launcher.tell(folder, parent.unfinished())
    places: list[int] = launcher.hear(folder)
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
    environ = {**os.environ, **meet_elsewhere(place)}
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        environ.pop(name, None)
    code = -signal.SIGTERM.value
    try:
        if parent:
            environ |= parent.begin(place)
        with subprocess.Popen([sys.executable, "-m", "pyclassify", *command], env=environ) as child:
            code = wait_for(child)
    finally:
        if parent:
            parent.close(code)
    return code
