"""A run's final status, from what SLURM says of its job."""

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyclassify.slurm.answers import Job
from pyclassify.slurm.states import STATES
from pyclassify.tracking.masking import mask

FINAL = ("FINISHED", "FAILED", "KILLED")
FOLDER = "slurm"  # of artifacts

_LAST_LINES = 20
_LAST_BYTES = 4000  # some of MLflow's servers take 5000 for a description
_NOTE = "mlflow.note.content"  # MLflow's tag for a run's description


@dataclass(frozen=True)
class Ending:
    """How a job ended, or goes on.

    Args:
        status: The MLflow status of its run.
        words: Why, for the run's description; empty where all is well.
    """

    status: str
    words: str = ""


def of_job(job: Job) -> Ending:
    """What a job's state means."""
    words = job.meaning.words
    if job.reason.startswith("by "):
        words += f" {_name_user(job.reason)}"
    if job.state == "FAILED" and job.exit_code:
        words += f", exit code {job.exit_code.partition(':')[0]}"
    return Ending(job.meaning.status, words)


def of_script(exit_code: int, said: str) -> Ending:
    """What the end of a job's script means.

    Args:
        exit_code: Its exit code so far.
        said: What SLURM says of the job meanwhile: the queue's state and reason in the first line,
            accounting's states of the job and then its steps in those that follow.
    """
    if exit_code == 0:
        return Ending("FINISHED")
    queued, *booked = said.splitlines() or [""]
    booked = [line for line in booked if line.strip()]
    states = [line.split()[0] for line in booked]
    if "OUT_OF_MEMORY" in states:  # of a step, which the job's own state follows
        return of_job(Job("", "OUT_OF_MEMORY"))
    if not queued.startswith("RUNNING"):  # the script was told to end
        state = states[0] if states else ""
        if state in STATES and STATES[state].ended:
            return of_job(Job("", state, booked[0].partition(" ")[2]))
        if state == "REQUEUED" or queued.startswith(("PENDING", "REQUEUE", "SPECIAL_EXIT")):
            return Ending("SCHEDULED")
        if queued.startswith("COMPLETING"):
            return of_job(Job("", "TIMEOUT" if "TimeLimit" in queued else "CANCELLED"))
    if exit_code > 128:
        return Ending("FAILED", f"the job was ended by signal {exit_code - 128}")
    return Ending("FAILED", f"the job ended with exit code {exit_code}")


def settle(client: Any, run_id: str, ending: Ending, job_id: str, logs: list[Path]) -> str:
    """Give a run its final status, the reason and the logs.

    A FAILED or KILLED of the training's stays, and so does FINISHED where the job ended well.

    Args:
        client: An `MlflowClient`.
        run_id: The run.
        ending: How its job ended.
        job_id: The job's number.
        logs: Its stdout and stderr; those that are not there are passed over.

    Returns:
        The status that the run has now.
    """
    run = client.get_run(run_id)
    status = run.info.status
    # MLflow itself says FINISHED when Python exits, whatever the exit code.
    if status not in FINAL or (status == "FINISHED" and ending.status != status):
        status = ending.status
    words = ending.words if ending.status == status else "the training said so"
    try:
        if status != "FINISHED":
            describe(client, run, f"SLURM job {job_id}: {words}.", *_quote_last_lines(logs))
    finally:  # whoever sees the status finds the reason, but a status there must be
        if status != run.info.status:
            client.set_terminated(run_id, status)
    kept = {each.path for each in client.list_artifacts(run_id, FOLDER)}
    for log in dict.fromkeys(logs):
        if log.is_file() and f"{FOLDER}/{log.name}" not in kept:
            client.log_artifact(run_id, str(log), FOLDER)
    return str(status)


def tag(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run, all at once: each write may be a sync of the disk."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def describe(client: Any, run: Any, words: str, *more: str) -> None:
    """Add to a run's description, once.

    Args:
        client: An `MlflowClient`.
        run: The run.
        words: A sentence that says what it is about.
        more: Paragraphs after it.
    """
    note = run.data.tags.get(_NOTE, "")
    subject = words.partition(": ")[0]
    if subject not in note:
        client.set_tag(
            run.info.run_id, _NOTE, "\n\n".join(each for each in (note, words, *more) if each)
        )


def _quote_last_lines(logs: list[Path]) -> list[str]:
    if not logs or not logs[-1].is_file():
        return []
    with logs[-1].open("rb") as file:
        file.seek(-min(_LAST_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
        lines = file.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
    if not any(line.strip() for line in lines):
        return []
    text = "\n".join(mask(line) for line in lines)
    return ["The last lines of stderr:", f"```\n{text}\n```"]


def _name_user(by: str) -> str:
    number = by.removeprefix("by ")
    try:
        return f"by {pwd.getpwuid(int(number)).pw_name}"
    except (ValueError, KeyError):
        return by
