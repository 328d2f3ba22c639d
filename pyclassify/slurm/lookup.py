"""The job of a run, by the run's id."""

from pathlib import Path

from pyclassify.slurm import client
from pyclassify.slurm.programs import SlurmError
from pyclassify.slurm.submitted import SlurmRun


def of_run(run_id: str) -> SlurmRun:
    """The job of a run that was submitted, perhaps by another process.

    Raises:
        ValueError: It is no run of this backend.
    """
    from mlflow import MlflowClient

    run = MlflowClient().get_run(run_id)
    tags = run.data.tags
    if "slurm_folder" not in tags:
        raise ValueError(
            f"the run {run_id} is none of the backend slurm; `mlflow run --backend slurm` makes one"
        )
    job_id = tags.get("slurm_job_id", "")
    if not job_id and run.info.status == "SCHEDULED":  # whoever submitted it was killed
        job_id = client.find_by_folder(Path(tags["slurm_folder"]))
    if not job_id:
        raise SlurmError(f"the run {run_id} has no job: SLURM did not take it, see its description")
    return SlurmRun(run_id, job_id)
