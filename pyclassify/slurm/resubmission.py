"""`pyclassify slurm resume`: the job of a run submitted again, which goes on where it stopped."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from pyclassify.slurm import client, config, delivery, description, destination, status
from pyclassify.slurm.states import SlurmError
from pyclassify.slurm.submitted_run import SlurmRun
from pyclassify.slurm.values import TIME
from pyclassify.spool import records
from pyclassify.spool.records import FINAL

_PATIENCE = 60.0  # seconds for a job that is about to end
_ANEW = "`mlflow run --backend slurm` submits a new run"


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
    target = destination.resolve(mlflow.get_tracking_uri(), from_nodes=not spools)
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
    if limit is None:
        return []
    try:
        return [f"--time={TIME.read(limit)}"]
    except ValueError:
        raise ValueError(f"--time is {limit!r}; it takes {TIME.takes}") from None


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
    folder = Path(run.data.tags["slurm_folder"])
    job_id = run.data.tags.get("slurm_job_id") or client.find_by_folder(folder)
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
    known = {before.partition(";")[0], *run.data.tags.get("slurm_job_ids", "").split(",")}
    clients = [mlflow_client]
    if records.is_spool(root / run_id):  # what is delivered later must not undo it
        clients.append(delivery.open_spool(root))
    for each in clients:
        each.update_run(run_id, status="SCHEDULED")
        # Should this process die, the job is found by its folder.
        status.tag(each, run_id, {"slurm_job_id": "", status.BY: "", status.STATE: ""})
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
            description.forget(each, each.get_run(run_id), description.name_job(before))
    return job_id


def _final(run: Any) -> str:
    return run.info.status if run.info.status in FINAL else "KILLED"


def _given(script: Path) -> dict[str, Any]:
    """The configuration of the backend, as it was given."""
    return dict(json.loads((script.parent / "backend_config.json").read_text()))
