"""`pyclassify slurm`: the script of a run, when it would start, how it goes, and its end."""

import argparse
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyclassify.spool import records
from pyclassify.spool.records import FINAL_STATUSES
from pyclassify.utils.duplicate_keys import check_duplicate_keys
from pyclassify.utils.mlflow_settings import configure_mlflow
from pyclassify.utils.options import CommandParser
from pyclassify.utils.text import format_error

# Modules that import MLflow are imported where they are used: --help does not wait for it.
if TYPE_CHECKING:
    from pyclassify.slurm.plan import Plan
    from pyclassify.slurm.submitted_run import JobLogs

_LOG_POLL_SECONDS = 1.0
_LOG_POLLS_PER_JOB_POLL = 4  # SLURM is asked less often than a log is read
_DAY_SECONDS = 86_400.0
# For the name of a folder that is not a run's id, some stores have the second.
_NO_SUCH_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_MLFLOW_ARGS = "the arguments of `mlflow run`"


def main(argv: Sequence[str]) -> int:
    """Run a command of `pyclassify slurm`.

    Args:
        argv: The command line after `slurm`.

    Returns:
        The exit code.

    Raises:
        ValueError: The command line is wrong, or there is no such run.
        OSError: SLURM refuses the command, or does not answer.
    """
    args, mlflow_argv = _parse_args(argv)

    from mlflow.exceptions import MlflowException

    configure_mlflow(retries=2)
    if args.command in _PLAN_COMMANDS:
        try:
            return _PLAN_COMMANDS[args.command](_make_plan(mlflow_argv))
        except MlflowException as error:
            raise ValueError(format_error(error)) from error
    return _RUN_COMMANDS[args.command](args)


def _parse_args(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line; returns what is for `mlflow run` apart."""
    parser = CommandParser(prog="pyclassify slurm", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="VERB", parser_class=CommandParser
    )
    for name, summary in (
        ("render", "show the script that `mlflow run --backend slurm` would submit"),
        ("check", "ask SLURM whether it would take that script, and when it would start"),
    ):
        commands.add_parser(name, help=summary, description=f"{summary}; takes {_MLFLOW_ARGS}")
    for name, summary in (
        ("status", "show how a run goes, and make its status true"),
        ("logs", "show what a run's job has written"),
        ("cancel", "cancel a run's job"),
        ("resume", "submit a run's job again, to go on where it stopped"),
    ):
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("run", metavar="RUN_ID", help="the run's id, or its first 8 digits")
        if name == "logs":
            command.add_argument("-f", "--follow", action="store_true", help="go on until its end")
        if name == "resume":
            command.add_argument("--time", help="a time limit in place of the script's")
    summary = "make the status of all runs true, and tell what their jobs took"
    command = commands.add_parser("reconcile", help=summary, description=summary)
    command.add_argument("-n", "--dry-run", action="store_true", help="only say what would change")
    summary = "remove the folders of ended runs"
    command = commands.add_parser("clear", help=summary, description=summary)
    command.add_argument(
        "work_dir", nargs="?", help='"work_dir" of the backend config; the default one else'
    )
    command.add_argument(
        "--days", type=float, default=7, help="ended for at least so many days (default: 7)"
    )
    command.add_argument("-n", "--dry-run", action="store_true", help="only say which")
    if argv and argv[0] in _PLAN_COMMANDS and not {"-h", "--help"} & {*argv}:
        return parser.parse_args(argv[:1]), list(argv[1:])
    return parser.parse_args(argv), []


def _make_plan(argv: Sequence[str]) -> "Plan":
    """Make the plan of a command line of `mlflow run`.

    Raises:
        ValueError: The command line is wrong.
    """
    import click
    from mlflow.cli import run
    from mlflow.projects.utils import PROJECT_ENV_MANAGER

    from pyclassify.slurm.plan import make_plan

    try:
        args = run.make_context("pyclassify slurm", [*argv]).params  # click empties its list
        parameters = dict(parameter.split("=", 1) for parameter in args["param_list"])
    except click.UsageError as error:
        message = error.format_message().rstrip(".")
        raise ValueError(f"{message}; {_MLFLOW_ARGS} are taken") from None
    except ValueError:
        raise ValueError(f"-P takes NAME=VALUE, not {' '.join(args['param_list'])}") from None
    backend_config = _read_config(args["backend_config"])
    backend_config[PROJECT_ENV_MANAGER] = args["env_manager"]
    return make_plan(args["uri"], args["entry_point"], parameters, args["version"], backend_config)


def _read_config(option: str | None) -> dict[str, Any]:
    """Read the value of --backend-config, JSON or a file of it."""
    if option is None:
        return {}
    try:
        text = Path(option).read_text() if option.endswith(".json") else option
        config = json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--backend-config {option} can't be read ({error}); it takes a file that ends with "
            ".json, or JSON"
        ) from None
    if not isinstance(config, dict):
        raise ValueError(f"--backend-config {option} is no object in JSON, such as {{}}")
    check_duplicate_keys(text, option if option.endswith(".json") else "--backend-config")
    return config


def _render(plan: "Plan") -> int:
    sys.stdout.write(plan.render_script("RUN_ID", "EXPERIMENT_ID"))
    return 0


def _check(plan: "Plan") -> int:
    from pyclassify.slurm import client
    from pyclassify.slurm.gpus import check_offer
    from pyclassify.slurm.script import check_script

    text = plan.render_script("RUN_ID", "EXPERIMENT_ID")
    check_script(text)
    check_offer(plan.config, plan.topology)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "job.sh"
        script.write_text(text)
        sys.stdout.write(f"{client.validate_script(script, [*plan.raw_config])}\n")
    return 0


def _status(args: argparse.Namespace) -> int:
    """Show a run's status, and set it where the job could not."""
    from pyclassify.slurm.submitted_run import FORGOTTEN_MESSAGE, find_submitted_run

    run = find_submitted_run(args.run)
    job = run.find_job()
    status = run.update_status(job)
    description = FORGOTTEN_MESSAGE if job is None else run.describe_job(job)
    sys.stdout.write(f"run {run.run_id}: {status}\n")
    sys.stdout.write(f"job {run.job_id}: {description}\n")
    logs = run.make_logs()
    for path in logs.list_files():
        sys.stdout.write(f"log: {path}\n")
    if job and job.meaning.ended and not logs.list_files():
        sys.stdout.write(f"{_format_missing_logs(logs)}\n")
    return 0


def _logs(args: argparse.Namespace) -> int:
    """Show a run's logs, until its job's end with --follow."""
    from pyclassify.slurm.submitted_run import find_submitted_run, read_logged_job_logs

    run = find_submitted_run(args.run)
    logs = run.make_logs()
    if not args.follow and not logs.list_files():
        logged = [*read_logged_job_logs(run.run_id)]
        if not logged:
            message = "no log yet: its job has not started"
            if run.has_ended(run.poll_job()):
                message = _format_missing_logs(logs)
            raise OSError(f"the run {run.run_id} has {message}")
        sys.stdout.write("".join(logged))
        return 0
    for count in itertools.count():
        if count % _LOG_POLLS_PER_JOB_POLL == 0:
            job = run.poll_job() if args.follow else None
            is_last = not args.follow or run.has_ended(job)
        for text in logs.read_new():
            sys.stdout.write(text)
        sys.stdout.flush()
        if is_last:
            break
        time.sleep(_LOG_POLL_SECONDS)
    return 0


def _format_missing_logs(logs: "JobLogs") -> str:
    return f"no log: could SLURM open {' and '.join(logs.expected_paths())}?"


def _cancel(args: argparse.Namespace) -> int:
    from pyclassify.slurm.submitted_run import find_submitted_run

    run = find_submitted_run(args.run)
    effect = run.cancel()
    sys.stdout.write(f"run {run.run_id}: {run.get_status()}\njob {run.job_id}: {effect}\n")
    return 0


def _resume(args: argparse.Namespace) -> int:
    from pyclassify.slurm.submit import resume_run

    return resume_run(args)


def _reconcile(args: argparse.Namespace) -> int:
    from pyclassify.slurm.reconcile import reconcile_runs

    return reconcile_runs(args)


def _clear(args: argparse.Namespace) -> int:
    from pyclassify.slurm.config import parse_config
    from pyclassify.slurm.plan import resolve_work_dir

    work_dir = resolve_work_dir(parse_config({"work_dir": args.work_dir}))
    for folder, size in remove_old_folders(work_dir, args.days, args.dry_run):
        verb = "would be removed" if args.dry_run else "removed"
        sys.stdout.write(f"{verb}: {folder} ({size / 2**20:.0f} MB)\n")
    return 0


def remove_old_folders(
    work_dir: Path, days: float, dry_run: bool = False
) -> Iterator[tuple[Path, int]]:
    """Remove the folders of runs that ended some time ago.

    A folder stays while its run has not ended, or while its spool has records to upload.

    Args:
        work_dir: The folder with the folders of runs.
        days: The least number of days since a run's end.
        dry_run: Whether to remove nothing.

    Yields:
        Each folder that is removed, and its size in bytes.

    Raises:
        OSError: There is no such folder, or no store.
        mlflow.exceptions.MlflowException: The store does not answer.
    """
    from mlflow.exceptions import MlflowException

    from pyclassify.tracking import search

    if not work_dir.is_dir():
        raise OSError(f'there is no folder {work_dir}; give "work_dir" of the backend config')
    store = search.open_store()
    for marker in sorted(work_dir.glob("*/snapshot.json")):
        folder = marker.parent
        try:
            info = store.get_run(folder.name).info
        except MlflowException as error:
            if error.error_code not in _NO_SUCH_RUN:
                raise
            continue  # a run of another store, or one that was deleted for good
        ended = (info.end_time or 0) / 1000
        is_old = ended < time.time() - days * _DAY_SECONDS
        if info.status in FINAL_STATUSES and is_old and _is_uploaded(folder):
            size = sum(path.lstat().st_size for path in folder.rglob("*"))
            if not dry_run:
                shutil.rmtree(folder)
            yield folder, size


def _is_uploaded(folder: Path) -> bool:
    spools = folder.glob(f"spool/*/{records.SPOOL_FILE}")
    return all(records.is_uploaded(spool.parent) for spool in spools)


_PLAN_COMMANDS: dict[str, Callable[["Plan"], int]] = {"render": _render, "check": _check}
_RUN_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "status": _status,
    "logs": _logs,
    "cancel": _cancel,
    "resume": _resume,
    "reconcile": _reconcile,
    "clear": _clear,
}
