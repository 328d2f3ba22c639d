"""`pyclassify slurm`: print, check and follow the jobs of runs, resume and cancel them."""

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
from pyclassify.utils.options import CommandParser, UsageError
from pyclassify.utils.text import format_error, shorten

# Modules that import MLflow are imported where they are used: --help does not wait for it.
if TYPE_CHECKING:
    from pyclassify.slurm.plan import Plan
    from pyclassify.slurm.submitted_run import JobLogs

_LOG_POLL_SECONDS = 1.0
_LOG_POLLS_PER_JOB_POLL = 4  # SLURM is asked less often than a log is read
_DAY_SECONDS = 86_400.0
# For the name of a folder that is not a run's ID, some stores have the second.
_NO_SUCH_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_MAX_SHOWN_JSON = 60  # characters in an error
_SUBMISSION = ". --backend-config slurm/ulysses.json -P devices=2"
# A command's summary, and the arguments of its examples.
_HELP = {
    "render": ("Print the batch script of a submission.", _SUBMISSION, f"{_SUBMISSION} -e test"),
    "check": (
        "Ask SLURM whether it accepts the job, and when it would start.",
        *(_SUBMISSION, f"{_SUBMISSION} -P num_nodes=2"),
    ),
    "status": (
        "Show the job of a run, and correct the status of the run.",
        *("3f2a91c0", "3f2a91c0d5e84b7f9a6c1d2e3f405162"),
    ),
    "logs": ("Print the logs of a run's job.", "3f2a91c0", "-f 3f2a91c0"),
    "cancel": (
        "Cancel the job of a run, and set the run KILLED.",
        *("3f2a91c0", "3f2a91c0d5e84b7f9a6c1d2e3f405162"),
    ),
    "resume": (
        "Submit the job of a run again, to resume the training.",
        *("3f2a91c0", "3f2a91c0 --time 1-12"),
    ),
    "reconcile": (
        "Correct the status of all runs, and log what their jobs used.",
        *("--dry-run", ""),
    ),
    "clear": (
        "Remove the folders of runs that ended some days ago.",
        *("--dry-run", "--days 30 $SCRATCH/runs"),
    ),
}


def main(argv: Sequence[str]) -> int:
    """Run a command of `pyclassify slurm`.

    Args:
        argv: The command line after `slurm`.

    Returns:
        The exit code.

    Raises:
        UsageError: The command line or the backend config is invalid.
        ValueError: The run does not exist, or the project can't be submitted.
        OSError: SLURM refuses the command, or does not respond.
    """
    args = _make_parser().parse_args(argv)

    from mlflow.exceptions import MlflowException

    configure_mlflow(retries=2)
    if args.command in _PLAN_COMMANDS:
        try:
            return _PLAN_COMMANDS[args.command](_make_plan(args))
        except MlflowException as error:
            raise ValueError(format_error(error)) from error
    return _RUN_COMMANDS[args.command](args)


def _make_parser() -> CommandParser:
    width = max(len(name) for name in _HELP) + 2
    listed = "\n".join(f"  {name:{width}}{summary}" for name, (summary, *_) in _HELP.items())
    parser = CommandParser(
        "pyclassify slurm",
        usage="%(prog)s [-h] COMMAND ...",
        description="Submit MLflow runs to a SLURM cluster, and manage their jobs.\n\n"
        f"commands:\n{listed}",
        examples=[f"pyclassify slurm check {_SUBMISSION}", "pyclassify slurm logs -f 3f2a91c0"],
    )
    commands = parser.add_subparsers(
        prog=parser.prog, dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS
    )
    for name, (summary, *examples) in _HELP.items():
        command = commands.add_parser(
            name,
            description=summary,
            examples=[f"pyclassify slurm {name} {example}".rstrip() for example in examples],
        )
        if name in _PLAN_COMMANDS:
            _add_mlflow_arguments(command)
        elif name == "clear":
            _add_clear_arguments(command)
        elif name != "reconcile":
            command.add_argument(
                "run",
                metavar="RUN_ID",
                help="select the run by its id, or by the first 8 digits of the id",
            )
        if name == "logs":
            command.add_argument(
                "-f", "--follow", action="store_true", help="print new lines until the job ends"
            )
        if name == "resume":
            command.add_argument(
                "--time", help="set another time limit, as sbatch takes it (default: the script's)"
            )
        if name in ("reconcile", "clear"):
            command.add_argument(
                "-n", "--dry-run", action="store_true", help="print the changes, and make none"
            )
    return parser


def _add_clear_arguments(command: CommandParser) -> None:
    command.add_argument(
        "work_dir",
        nargs="?",
        help='remove folders from this one, "work_dir" of the backend config (default: '
        "NAME-slurm beside the current folder NAME)",
    )
    command.add_argument(
        "--days", type=float, default=7, help="remove folders of runs that ended DAYS ago or before"
    )


def _add_mlflow_arguments(command: CommandParser) -> None:
    """Add the arguments of `mlflow run`, which may be pasted behind `render` and `check`."""
    add = command.add_argument
    add("uri", metavar="URI", help="submit the project in this folder or git repository")
    add(
        *("-P", "--param-list"),
        metavar="NAME=VALUE",
        action="append",
        help="set a parameter of the entry point; repeat -P for several",
    )
    add(
        *("-c", "--backend-config"),
        metavar="JSON",
        help="configure the job by a file that ends with .json, or by JSON text",
    )
    add("-e", "--entry-point", default="main", help="run this entry point")
    add("-v", "--version", metavar="REF", help="check out this commit or branch of a git project")
    add(
        "--env-manager",
        choices=("local", "virtualenv", "uv", "conda"),
        help="build or activate the environment by this manager (default: what the project needs)",
    )
    ignored = command.add_argument_group(
        "ignored options", "Accept these options of `mlflow run`; they do not change the script."
    )
    add = ignored.add_argument
    add("-b", "--backend", default="slurm", help="choose the backend; this command is for slurm")
    add("--experiment-name", metavar="NAME", help="log the run to this experiment")
    add("--experiment-id", metavar="ID", help="log the run to the experiment with this id")
    add("--run-name", metavar="NAME", help="name the run")
    add("--run-id", metavar="ID", help="log to an existing run")
    add("--storage-dir", metavar="FOLDER", help="download to this folder; for the local backend")
    add(
        "-A",
        "--docker-args",
        action="append",
        metavar="NAME=VALUE",
        help="pass an argument to docker run",
    )
    add("--build-image", action="store_true", help="build a new Docker image")


def _make_plan(args: argparse.Namespace) -> "Plan":
    """Make the plan of the arguments of `mlflow run`.

    Raises:
        UsageError: An argument or the backend config is invalid.
        ValueError: The project can't be submitted.
        OSError: The file of the backend config can't be read.
    """
    from mlflow.projects.utils import PROJECT_ENV_MANAGER

    from pyclassify.slurm.plan import make_plan

    parameters = _parse_parameters(args.param_list or ())
    backend_config = _read_config(args.backend_config)
    backend_config[PROJECT_ENV_MANAGER] = args.env_manager
    return make_plan(args.uri, args.entry_point, parameters, args.version, backend_config)


def _parse_parameters(given: Sequence[str]) -> dict[str, str]:
    """Parse the values of -P.

    Raises:
        UsageError: One is not NAME=VALUE, or a name is given twice.
    """
    parameters: dict[str, str] = {}
    for parameter in given:
        name, equals, value = parameter.partition("=")
        if not name or not equals:
            raise UsageError(f"invalid -P: {parameter!r} (expected NAME=VALUE, such as devices=2)")
        if name in parameters:
            raise UsageError(f"-P {name} is given twice; give it once")
        parameters[name] = value
    return parameters


def _read_config(option: str | None) -> dict[str, Any]:
    """Read the value of --backend-config, JSON or a file of it."""
    if option is None:
        return {}
    is_file = option.endswith(".json")
    shown = option if is_file else shorten(option, _MAX_SHOWN_JSON)
    expected = "a file that ends with .json, or JSON text such as '{\"time\": 30}'"
    try:
        text = Path(option).read_text() if is_file else option
        config = json.loads(text)
    except OSError as error:
        raise OSError(
            f"--backend-config {shown} can't be read ({error.strerror}); give {expected}"
        ) from None
    except ValueError as error:
        raise UsageError(
            f"--backend-config {shown} is not valid JSON ({error}); give {expected}"
        ) from None
    if not isinstance(config, dict):
        raise UsageError(f"--backend-config {shown} is not a JSON object; give {expected}")
    try:
        check_duplicate_keys(text, option if is_file else "--backend-config")
    except ValueError as error:
        raise UsageError(str(error)) from None
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
    """Show a run's status, and correct it where the job could not set it."""
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
            message = "no log yet: the job has not started"
            if run.has_ended(run.poll_job()):
                message = _format_missing_logs(logs)
            raise OSError(f"the run {run.run_id} has {message}")
        sys.stdout.write("".join(logged))
        return 0
    for count in itertools.count():
        if count % _LOG_POLLS_PER_JOB_POLL == 0:
            job = run.poll_job() if args.follow else None
            is_last = not args.follow or run.has_ended(job)
        for text in logs.read_new(is_last):
            sys.stdout.write(text)
        sys.stdout.flush()
        if is_last:
            break
        time.sleep(_LOG_POLL_SECONDS)
    return 0


def _format_missing_logs(logs: "JobLogs") -> str:
    return f"no log: check that SLURM can write {' and '.join(logs.expected_paths())}"


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

    if not args.days >= 0:  # nan is not
        raise UsageError(f"invalid --days: {args.days:g} (expected a number from 0)")
    work_dir = resolve_work_dir(parse_config({"work_dir": args.work_dir}))
    for folder, size in remove_old_folders(work_dir, args.days, args.dry_run):
        effect = "would be removed" if args.dry_run else "removed"
        sys.stdout.write(f"{effect}: {folder} ({size / 2**20:.0f} MB)\n")
    return 0


def remove_old_folders(
    work_dir: Path, days: float, dry_run: bool = False
) -> Iterator[tuple[Path, int]]:
    """Remove the folders of runs that ended some time ago.

    A folder stays while its run has not ended, or while its spool has records to upload.

    Args:
        work_dir: The folder with the folders of runs.
        days: The minimum number of days since a run's end.
        dry_run: Whether to remove nothing.

    Yields:
        Each folder that is removed, and its size in bytes.

    Raises:
        OSError: The folder or the tracking store does not exist.
        mlflow.exceptions.MlflowException: The tracking store does not respond.
    """
    from mlflow.exceptions import MlflowException

    from pyclassify.tracking import search

    if not work_dir.is_dir():
        raise OSError(f'{work_dir} is not a folder; give "work_dir" of the backend config')
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
