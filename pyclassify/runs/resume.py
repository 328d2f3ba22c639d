"""`pyclassify resume RUN_ID`: go on with a run that was stopped, as the same run.

No torch here: the training is a process of its own, on the code and configuration of the run's
capsule, which finds the run's newest checkpoint by the run's id.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from pyclassify.runs import spread
from pyclassify.runs.restore import (
    environment,
    fetch,
    find_code,
    find_run,
    prepare,
    stoppable,
    train,
)
from pyclassify.runs.stopped import (
    RESUMED_WITH,
    Stopped,
    check_folder,
    check_options,
    check_state,
    find_source,
    recall,
)
from pyclassify.tracking import capsule
from pyclassify.utils.masking import mask_command
from pyclassify.utils.options import VerbParser, split_words
from pyclassify.utils.repository import checked_out, find_root


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
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    client, run = find_run(asked.run)
    source = find_source(client, run)
    with stoppable(), tempfile.TemporaryDirectory(prefix="pyclassify-resume-") as folder:
        kept = fetch(client, source.info.run_id, Path(folder))
        facts = json.loads((kept / "capsule.json").read_text())
        before = recall(run)
        config = prepare(kept, facts, [*before, *options], saves_in=Path(facts["started_in"]))
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
            exit_code = train(command, started_in, environment(run.info, facts, root, folder))
    if exit_code < 0:  # it was gone before it could say so
        client.set_terminated(run.info.run_id, "KILLED")
    return exit_code if exit_code >= 0 else 128 - exit_code


def parse(given: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line: what is for this verb, and the options of the training."""
    parser = VerbParser(
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
    for word, *value in split_words(more):
        if not word.startswith("--") or word.partition("=")[0] == "--config":
            raise ValueError(
                f"resume takes one run's id and options, and was given {word} too; "
                "pyclassify resume RUN_ID --max_epochs 20"
            )
        options.append("=".join([word, *value]))
    return asked, options


def seeds_of(stopped: Stopped) -> list[str]:
    """The options that make a parent's seeds out of the configuration of one."""
    if not stopped.is_parent:
        return []
    first, _, last = stopped.run.data.tags[spread.SEEDS].partition(" to ")
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
    places = (started_in, Path.cwd(), capsule.PACKAGE)
    near = next((each for each in places if each.is_dir() and find_root(each)), Path.cwd())
    root, code = find_code(kept, known, run_id, near)
    with checked_out(root, code, folder / "tree") as there:
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
