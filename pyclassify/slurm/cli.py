"""`pyclassify slurm`: the script of a run, when it would start, how it goes, and its end."""

import argparse
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyclassify.slurm import client, config, plan
from pyclassify.slurm.plan import Plan
from pyclassify.slurm.script import check_script
from pyclassify.slurm.status import find_ending
from pyclassify.slurm.submit import resume
from pyclassify.slurm.submitted_run import Tail, kept_logs
from pyclassify.spool import records
from pyclassify.spool.records import FINAL_STATUSES
from pyclassify.spool.server import configure_mlflow
from pyclassify.utils.options import CommandParser
from pyclassify.utils.text import format_error

_POLL = 1.0  # seconds between looks at a log
_LOOKS = 4  # at a log for each question to SLURM
_DAY = 86_400.0
LIKE_MLFLOW = "the arguments of `mlflow run`"


def main(args: Sequence[str]) -> int:
    """Run one of the verbs.

    Args:
        args: The command line after `slurm`.

    Returns:
        The exit code.

    Raises:
        ValueError: The command line is wrong, or there is no such run.
        OSError: SLURM refuses, or does not answer.
    """
    from mlflow.exceptions import MlflowException

    configure_mlflow(retries=2)
    asked, rest = _parse(args)
    if asked.verb == "clear":
        return clear(asked)
    try:
        if asked.verb in ("render", "check"):
            return {"render": render, "check": check}[asked.verb](plan_like_mlflow(rest))
        verbs = {"status": status, "logs": logs, "cancel": cancel, "reconcile": reconcile}
        verbs |= {"resume": resume}
        return verbs[asked.verb](asked)
    except MlflowException as error:
        if rest:
            raise ValueError(format_error(error)) from error
        from pyclassify.tracking import search

        raise ValueError(search.format_store_error(error)) from error


def _parse(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = CommandParser(prog="pyclassify slurm", description=__doc__, allow_abbrev=False)
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="VERB", parser_class=CommandParser
    )
    for name, what in (
        ("render", "show the script that `mlflow run --backend slurm` would submit"),
        ("check", "ask SLURM whether it would take that script, and when it would start"),
    ):
        verbs.add_parser(name, help=what, description=f"{what}; takes {LIKE_MLFLOW}")
    for name, what in (
        ("status", "show how a run goes, and make its status true"),
        ("logs", "show what a run's job has written"),
        ("cancel", "cancel a run's job"),
        ("resume", "submit a run's job again, to go on where it stopped"),
    ):
        verb = verbs.add_parser(name, help=what, description=what)
        verb.add_argument("run", metavar="RUN_ID", help="the run's id, or its first 8 digits")
        if name == "logs":
            verb.add_argument("-f", "--follow", action="store_true", help="go on until its end")
        if name == "resume":
            verb.add_argument("--time", help="a time limit in place of the script's")
    what = "make the status of all runs true, and tell what their jobs took"
    verb = verbs.add_parser("reconcile", help=what, description=what)
    verb.add_argument("-n", "--dry-run", action="store_true", help="only say what would change")
    what = "remove the folders of ended runs"
    verb = verbs.add_parser("clear", help=what, description=what)
    verb.add_argument(
        "work_dir", nargs="?", help='"work_dir" of the backend config; the default one else'
    )
    verb.add_argument(
        "--days", type=float, default=7, help="ended for at least so many days (default: 7)"
    )
    verb.add_argument("-n", "--dry-run", action="store_true", help="only say which")
    if args and args[0] in ("render", "check") and not {"-h", "--help"} & {*args}:
        return parser.parse_args(args[:1]), list(args[1:])
    return parser.parse_args(args), []


def render(made: Plan) -> int:
    """Show the script of a run that is not made."""
    sys.stdout.write(made.render_script("RUN_ID", "EXPERIMENT_ID"))
    return 0


def check(made: Plan) -> int:
    """Ask SLURM about the script."""
    text = made.render_script("RUN_ID", "EXPERIMENT_ID")
    check_script(text)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "job.sh"
        script.write_text(text)
        sys.stdout.write(f"{client.try_out(script, [*made.raw_config])}\n")
    return 0


def status(asked: argparse.Namespace) -> int:
    """Show a run's status, and set it where the job could not."""
    from pyclassify.slurm.submitted_run import FORGOTTEN, of_run

    run = of_run(asked.run)
    job = run.find()
    now = run.reconcile(job)
    facts = [FORGOTTEN]
    if job is not None:
        why = find_ending(job).words or job.reason
        facts = [job.state, why, job.elapsed, job.nodes and f"on {job.nodes}"]
    sys.stdout.write(f"run {run.run_id}: {now}\n")
    sys.stdout.write(f"job {run.job_id}: {', '.join(each for each in facts if each)}\n")
    tail = run.tail()
    for path in tail.files():
        sys.stdout.write(f"log: {path}\n")
    if job and job.meaning.ended and not tail.files():
        sys.stdout.write(f"{_no_log(tail)}\n")
    return 0


def logs(asked: argparse.Namespace) -> int:
    """Show a run's logs, until its job's end with --follow."""
    from pyclassify.slurm.submitted_run import of_run

    run = of_run(asked.run)
    tail = run.tail()
    if not asked.follow and not tail.files():
        kept = [*kept_logs(run.run_id)]
        if not kept:
            why = _no_log(tail) if run.is_over(run.ask()) else "no log yet: its job has not started"
            raise OSError(f"the run {run.run_id} has {why}")
        sys.stdout.write("".join(kept))
        return 0
    for turn in itertools.count():
        if turn % _LOOKS == 0:
            job = run.ask() if asked.follow else None
            over = not asked.follow or run.is_over(job)
        for text in tail.new():
            sys.stdout.write(text)
        sys.stdout.flush()
        if over:
            break
        time.sleep(_POLL)
    return 0


def _no_log(tail: Tail) -> str:
    return f"no log: could SLURM open {' and '.join(tail.expected())}?"


def cancel(asked: argparse.Namespace) -> int:
    """Cancel a run's job."""
    from pyclassify.slurm.submitted_run import of_run

    run = of_run(asked.run)
    became = run.cancel()
    sys.stdout.write(f"run {run.run_id}: {run.get_status()}\njob {run.job_id}: {became}\n")
    return 0


def reconcile(asked: argparse.Namespace) -> int:
    """Make the status of all runs true."""
    from pyclassify.slurm.reconcile import main

    return main(asked)


def clear(asked: argparse.Namespace) -> int:
    """Remove the folders of ended runs."""
    given = config.parse_config({"work_dir": asked.work_dir})
    work_dir = plan.resolve_work_dir(given)
    for folder, size in remove_old_folders(work_dir, asked.days, asked.dry_run):
        what = "would be removed" if asked.dry_run else "removed"
        sys.stdout.write(f"{what}: {folder} ({size / 2**20:.0f} MB)\n")
    return 0


def remove_old_folders(
    work_dir: Path, days: float, dry_run: bool = False
) -> Iterator[tuple[Path, int]]:
    """Remove the folders of runs that ended some time ago; others stay.

    So do those that hold what no server has yet, for `pyclassify sync`.

    Args:
        work_dir: The folder of the folders.
        days: How long ago at least.
        dry_run: Whether to remove nothing.

    Yields:
        Each folder that goes, and its size in bytes.

    Raises:
        OSError: There is no such folder.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if not work_dir.is_dir():
        raise OSError(f'there is no folder {work_dir}; give "work_dir" of the backend config')
    client = MlflowClient()
    for marker in sorted(work_dir.glob("*/snapshot.json")):
        folder = marker.parent
        try:
            info = client.get_run(folder.name).info
        except MlflowException:  # a run of another store, or one that was deleted for good
            continue
        ended = (info.end_time or 0) / 1000
        long_ago = ended < time.time() - days * _DAY
        if info.status in FINAL_STATUSES and long_ago and _is_delivered(folder):
            size = sum(each.lstat().st_size for each in folder.rglob("*"))
            if not dry_run:
                shutil.rmtree(folder)
            yield folder, size


def _is_delivered(folder: Path) -> bool:
    spools = folder.glob(f"spool/*/{records.SPOOL_FILE}")
    return all(records.is_uploaded(each.parent) for each in spools)


def plan_like_mlflow(args: list[str]) -> Plan:
    """Read a command line as `mlflow run` does, and plan what it would do.

    Raises:
        ValueError: It is wrong.
    """
    import click
    from mlflow.cli import run
    from mlflow.projects.utils import PROJECT_ENV_MANAGER

    try:
        asked = run.make_context("pyclassify slurm", [*args]).params  # it empties its list
        given = dict(each.split("=", 1) for each in asked["param_list"])
    except click.UsageError as error:
        raise ValueError(f"{error.format_message().rstrip('.')}; {LIKE_MLFLOW} are taken") from None
    except ValueError:
        raise ValueError(f"-P takes NAME=VALUE, not {' '.join(asked['param_list'])}") from None
    backend_config = _read_config(asked["backend_config"])
    backend_config[PROJECT_ENV_MANAGER] = asked["env_manager"]
    return plan.make_plan(
        asked["uri"], asked["entry_point"], given, asked["version"], backend_config
    )


def _read_config(given: str | None) -> dict[str, Any]:
    if given is None:
        return {}
    try:
        text = Path(given).read_text() if given.endswith(".json") else given
        read = json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--backend-config {given} can't be read ({error}); it takes a file that ends with "
            ".json, or JSON"
        ) from None
    if not isinstance(read, dict):
        raise ValueError(f"--backend-config {given} is no object in JSON, such as {{}}")
    return read
