"""A run made and its job submitted."""

import argparse
import json
import logging
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow.projects.backend.abstract_backend import AbstractBackend

from pyclassify.slurm import client, config, environment, plan, reporter, snapshot
from pyclassify.slurm.config import Config
from pyclassify.slurm.plan import Plan
from pyclassify.slurm.script import check_script
from pyclassify.slurm.states import SlurmError
from pyclassify.slurm.status import BY, FOLDER, STATE, describe, forget, name_job, tag
from pyclassify.slurm.submitted_run import (
    SlurmRun,
    absolute,
    fill,
    find_job_id,
    list_job_numbers,
)
from pyclassify.spool import records
from pyclassify.spool.records import FINAL_STATUSES
from pyclassify.utils.text import format_error

_logger = logging.getLogger("mlflow.projects.slurm")
_PATIENCE = 60.0  # seconds for a job that is about to end
_ANEW = "`mlflow run --backend slurm` submits a new run"


def submit(
    made: Plan, project_uri: str, version: str | None, experiment_id: str, shows: bool = False
) -> SlurmRun:
    """Make the run and submit its job.

    Args:
        made: The plan.
        project_uri: The project's URI as it was given.
        version: The commit or branch as it was given.
        experiment_id: The run's experiment.
        shows: Whether waiting for it shows the job's state and logs.

    Raises:
        OSError: It could not be submitted; the run is FAILED, and says why.
    """
    from mlflow import MlflowClient
    from mlflow.projects.utils import get_or_create_run

    mlflow_client = MlflowClient()
    if made.tracking_store.warning:
        _logger.warning("%s", made.tracking_store.warning)
    arguments = (project_uri, experiment_id, str(made.project_dir), version, made.entry_point)
    run = get_or_create_run(None, *arguments, made.parameters)
    run_id, folder = run.info.run_id, made.work_dir / run.info.run_id
    with _failing(mlflow_client, run_id):
        mlflow_client.update_run(run_id, status="SCHEDULED")
        script = _prepare(made, mlflow_client, run, folder)
        job_id = client.submit(script, _variables(made), [*made.raw_config])
    mlflow_client.set_tag(run_id, "slurm_job_id", job_id)
    log = fill(absolute(folder, made.config.output), job_id.partition(";")[0], made.job_name, "*")
    _logger.info("=== Run (ID '%s') is submitted as SLURM job %s ===", run_id, job_id)
    _logger.info("Its log: %s", log)
    _logger.info("Next: `pyclassify slurm logs -f %s`, or status or cancel", run_id)
    return SlurmRun(run_id, job_id, shows)


@contextmanager
def _failing(mlflow_client: Any, run_id: str) -> Iterator[None]:
    """Leave the run FAILED, and say why, if anything goes wrong."""
    try:
        yield
    except BaseException as error:
        mlflow_client.set_terminated(run_id, "FAILED")
        words = format_error(error)
        run = mlflow_client.get_run(run_id)
        describe(mlflow_client, run, "SLURM submission", words)
        raise


def _prepare(made: Plan, mlflow_client: Any, run: Any, folder: Path) -> Path:
    """Make the run's folder, and say in the run what is submitted; returns the script's path."""
    from mlflow import MlflowClient

    from pyclassify.spool.records import create_from_server

    run_id = run.info.run_id
    try:
        folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise OSError(
            f"{made.work_dir} can't be written ({error.strerror}); give a folder that compute "
            'nodes see as "work_dir" in the backend config'
        ) from error
    make_folders_of_logs(folder, made.config)
    names, left_out = made.snapshot_files
    snapshot.take_snapshot(made.project_dir, folder, names, left_out)
    for name, why in left_out.items():
        _logger.warning("%s %s, and is not in the snapshot", name, why)
    downloads = folder / "downloads"
    downloads.mkdir()
    script = folder / "job.sh"
    script.write_text(made.render_script(run_id, run.info.experiment_id, str(downloads)))
    given = made.raw_config
    (folder / "backend_config.json").write_text(json.dumps(given, indent=2) + "\n")
    for name in ("job.sh", "backend_config.json"):
        mlflow_client.log_artifact(run_id, str(folder / name), FOLDER)
    tag(mlflow_client, run_id, _tags(made, folder))
    create_from_server(folder / "spool", MlflowClient(made.tracking_store.uri), run_id)
    return script


def _variables(made: Plan) -> dict[str, str]:
    """What the job's environment has and the script does not: a URI that may have a password."""
    return {} if made.uses_spool else {"MLFLOW_TRACKING_URI": made.tracking_store.uri}


def make_folders_of_logs(folder: Path, config: Config) -> None:
    """Make the folders that SLURM does not: without them it ends the job without a word.

    Args:
        folder: The run's folder.
        config: The configuration.

    Raises:
        OSError: One can't be made.
    """
    for key in ("output", "error"):
        parent = (folder / getattr(config, key)).parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"the folder {parent} can't be made ({error.strerror}); give another file as "
                f'"{key}" in the backend config'
            ) from error


def _tags(made: Plan, folder: Path) -> Mapping[str, str]:
    return {
        "mlflow.project.backend": "slurm",
        "slurm_folder": str(folder),
        "slurm_job_name": made.job_name,
        "slurm_partition": made.config.partition or "",
        "slurm_nodes": str(made.topology.nodes),
        "slurm_submit_host": socket.gethostname(),
        "slurm_output": absolute(folder, made.config.output),
        "slurm_error": absolute(folder, made.config.error),
    }


class SlurmBackend(AbstractBackend):
    """Makes a run and submits it as a job, which sees to the run's status itself."""

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
            project_uri: The project's folder, or URI in git.
            entry_point: The entry point's name.
            params: Its parameters.
            version: The commit or branch of a project in git.
            backend_config: The configuration (`pyclassify.slurm.config`), with MLflow's own keys.
            tracking_uri: Not used: it is MLflow's own.
            experiment_id: The run's experiment.

        Returns:
            The run, whose job waits or runs; with "wait" or `synchronous` it has ended well.

        Raises:
            mlflow.exceptions.ExecutionException: Something given is wrong, SLURM does not take the
                job, or it was waited for and failed.
        """
        from mlflow.exceptions import ExecutionException
        from mlflow.utils.process import ShellCommandException

        waits = bool(backend_config.get("wait") or backend_config.get("SYNCHRONOUS"))
        try:
            made = plan.make_plan(project_uri, entry_point, params, version, backend_config)
            check_script(made.render_script("RUN_ID", experiment_id))
            made.environment.build()
            submitted = submit(made, project_uri, version, experiment_id, waits)
            if waits:
                _wait(submitted)
            return submitted
        except (ValueError, OSError, ShellCommandException) as error:
            raise ExecutionException(str(error)) from error


def _wait(submitted: SlurmRun) -> None:
    from mlflow.exceptions import ExecutionException

    try:
        succeeded = submitted.wait()
    except KeyboardInterrupt:
        became, status = submitted.cancel(), submitted.get_status()
        _logger.warning(
            "=== Job %s: %s; run %s: %s ===", submitted.job_id, became, submitted.run_id, status
        )
        raise
    if not succeeded:
        # Raised here, as MLflow would call a run FAILED that is KILLED (mlflow.projects._wait_for).
        status = submitted.get_status()
        raise ExecutionException(
            f"Run {submitted.run_id} is {status}; its description says why, and so does "
            f"`pyclassify slurm logs {submitted.run_id}`"
        )


def resume(asked: argparse.Namespace) -> int:
    """Submit the script of a run again, under the same run.

    Args:
        asked: `run`, the run's id or its first digits; and `time`, a time limit in place of the
            script's, or nothing.

    Returns:
        The exit code.

    Raises:
        ValueError: The run can't go on; why, and the next move.
        OSError: SLURM refuses it, or does not answer; the run stays as it was.
    """
    import mlflow

    from pyclassify.tracking import search

    mlflow_client = search.open_store()
    run = search.find_run(mlflow_client, asked.run)
    run_id = run.info.run_id
    script = _find_script(run)
    spools = config.parse_config(_given(script)).tracking == "spool"
    target = environment.resolve_tracking_uri(mlflow.get_tracking_uri(), from_nodes=not spools)
    _wait_for_the_end(run)
    run = mlflow_client.get_run(run_id)
    if run.info.status == "FINISHED":
        raise ValueError(f"the run {run_id} is FINISHED, and has nothing to go on with; {_ANEW}")
    variables = {} if spools else {"MLFLOW_TRACKING_URI": target.uri}
    job_id = _submit(mlflow_client, run, script, variables, _options(asked))
    sys.stdout.write(
        f"run {run_id} is submitted again as SLURM job {job_id}\n"
        f"next: `pyclassify slurm logs -f {run_id}`, or status or cancel\n"
    )
    return 0


def _options(asked: argparse.Namespace) -> list[str]:
    limit = getattr(asked, "time", None)
    return [] if limit is None else [f"--time={config.parse_time_limit(limit)}"]


def _find_script(run: Any) -> Path:
    """The script of a run's job, in the run's folder."""
    run_id, tags = run.info.run_id, run.data.tags
    if "slurm_folder" not in tags:
        raise ValueError(
            f"the run {run_id} is none of the backend slurm; `pyclassify resume {run_id}` goes on "
            "with it here"
        )
    script = Path(tags["slurm_folder"]) / "job.sh"
    if not script.is_file():
        host = tags.get("slurm_submit_host", "")
        raise ValueError(
            f"the run {run_id} has no {script} any more, or {host} alone sees it, where it was "
            f"submitted; without that folder there is nothing to go on from: {_ANEW}"
        )
    return script


def _wait_for_the_end(run: Any) -> None:
    """See that the run's jobs have ended, and that its status says how."""
    run_id = run.info.run_id
    job_id = find_job_id(run)
    if not job_id:  # SLURM never took one
        return
    submitted, end = SlurmRun(run_id, job_id), time.monotonic() + _PATIENCE
    try:
        while (job := client.find(job_id)).state == "COMPLETING" and time.monotonic() < end:
            time.sleep(1.0)
    except client.JobUnknown:  # it ended long ago
        return
    if not job.meaning.ended:
        raise ValueError(
            f"the run {run_id} has a job that has not ended: {job_id} is {job.state}; let it go "
            f"on, or cancel it first by `pyclassify slurm cancel {run_id}`"
        )
    submitted.reconcile(job)


def _submit(
    mlflow_client: Any, run: Any, script: Path, variables: dict[str, str], options: list[str]
) -> str:
    """Submit the script, with the run SCHEDULED; if SLURM refuses it the run is as it was."""
    run_id, root, given = run.info.run_id, script.parent / "spool", _given(script)
    before = run.data.tags.get("slurm_job_id", "")
    known = {before.partition(";")[0], *list_job_numbers(run.data.tags)}
    script.touch()  # SLURM may not know the new job at once, and `reconcile` waits for it
    clients = [mlflow_client]
    if records.is_spool(root / run_id):  # what is delivered later must not undo it
        clients.append(reporter.open_spool(root))
    for each in clients:
        each.update_run(run_id, status="SCHEDULED")
        # Should this process die, the job is found by its folder.
        tag(each, run_id, {"slurm_job_id": "", BY: "", STATE: ""})
    try:
        job_id = client.submit(script, variables, [*given], options, known)
    except (SlurmError, KeyboardInterrupt):
        for each in clients:
            each.set_tag(run_id, "slurm_job_id", before)
            each.set_terminated(run_id, _final(run), end_time=run.info.end_time)
        raise
    for each in clients:
        each.set_tag(run_id, "slurm_job_id", job_id)
        if before:  # that was not the run's end
            forget(each, each.get_run(run_id), name_job(before))
    return job_id


def _final(run: Any) -> str:
    return run.info.status if run.info.status in FINAL_STATUSES else "KILLED"


def _given(script: Path) -> dict[str, Any]:
    """The configuration of the backend, as it was given."""
    return dict(json.loads((script.parent / "backend_config.json").read_text()))
