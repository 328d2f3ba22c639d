"""The status of a run whose job ended: derived from SLURM's states, and written to MLflow.

An outcome is derived from the state of a job (`derive_outcome`), or, while the job's script ends,
from its exit code and what SLURM reports by then (`derive_script_outcome`). `apply_outcome` writes
it to the run: the status, the reason in the description, and the logs of the job.

FAILED or KILLED as set by the training stays, and so does FINISHED where the job succeeded. A
status that the script derived from its exit code is a guess, which SLURM's later report replaces.
The tag `slurm_status_by` is "script" while the status is such a guess, and "slurm" once SLURM has
confirmed or corrected it. Otherwise the tag is absent, or empty after a restart.
"""

import os
import pwd
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyclassify.slurm.states import STATES, Job, infer_final_state
from pyclassify.spool.model_sender import fail_pending_models
from pyclassify.spool.records import FINAL_STATUSES
from pyclassify.utils.launcher import REQUEUE_EXIT_CODE, SLURM_FOLDER_TAG
from pyclassify.utils.masking import mask

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ARTIFACT_FOLDER = "slurm"
JOB_ID_TAG = "slurm_job_id"  # as sbatch gave it, perhaps with the cluster's name; empty before
JOB_IDS_TAG = "slurm_job_ids"  # the numbers of the run's jobs that have started, with commas
STATUS_SOURCE_TAG = "slurm_status_by"
STATE_TAG = "slurm_state"  # the final state of the job; `reconcile` skips a run that has it
INTERRUPTED_FILE = "interrupted"  # in the run's folder: the training exited with code 75
RESUME_HINT = "run `pyclassify slurm resume RUN_ID`"
_QUOTED_LINES = 20
_QUOTED_BYTES = 4000  # some of MLflow's servers take 5000 for a description
_QUOTE_HEADING = "The last lines of stderr:"
_SIGNAL_HINTS = {
    int(signal.SIGUSR1): ", SIGUSR1, which warns of the time limit; the training has to catch it, "
    f"save, and exit with code {REQUEUE_EXIT_CODE}"
}


@dataclass(frozen=True)
class Outcome:
    """How a job ended, and what that means for its run.

    Args:
        status: The MLflow status of the run; SCHEDULED where the job is requeued.
        reason: What happened and what to do, for the description of the run; empty after a success.
        is_certain: Whether SLURM reports it. An outcome by the exit code of the script is a guess.

    Example:
        >>> derive_outcome(Job("7", "TIMEOUT")).status
        'FAILED'
    """

    status: str
    reason: str = ""
    is_certain: bool = True


INTERRUPTED = Outcome(
    "KILLED", f"a signal stopped the training, which saved a checkpoint and exited; {RESUME_HINT}"
)


def derive_outcome(job: Job) -> Outcome:
    """Derive the outcome from the state of a job."""
    reason = job.meaning.reason
    if job.reason.startswith("by "):
        reason += f" {_format_user(job.reason)}"
    if job.state == "FAILED" and job.exit_code:
        reason += f", exit code {job.exit_code.partition(':')[0]}"
    return Outcome(job.meaning.status, reason, is_certain=job.state != "FAILED")


def derive_run_outcome(run: "Run", job: Job) -> Outcome:
    """Derive the outcome of a run from its job, and from the file `interrupted` in its folder.

    If the training was interrupted and exited with code 75, the job is COMPLETED, but the run is
    KILLED.
    """
    folder = run.data.tags.get(SLURM_FOLDER_TAG, "")
    if job.state == "COMPLETED" and folder and Path(folder, INTERRUPTED_FILE).exists():
        return replace(INTERRUPTED, reason=INTERRUPTED.reason.replace("RUN_ID", run.info.run_id))
    return derive_outcome(job)


def derive_script_outcome(exit_code: int, slurm_report: str) -> Outcome:
    """Derive the outcome while a job's script ends, when SLURM may not have the final state yet.

    Args:
        exit_code: The exit code of the script so far.
        slurm_report: The output of `query_slurm` in the script: the first line is squeue's state
            and reason, the others are sacct's states of the job and then of its steps.
    """
    if exit_code == 0:
        return Outcome("FINISHED")
    queue, *accounting = slurm_report.splitlines() or [""]
    accounting = [line for line in accounting if line.strip()]
    states = [line.split()[0] for line in accounting]
    if "OUT_OF_MEMORY" in states:  # a step has it before the job
        return derive_outcome(Job("", "OUT_OF_MEMORY"))
    if not queue.startswith("RUNNING"):  # SLURM ends the script
        state = states[0] if states else ""
        # squeue first: to sacct a requeued job is PREEMPTED, and only later PENDING.
        if state == "REQUEUED" or queue.startswith(("PENDING", "REQUEUE", "SPECIAL_EXIT")):
            return Outcome("SCHEDULED")
        if state in STATES and STATES[state].ended:
            return derive_outcome(Job("", state, accounting[0].partition(" ")[2]))
        if state := infer_final_state(*queue.partition(" ")[::2]):
            return derive_outcome(Job("", state))
        if queue.startswith("COMPLETING"):
            return replace(derive_outcome(Job("", "CANCELLED")), is_certain=False)
    return _derive_from_exit_code(exit_code)


def _derive_from_exit_code(exit_code: int) -> Outcome:
    if exit_code == REQUEUE_EXIT_CODE:
        return INTERRUPTED
    reason = f"the job ended with exit code {exit_code}"
    if (number := exit_code - 128) > 0:
        reason = f"the job was ended by signal {number}{_SIGNAL_HINTS.get(number, '')}"
    return Outcome("FAILED", reason, is_certain=False)


def apply_outcome(
    client: "MlflowClient", run_id: str, outcome: Outcome, job_id: str, logs: Sequence[Path]
) -> str:
    """Write an outcome to its run: the final status, the reason, and the job's logs.

    Args:
        client: The tracking store.
        run_id: The run.
        outcome: How the run's job ended.
        job_id: The job.
        logs: The job's stdout and stderr; files that do not exist are skipped.

    Returns:
        The new status of the run.
    """
    run = client.get_run(run_id)
    status = resolve_status(run, outcome)
    was_guessed = run.data.tags.get(STATUS_SOURCE_TAG) == "script"
    changes = status != run.info.status or (was_guessed and outcome.is_certain)
    reason = outcome.reason if outcome.status == status else "the training set this status"
    subject = format_subject(job_id)
    try:
        if status == "FINISHED":
            clear_description(client, run, subject)
        elif changes or not _has_description(run, subject):
            update_description(client, run, subject, f"{reason}.", logs)
        if changes and was_guessed == outcome.is_certain:
            source = "slurm" if outcome.is_certain else "script"
            set_tags(client, run_id, {STATUS_SOURCE_TAG: source})
    finally:  # the reason comes first; if it can't be written, the status still is
        if status != run.info.status:
            client.set_terminated(run_id, status)
    if status in ("FAILED", "KILLED"):
        fail_pending_models(client, run)
    _log_job_logs(client, run_id, logs)
    return status


def resolve_status(run: "Run", outcome: Outcome) -> str:
    """The status of a run after an outcome; most often the one that the run has."""
    status = str(run.info.status)
    # MLflow sets FINISHED when Python exits, whatever the exit code.
    is_open = status not in FINAL_STATUSES or status == "FINISHED"
    was_guessed = run.data.tags.get(STATUS_SOURCE_TAG) == "script"
    return outcome.status if is_open or was_guessed else status


def set_tags(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run in one request, as each request may sync the disk of the store."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def format_subject(job_id: str) -> str:
    """Format the subject of a job's paragraph in a description, without the cluster's name."""
    return f"SLURM job {job_id.partition(';')[0]}".rstrip()


def update_description(
    client: "MlflowClient", run: "Run", subject: str, message: str, logs: Sequence[Path] = ()
) -> None:
    """Write a paragraph on a subject into a run's description; it replaces the previous one.

    Args:
        client: The tracking store.
        run: The run.
        subject: The beginning of the paragraph, before a colon.
        message: The rest of its line.
        logs: The job's stdout and stderr; the last lines of stderr are quoted.
    """
    text = "\n\n".join([f"{subject}: {message}", *_quote_last_lines(logs)])
    _replace_paragraph(client, run, subject, text)


def clear_description(client: "MlflowClient", run: "Run", subject: str) -> None:
    """Remove the paragraph on a subject from a run's description."""
    if _has_description(run, subject):
        _replace_paragraph(client, run, subject, "")


def _has_description(run: "Run", subject: str) -> bool:
    return bool(_match_paragraph(subject).search(_get_description(run)))


def _replace_paragraph(client: "MlflowClient", run: "Run", subject: str, text: str) -> None:
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

    description, replaced = _match_paragraph(subject).subn("", _get_description(run))
    description = description.strip("\n") if replaced else description
    paragraphs = [paragraph for paragraph in (description, text) if paragraph]
    client.set_tag(run.info.run_id, MLFLOW_RUN_NOTE, "\n\n".join(paragraphs))


def _get_description(run: "Run") -> str:
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

    return str(run.data.tags.get(MLFLOW_RUN_NOTE, ""))


def _match_paragraph(subject: str) -> re.Pattern[str]:
    """A pattern for the paragraph on a subject and the lines that it quotes."""
    quote = rf"\n\n{_QUOTE_HEADING}\n\n(`{{3,}})\n(?s:.*?)\n\1$"
    return re.compile(rf"(?:\A|\n\n){re.escape(subject)}: .*(?:{quote})?", re.MULTILINE)


def _quote_last_lines(logs: Sequence[Path]) -> list[str]:
    """Quote the end of the last log as a code block; an empty list where the log has no text."""
    if not logs or not logs[-1].is_file():
        return []
    with logs[-1].open("rb") as file:
        file.seek(-min(_QUOTED_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
        lines = file.read().decode(errors="replace").splitlines()[-_QUOTED_LINES:]
    if not any(line.strip() for line in lines):
        return []
    text = "\n".join(mask(line) for line in lines)
    fence = max(("```", *(f"{ticks}`" for ticks in re.findall("`+", text))), key=len)
    return [_QUOTE_HEADING, f"{fence}\n{text}\n{fence}"]


def _log_job_logs(client: "MlflowClient", run_id: str, logs: Sequence[Path]) -> None:
    """Log the logs of a job as artifacts, if they are new or have grown."""
    artifacts = client.list_artifacts(run_id, ARTIFACT_FOLDER)
    logged = {(artifact.path, artifact.file_size) for artifact in artifacts}
    for log in dict.fromkeys(logs):
        path = f"{ARTIFACT_FOLDER}/{log.name}"
        if log.is_file() and (path, log.stat().st_size) not in logged:
            client.log_artifact(run_id, str(log), ARTIFACT_FOLDER)


def _format_user(canceled_by: str) -> str:
    """Replace the user id in sacct's `by UID` by the user's name, if this host has it."""
    number = canceled_by.removeprefix("by ")
    try:
        return f"by {pwd.getpwuid(int(number)).pw_name}"
    except (ValueError, KeyError):
        return canceled_by
