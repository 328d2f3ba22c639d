"""Submit runs to SLURM: the backend of `mlflow run --backend slurm`, and `pyclassify slurm resume`.

`SlurmBackend` makes a run with its folder, the snapshot and the script, and submits the script.
`resume_run` submits the script of an earlier run again, for the same run.
"""

import argparse
import json
import logging
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.projects.backend.abstract_backend import AbstractBackend

from pyclassify.slurm import client
from pyclassify.slurm.config import Config, parse_config, parse_time_limit
from pyclassify.slurm.environment import resolve_tracking_uri
from pyclassify.slurm.gpus import check_offer
from pyclassify.slurm.plan import Plan, make_plan
from pyclassify.slurm.reporter import open_spool
from pyclassify.slurm.script import check_script
from pyclassify.slurm.snapshot import take_snapshot
from pyclassify.slurm.states import JobNotFoundError, SlurmError
from pyclassify.slurm.status import (
    ARTIFACT_FOLDER,
    JOB_ID_TAG,
    STATE_TAG,
    STATUS_SOURCE_TAG,
    clear_description,
    format_subject,
    set_tags,
    update_description,
)
from pyclassify.slurm.submitted_run import (
    SlurmRun,
    expand_pattern,
    find_job_id,
    list_started_jobs,
    make_absolute_pattern,
)
from pyclassify.spool import records
from pyclassify.spool.records import FINAL_STATUSES
from pyclassify.utils.launcher import SLURM_FOLDER_TAG
from pyclassify.utils.text import format_error

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_COMPLETING_TIMEOUT_SECONDS = 60.0
_NEW_RUN_HINT = "submit a new run by `mlflow run --backend slurm`"
_logger = logging.getLogger("mlflow.projects.slurm")


class SlurmBackend(AbstractBackend):
    """The MLflow Projects backend `slurm`: runs an entry point as a SLURM job.

    The job itself updates the run's status.

    Example:
        >>> config = {"partition": "gpu", "time": "2:00:00"}
        >>> mlflow.projects.run(
        ...     ".", backend="slurm", backend_config=config, parameters={"devices": 2}
        ... )
    """

    def run(
        self,
        project_uri: str,
        entry_point: str,
        params: dict[str, Any] | None,
        version: str | None,
        backend_config: dict[str, Any],
        tracking_uri: str,
        experiment_id: str,
    ) -> SlurmRun:
        """Submit an entry point.

        Args:
            project_uri: The project's folder, or its URI in git.
            entry_point: The entry point's name.
            params: The entry point's parameters.
            version: The commit or branch of a project in git.
            backend_config: The configuration (`pyclassify.slurm.config`), with MLflow's own keys.
            tracking_uri: Not used: it is MLflow's own.
            experiment_id: The run's experiment.

        Returns:
            The run, whose job is pending or running; with "wait" or `synchronous` it is FINISHED.

        Raises:
            mlflow.exceptions.ExecutionException: The configuration or a parameter is invalid, SLURM
                refuses the job, or the call waited for the job and the job failed.
        """
        from mlflow.exceptions import ExecutionException
        from mlflow.utils.process import ShellCommandException

        waits = bool(backend_config.get("wait") or backend_config.get("SYNCHRONOUS"))
        try:
            plan = make_plan(project_uri, entry_point, params, version, backend_config)
            check_script(plan.render_script("RUN_ID", experiment_id))
            check_offer(plan.config, plan.topology)
            plan.environment.build()
            submitted = _submit_run(plan, project_uri, version, experiment_id, verbose=waits)
            if waits:
                _wait(submitted)
            return submitted
        except (ValueError, OSError, ShellCommandException) as error:
            raise ExecutionException(str(error)) from error


def resume_run(args: argparse.Namespace) -> int:
    """Submit the script of a run again, for the same run.

    Args:
        args: `run`, the id of the run or its first digits; and `time`, the time limit of the new
            job, or None for that of the script.

    Returns:
        The exit code.

    Raises:
        UsageError: `time` is not a time limit of sbatch.
        ValueError: The run can't be resumed.
        OSError: SLURM refuses the job, or does not respond; the run stays as it was.
    """
    import mlflow

    from pyclassify.tracking import search

    options = [] if args.time is None else [f"--time={parse_time_limit(args.time)}"]
    store = search.open_store()
    run = search.find_run(store, args.run)
    run_id = run.info.run_id
    script = _find_script(run)
    uses_spool = parse_config(_read_raw_config(script)).tracking == "spool"
    tracking = resolve_tracking_uri(mlflow.get_tracking_uri(), from_nodes=not uses_spool)
    _wait_for_earlier_job(run)
    run = store.get_run(run_id)
    if run.info.status == "FINISHED":
        raise ValueError(f"the run {run_id} is FINISHED and can't be resumed; {_NEW_RUN_HINT}")
    variables = {} if uses_spool else {"MLFLOW_TRACKING_URI": tracking.uri}
    job_id = _resubmit(store, run, script, variables, options)
    sys.stdout.write(
        f"run {run_id} is submitted again as SLURM job {job_id}\n"
        f"next: `pyclassify slurm logs -f {run_id}` (or status, cancel)\n"
    )
    return 0


def _submit_run(
    plan: Plan, project_uri: str, version: str | None, experiment_id: str, verbose: bool
) -> SlurmRun:
    """Make a run and submit its job; after an error the run is FAILED and describes it."""
    from mlflow import MlflowClient
    from mlflow.projects.utils import get_or_create_run

    store = MlflowClient()
    if plan.tracking_store.warning:
        _logger.warning("%s", plan.tracking_store.warning)
    arguments = (project_uri, experiment_id, str(plan.project_dir), version, plan.entry_point)
    run = get_or_create_run(None, *arguments, plan.parameters)
    run_id, folder = run.info.run_id, plan.work_dir / run.info.run_id
    with _fail_run_on_error(store, run_id):
        store.update_run(run_id, status="SCHEDULED")
        script = _prepare_folder(plan, store, run, folder)
        variables = {} if plan.uses_spool else {"MLFLOW_TRACKING_URI": plan.tracking_store.uri}
        job_id = client.submit_job(script, variables, [*plan.raw_config])
    store.set_tag(run_id, JOB_ID_TAG, job_id)
    pattern, number = make_absolute_pattern(folder, plan.config.output), job_id.partition(";")[0]
    log = expand_pattern(pattern, number, plan.job_name, unknown="*")
    _logger.info("=== Run (ID '%s') is submitted as SLURM job %s ===", run_id, job_id)
    _logger.info("Log: %s", log)
    _logger.info("Next: `pyclassify slurm logs -f %s` (or status, cancel)", run_id)
    return SlurmRun(run_id, job_id, verbose)


@contextmanager
def _fail_run_on_error(store: "MlflowClient", run_id: str) -> Iterator[None]:
    """Set the run FAILED with the error as its description, whatever the error is."""
    try:
        yield
    except BaseException as error:
        store.set_terminated(run_id, "FAILED")
        run = store.get_run(run_id)
        update_description(store, run, "SLURM submission", format_error(error))
        raise


def _prepare_folder(plan: Plan, store: "MlflowClient", run: "Run", folder: Path) -> Path:
    """Make the run's folder, and log what is submitted; returns the script's path."""
    from mlflow import MlflowClient

    run_id = run.info.run_id
    try:
        folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise OSError(
            f"{plan.work_dir} can't be written ({error.strerror}); give a folder that compute "
            'nodes see as "work_dir" in the backend config'
        ) from error
    make_log_folders(folder, plan.config)
    names, left_out = plan.snapshot_files
    take_snapshot(plan.project_dir, folder, names, left_out)
    for name, reason in left_out.items():
        _logger.warning("%s %s, and is not in the snapshot", name, reason)
    downloads = folder / "downloads"
    downloads.mkdir()
    script = folder / "job.sh"
    script.write_text(plan.render_script(run_id, run.info.experiment_id, str(downloads)))
    (folder / "backend_config.json").write_text(json.dumps(plan.raw_config, indent=2) + "\n")
    for name in ("job.sh", "backend_config.json"):
        store.log_artifact(run_id, str(folder / name), ARTIFACT_FOLDER)
    set_tags(store, run_id, _make_tags(plan, folder))
    server = MlflowClient(plan.tracking_store.uri)
    records.create_from_server(folder / "spool", server, run_id)
    return script


def make_log_folders(folder: Path, config: Config) -> None:
    """Make the folders of the logs; without them SLURM ends a job without a message.

    Args:
        folder: The run's folder.
        config: The configuration.

    Raises:
        OSError: A folder can't be created.
    """
    for key in ("output", "error"):
        parent = (folder / getattr(config, key)).parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"the folder {parent} can't be created ({error.strerror}); give another file as "
                f'"{key}" in the backend config'
            ) from error


def _make_tags(plan: Plan, folder: Path) -> Mapping[str, str]:
    return {
        "mlflow.project.backend": "slurm",
        SLURM_FOLDER_TAG: str(folder),
        "slurm_job_name": plan.job_name,
        "slurm_partition": plan.config.partition or "",
        "slurm_nodes": str(plan.topology.nodes),
        "slurm_submit_host": socket.gethostname(),
        "slurm_output": make_absolute_pattern(folder, plan.config.output),
        "slurm_error": make_absolute_pattern(folder, plan.config.error),
    }


def _wait(submitted: SlurmRun) -> None:
    """Wait for the job; Ctrl-C cancels it."""
    from mlflow.exceptions import ExecutionException

    try:
        is_finished = submitted.wait()
    except KeyboardInterrupt:
        effect, status = submitted.cancel(), submitted.get_status()
        _logger.warning(
            "=== Job %s: %s; run %s: %s ===", submitted.job_id, effect, submitted.run_id, status
        )
        raise
    if not is_finished:
        # Raised here, as MLflow would set a KILLED run FAILED (mlflow.projects._wait_for).
        status = submitted.get_status()
        raise ExecutionException(
            f"Run {submitted.run_id} is {status}; read its description, or its log by "
            f"`pyclassify slurm logs {submitted.run_id}`"
        )


def _find_script(run: "Run") -> Path:
    """The script of a run's job, in the run's folder."""
    run_id, tags = run.info.run_id, run.data.tags
    if SLURM_FOLDER_TAG not in tags:
        raise ValueError(
            f"the run {run_id} was not submitted to SLURM; resume it on this host by "
            f"`pyclassify resume {run_id}`"
        )
    script = Path(tags[SLURM_FOLDER_TAG]) / "job.sh"
    if not script.is_file():
        host = tags.get("slurm_submit_host", "")
        raise ValueError(
            f"{script} of the run {run_id} does not exist: it was removed, or only the host of the "
            f"submission ({host}) sees it; resume the run there, or {_NEW_RUN_HINT}"
        )
    return script


def _read_raw_config(script: Path) -> dict[str, Any]:
    """Read the backend config as it was given."""
    return dict(json.loads((script.parent / "backend_config.json").read_text()))


def _wait_for_earlier_job(run: "Run") -> None:
    """Wait while the job of a run is COMPLETING, and set the status that the job ended with.

    Raises:
        ValueError: The job has not ended.
    """
    run_id, job_id = run.info.run_id, find_job_id(run, search_ended=True)
    if not job_id:  # SLURM accepted none
        return
    submitted, end = SlurmRun(run_id, job_id), time.monotonic() + _COMPLETING_TIMEOUT_SECONDS
    try:
        while (job := client.find_job(job_id)).state == "COMPLETING" and time.monotonic() < end:
            time.sleep(1.0)
    except JobNotFoundError:  # it ended long ago
        return
    if not job.meaning.ended:
        raise ValueError(
            f"the job of the run {run_id} has not ended: {job_id} is {job.state}; wait for it, or "
            f"cancel it by `pyclassify slurm cancel {run_id}`"
        )
    submitted.update_status(job)


def _resubmit(
    store: "MlflowClient",
    run: "Run",
    script: Path,
    variables: Mapping[str, str],
    options: Sequence[str],
) -> str:
    """Submit the script with the run SCHEDULED; if SLURM refuses it, restore the run's status.

    Returns:
        The new job's id.
    """
    run_id, spool_root = run.info.run_id, script.parent / "spool"
    earlier_job = run.data.tags.get(JOB_ID_TAG, "")
    earlier_jobs = {earlier_job.partition(";")[0], *list_started_jobs(run.data.tags)}
    script.touch()  # `reconcile` then waits until SLURM has the new job
    targets = [store]
    if records.is_spool(spool_root / run_id):  # so that a later upload does not undo it
        targets.append(open_spool(spool_root))
    config_keys = [*_read_raw_config(script)]
    for target in targets:
        target.update_run(run_id, status="SCHEDULED")
        # If this process is killed, the job is found by its folder.
        set_tags(target, run_id, {JOB_ID_TAG: "", STATUS_SOURCE_TAG: "", STATE_TAG: ""})
    try:
        job_id = client.submit_job(script, variables, config_keys, options, earlier_jobs)
    except (SlurmError, KeyboardInterrupt):
        status = run.info.status if run.info.status in FINAL_STATUSES else "KILLED"
        for target in targets:
            target.set_tag(run_id, JOB_ID_TAG, earlier_job)
            target.set_terminated(run_id, status, end_time=run.info.end_time)
        raise
    for target in targets:
        target.set_tag(run_id, JOB_ID_TAG, job_id)
        if earlier_job:  # the run continues after its end
            clear_description(target, target.get_run(run_id), format_subject(earlier_job))
    return job_id
