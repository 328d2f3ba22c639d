"""What squeue and sacct answer, as data."""

from dataclasses import dataclass

from pyclassify.slurm.states import STATES, SlurmError, State


@dataclass(frozen=True)
class Job:
    """What SLURM says of a job.

    Args:
        job_id: Its number.
        state: A key of `STATES`.
        reason: Why it waits or has ended, in SLURM's words; may be empty.
        nodes: Its nodes, as SLURM shortens them; empty before it starts.
        elapsed: Days, hours, minutes and seconds that it ran, as in `1-02:03:04`.
        exit_code: Its exit code and signal, `1:0`; empty while it runs.
    """

    job_id: str
    state: str
    reason: str = ""
    nodes: str = ""
    elapsed: str = ""
    exit_code: str = ""

    @property
    def meaning(self) -> State:
        """What the state means for the run."""
        return STATES[self.state]


def make_job(
    job_id: str, state: str, reason: str, nodes: str, elapsed: str, exit_code: str = ""
) -> Job:
    """Make a job of the columns of its row.

    Raises:
        SlurmError: Its state is none that is known.
    """
    name, _, by = state.partition(" ")
    name = name.rstrip("+")
    if name not in STATES:
        raise SlurmError(f"SLURM calls job {job_id} {state!r}, which is no state known here")
    nodes = "" if nodes in ("None assigned", "(null)") else nodes
    return Job(job_id, name, reason or by, nodes, elapsed, exit_code)


def rows_of(text: str, job_id: str, columns: int) -> list[list[str]]:
    """The rows of a job in an answer."""
    number = job_id.partition(";")[0]
    return [row for row in rows_among(text, columns) if row[0] == number]


def rows_among(text: str, columns: int) -> list[list[str]]:
    """The rows of an answer, among what a site's own wrappers may say before and after."""
    rows = [line.strip().split("|") for line in text.splitlines()]
    return [row[:columns] for row in rows if len(row) >= columns]
