"""A run's final status, from what SLURM says of its job."""

import os
import pwd
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyclassify.slurm.states import STATES, Job, state_by
from pyclassify.spool.records import FINAL_STATUSES
from pyclassify.utils.launcher import REQUEUE_EXIT_CODE
from pyclassify.utils.masking import mask

FOLDER = "slurm"  # of artifacts
BY = "slurm_status_by"  # the tag that says who gave the run its status, where it may change
STATE = "slurm_state"  # the tag that says how the job ended; there is nothing to ask after it
RESUME = "go on by `pyclassify slurm resume RUN_ID`"
_SIGNALS = {
    int(signal.SIGUSR1): ", SIGUSR1: it warns of the time limit, and the training has "
    f"to catch it, save and leave with exit code {REQUEUE_EXIT_CODE}"
}


@dataclass(frozen=True)
class Ending:
    """How a job ended, or goes on.

    Args:
        status: The MLflow status of its run.
        words: Why, for the run's description; empty where all is well.
        certain: Whether SLURM says so; the script's exit code says less.
    """

    status: str
    words: str = ""
    certain: bool = True


STOPPED = Ending("KILLED", f"the training was told to stop, has saved and left; {RESUME}")
_NOTE = "mlflow.note.content"  # MLflow's tag for a run's description
_LAST_LINES = 20
_LAST_BYTES = 4000  # some of MLflow's servers take 5000 for a description
_QUOTED = "The last lines of stderr:"


def find_ending(job: Job) -> Ending:
    """What a job's state means."""
    words = job.meaning.words
    if job.reason.startswith("by "):
        words += f" {_name_user(job.reason)}"
    if job.state == "FAILED" and job.exit_code:
        words += f", exit code {job.exit_code.partition(':')[0]}"
    return Ending(job.meaning.status, words, certain=job.state != "FAILED")


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
        return find_ending(Job("", "OUT_OF_MEMORY"))
    if not queued.startswith("RUNNING"):  # the script was told to end
        state = states[0] if states else ""
        # The queue first: accounting has a job that makes room as PREEMPTED, and then once more.
        if state == "REQUEUED" or queued.startswith(("PENDING", "REQUEUE", "SPECIAL_EXIT")):
            return Ending("SCHEDULED")
        if state in STATES and STATES[state].ended:
            return find_ending(Job("", state, booked[0].partition(" ")[2]))
        if state := state_by(*queued.partition(" ")[::2]):
            return find_ending(Job("", state))
        if queued.startswith("COMPLETING"):
            return replace(find_ending(Job("", "CANCELLED")), certain=False)
    if exit_code == REQUEUE_EXIT_CODE:
        return STOPPED
    if exit_code > 128:
        words = f"the job was ended by signal {exit_code - 128}"
        return Ending("FAILED", words + _SIGNALS.get(exit_code - 128, ""), certain=False)
    return Ending("FAILED", f"the job ended with exit code {exit_code}", certain=False)


def settle(client: Any, run_id: str, ending: Ending, job_id: str, logs: list[Path]) -> str:
    """Give a run its final status, the reason and the logs.

    A FAILED or KILLED of the training's stays, and so does FINISHED where the job ended well. What
    the script made of its exit code gives way to what SLURM says later.

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
    status, guessed = becomes(run, ending), run.data.tags.get(BY) == "script"
    changes = status != run.info.status or (guessed and ending.certain)
    words = ending.words if ending.status == status else "the training said so"
    subject = name_job(job_id)
    try:
        if status == "FINISHED":
            forget(client, run, subject)
        elif changes or not tells(run, subject):
            describe(client, run, subject, f"{words}.", logs)
        if changes and guessed == ending.certain:
            tag(client, run_id, {BY: "slurm" if ending.certain else "script"})
    finally:  # whoever sees the status finds the reason, but a status there must be
        if status != run.info.status:
            client.set_terminated(run_id, status)
    kept = {(each.path, each.file_size) for each in client.list_artifacts(run_id, FOLDER)}
    for log in dict.fromkeys(logs):  # that of a job that started again has grown
        if log.is_file() and (f"{FOLDER}/{log.name}", log.stat().st_size) not in kept:
            client.log_artifact(run_id, str(log), FOLDER)
    return str(status)


def becomes(run: Any, ending: Ending) -> str:
    """The status that a run gets from its job's ending; most often the one that it has."""
    status = str(run.info.status)
    # MLflow itself says FINISHED when Python exits, whatever the exit code.
    open_yet = status not in FINAL_STATUSES or status == "FINISHED"
    guessed = run.data.tags.get(BY) == "script"
    return ending.status if open_yet or guessed else status


def tag(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run, all at once: each write may be a sync of the disk."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def _name_user(by: str) -> str:
    number = by.removeprefix("by ")
    try:
        return f"by {pwd.getpwuid(int(number)).pw_name}"
    except (ValueError, KeyError):
        return by


def name_job(job_id: str) -> str:
    """What a paragraph on a job begins with, whether or not its id names the cluster."""
    return f"SLURM job {job_id.partition(';')[0]}".rstrip()


def tells(run: Any, subject: str) -> bool:
    """Whether a run's description has a paragraph on a subject."""
    return bool(_find(subject).search(_read(run)))


def describe(client: Any, run: Any, subject: str, words: str, logs: Sequence[Path] = ()) -> None:
    """Say something in a run's description, in the place of what was said on the same subject.

    Args:
        client: An `MlflowClient`.
        run: The run.
        subject: What it is about.
        words: A line.
        logs: Stdout and stderr, whose last lines are told too.
    """
    more = _quote_last_lines(logs)
    _write(client, run, subject, "\n\n".join([f"{subject}: {words}", *more]))


def forget(client: Any, run: Any, subject: str) -> None:
    """Take back what was said on a subject."""
    if tells(run, subject):
        _write(client, run, subject, "")


def _write(client: Any, run: Any, subject: str, text: str) -> None:
    note, found = _find(subject).subn("", _read(run))
    note = note.strip("\n") if found else note
    client.set_tag(run.info.run_id, _NOTE, "\n\n".join(each for each in (note, text) if each))


def _read(run: Any) -> str:
    return str(run.data.tags.get(_NOTE, ""))


def _find(subject: str) -> re.Pattern[str]:
    """The paragraph on a subject, and what it quotes."""
    quote = rf"\n\n{_QUOTED}\n\n(`{{3,}})\n(?s:.*?)\n\1$"
    return re.compile(rf"(?:\A|\n\n){re.escape(subject)}: .*(?:{quote})?", re.MULTILINE)


def _quote_last_lines(logs: Sequence[Path]) -> list[str]:
    if not logs or not logs[-1].is_file():
        return []
    with logs[-1].open("rb") as file:
        file.seek(-min(_LAST_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
        lines = file.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
    if not any(line.strip() for line in lines):
        return []
    text = "\n".join(mask(line) for line in lines)
    fence = max(("```", *(f"{each}`" for each in re.findall("`+", text))), key=len)
    return [_QUOTED, f"{fence}\n{text}\n{fence}"]
