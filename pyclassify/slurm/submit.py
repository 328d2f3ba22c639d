"""A run made and its job submitted."""

import json
import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyclassify.slurm import client, description, snapshot, status
from pyclassify.slurm.keys import Config
from pyclassify.slurm.logs import absolute, fill
from pyclassify.slurm.plan import Plan
from pyclassify.slurm.submitted_run import SlurmRun
from pyclassify.utils.masking import mask

_logger = logging.getLogger("mlflow.projects.slurm")


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
    if made.destination.warning:
        _logger.warning("%s", made.destination.warning)
    arguments = (project_uri, experiment_id, str(made.folder), version, made.entry_point)
    run = get_or_create_run(None, *arguments, made.given)
    run_id, folder = run.info.run_id, made.work_dir / run.info.run_id
    with _failing(mlflow_client, run_id):
        mlflow_client.update_run(run_id, status="SCHEDULED")
        script = _prepare(made, mlflow_client, run, folder)
        job_id = client.submit(script, _variables(made), [*made.config_given])
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
        words = mask(" ".join(str(error).split())) or type(error).__name__
        run = mlflow_client.get_run(run_id)
        description.describe(mlflow_client, run, "SLURM submission", words)
        raise


def _prepare(made: Plan, mlflow_client: Any, run: Any, folder: Path) -> Path:
    """Make the run's folder, and say in the run what is submitted; returns the script's path."""
    from mlflow import MlflowClient

    from pyclassify.spool.records import prepare

    run_id = run.info.run_id
    try:
        folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise OSError(
            f"{made.work_dir} can't be written ({error.strerror}); give a folder that compute "
            'nodes see as "work_dir" in the backend config'
        ) from error
    make_folders_of_logs(folder, made.config)
    names, left_out = made.files
    snapshot.take(made.folder, folder, names, left_out)
    for name, why in left_out.items():
        _logger.warning("%s %s, and is not in the snapshot", name, why)
    downloads = folder / "downloads"
    downloads.mkdir()
    script = folder / "job.sh"
    script.write_text(made.write_script(run_id, run.info.experiment_id, str(downloads)))
    given = made.config_given
    (folder / "backend_config.json").write_text(json.dumps(given, indent=2) + "\n")
    for name in ("job.sh", "backend_config.json"):
        mlflow_client.log_artifact(run_id, str(folder / name), status.FOLDER)
    status.tag(mlflow_client, run_id, _tags(made, folder))
    prepare(folder / "spool", MlflowClient(made.destination.uri), run_id)
    return script


def _variables(made: Plan) -> dict[str, str]:
    """What the job's environment has and the script does not: a URI that may have a password."""
    return {} if made.spools else {"MLFLOW_TRACKING_URI": made.destination.uri}


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
