"""`pyclassify rerun RUN_ID`: make a run again from its capsule, and say whether it is the same.

No torch here: the training is a process of its own, on the code that the run had.
"""

import json
import os
import shlex
import sys
import tempfile
from pathlib import Path

import yaml

from pyclassify.runs import likeness
from pyclassify.runs.restore import (
    PATHS,
    environment,
    fetch,
    find_code,
    find_run,
    locate,
    prepare,
    stoppable,
    train,
)
from pyclassify.tracking.capsule import OVERRIDDEN, SOURCE_RUN
from pyclassify.utils.masking import mask_command
from pyclassify.utils.repository import checked_out

USAGE = """usage: pyclassify rerun RUN_ID [--OPTION VALUE ...]

Make a run again from its capsule: its commit, changes, untracked files and configuration, on the
same data, as a new run beside it. At the end the losses of both are compared step by step.
Options, as those of `pyclassify train`, change the configuration; the new run names them.
"""


def rerun(given: list[str]) -> int:
    """Make a run again.

    Args:
        given: The run's id, and options that change its configuration.

    Returns:
        The exit code: the training's, or 128 and the signal that ended it.

    Raises:
        ValueError: There is no such run, or it can't be made again; one line that says why.
        OSError: git can't restore its code.
    """
    if {"-h", "--help"} & set(given):
        sys.stdout.write(USAGE)
        return 0
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    run_id, options = read_options(given)
    client, run = find_run(run_id)
    run_id = run.info.run_id
    with stoppable(), tempfile.TemporaryDirectory(prefix="pyclassify-rerun-") as folder:
        kept = fetch(client, run_id, Path(folder))
        facts = json.loads((kept / "capsule.json").read_text())
        config = prepare(kept, facts, options, saves_in=Path.cwd())
        if "register" in config:  # a repetition is no other network, to be judged anew
            config["register"]["name"] = None
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        root, code = find_code(kept, facts["git"], run_id)
        command = [facts["verb"], "--config", f"{folder}/config.yaml", *options]
        with checked_out(root, code, Path(folder) / "tree") as started_in:
            overridden = shlex.join(mask_command(options))
            tags = {SOURCE_RUN: run_id, **({OVERRIDDEN: overridden} if options else {})}
            made = client.create_run(run.info.experiment_id, tags=tags).info
            exit_code = train(command, started_in, environment(made, facts, root, folder))
            if not client.get_run(made.run_id).info.end_time:  # gone before it could say so
                client.set_terminated(made.run_id, "KILLED" if exit_code < 0 else "FAILED")
        if exit_code == 0:
            again = fetch(client, made.run_id, Path(folder) / "again")
            told = likeness.tell(client, run_id, made.run_id, kept, again, overridden)
            sys.stdout.write("\n" + "".join(f"{line}\n" for line in told))
    return exit_code if exit_code >= 0 else 128 - exit_code


def read_options(given: list[str]) -> tuple[str, list[str]]:
    """Tell the run's id from the options; options that are paths become absolute."""
    ids = [word for word in given[:1] if not word.startswith("-")]
    if not ids:
        raise ValueError(
            "rerun was given no run's id, which a run shows as `run` in its last lines: "
            "pyclassify rerun RUN_ID"
        )
    options = given[1:]
    for place, word in enumerate(options):
        name, equals, value = word.partition("=")
        if name in ("--config", "-c"):
            raise ValueError(
                "rerun takes the configuration that the run had; give what shall differ as "
                "options, --max_epochs 3"
            )
        last = name.split(".")[-1].removeprefix("--")
        if last in PATHS:
            if equals:
                options[place] = f"{name}={locate(last, value, Path.cwd())}"
            elif place + 1 < len(options):
                options[place + 1] = locate(last, options[place + 1], Path.cwd())
    return ids[0], options
