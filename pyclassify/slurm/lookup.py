"""The job of a run, by the run's id."""

from pathlib import Path

from pyclassify.slurm import client
from pyclassify.slurm.states import SlurmError
from pyclassify.slurm.submitted_run import SlurmRun


def of_run(run_id: str) -> SlurmRun:
    """The job of a run that was submitted, perhaps by another process.

    Args:
        run_id: The run's id, or the first eight or more digits of it.

    Raises:
        ValueError: There is no such run, or it is none of this backend.
        OSError: There are no runs here, or it has no job.
    """
    from pyclassify.tracking import search

    run = search.find_run(search.open_store(), run_id)
    run_id, tags = run.info.run_id, run.data.tags
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
