"""The backend `slurm` of MLflow Projects: `mlflow run --backend slurm --backend-config JSON`."""

import logging
from typing import Any

from mlflow.projects.backend.abstract_backend import AbstractBackend

from pyclassify.slurm import plan
from pyclassify.slurm.proofread import check_script
from pyclassify.slurm.submit import submit
from pyclassify.slurm.submitted_run import SlurmRun

_logger = logging.getLogger("mlflow.projects.slurm")


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
            made = plan.make(project_uri, entry_point, params, version, backend_config)
            check_script(made.write_script("RUN_ID", experiment_id))
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
