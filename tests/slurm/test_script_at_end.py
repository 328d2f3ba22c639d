"""What the script asks SLURM at its end, and how long it waits for accounting."""

import subprocess

import pytest

from tests.support import slurm_jobs

SRUN_ENDS = "(exit 1) &\nwait $!\n"


def ask(folder, monkeypatch, queued, *booked, script=SRUN_ENDS):
    """Run the script's own question; `booked` is what each call of sacct finds, the last for ever.

    It is the states of the job, of its script and of srun's step.
    """
    answers = [" ".join(states) for states in booked]
    code = f"""
import sys
from pathlib import Path
counter = Path({str(folder / "turn")!r})
turn = int(counter.read_text()) if counter.exists() else 0
answers = {answers!r}
states = answers[min(turn, len(answers) - 1)].split()
if sys.argv[sys.argv.index("-j") + 1].endswith(".0"):
    states = states[2:]
counter.write_text(str(turn + 1))
print(*states, sep="\\n")
"""
    slurm_jobs.write_program(folder, "squeue", slurm_jobs.make_program(queued))
    slurm_jobs.write_program(folder, "sacct", code)
    slurm_jobs.write_program(folder, "sleep", "")
    slurm_jobs.prepend_to_path(monkeypatch, folder)
    functions = (
        slurm_jobs.render({}, {}).partition("\nfail() {")[2].partition("# Report the end")[0]
    )
    text = f"SLURM_JOB_ID=7\nfail() {{{functions}\n{script}query_slurm"
    return subprocess.check_output(["bash", "-c", text], text=True).split()


@pytest.mark.parametrize("late", [("RUNNING", "RUNNING"), ("RUNNING", "RUNNING", "RUNNING")])
def test_script_waits_until_accounting_has_how_sruns_step_ended(late, tmp_path, monkeypatch):
    ended = ("RUNNING", "RUNNING", "OUT_OF_MEMORY")

    for lag in (1, 2, 3):
        (tmp_path / "turn").unlink(missing_ok=True)
        booked = [*[late] * lag, ended]
        assert ask(tmp_path, monkeypatch, "RUNNING None", *booked)[2:] == [*ended]


def test_script_that_ends_before_srun_waits_for_nothing(tmp_path, monkeypatch):
    booked = ("RUNNING", "RUNNING")

    assert ask(tmp_path, monkeypatch, "RUNNING None", booked, script="")[2:] == [*booked]
    assert (tmp_path / "turn").read_text() == "1"


def test_script_waits_for_nothing_while_the_controller_is_silent(tmp_path, monkeypatch):
    booked = ("RUNNING", "RUNNING", "RUNNING")

    assert ask(tmp_path, monkeypatch, "", booked) == [*booked]
    assert (tmp_path / "turn").read_text() == "2"


def test_script_gives_up_on_accounting_that_lags(tmp_path, monkeypatch):
    booked = ("RUNNING", "RUNNING", "RUNNING")

    assert ask(tmp_path, monkeypatch, "RUNNING None", booked)[2:] == [*booked]


def find_older_job(folder, monkeypatch, *rows):
    """Run the script's own search for an older job of the run's folder, as job 7."""
    queue = "".join(f"{row}|{folder}\n" for row in rows)
    slurm_jobs.write_program(folder, "squeue", slurm_jobs.make_program(queue))
    slurm_jobs.prepend_to_path(monkeypatch, folder)
    name = "find_older_job"
    function = f"{name}() {{" + slurm_jobs.render({}, {}).partition(f"\n{name}() {{")[2]
    text = f"SLURM_JOB_ID=7\nrun_folder={folder}\n{function.partition(chr(10) + '}')[0]}\n}}\n"
    found = subprocess.run(["bash", "-c", f"{text}{name}"], capture_output=True, text=True)
    assert found.stderr == ""
    return found.stdout.strip()


@pytest.mark.parametrize(
    ("rows", "older"),
    [
        (("6_1|PENDING", "6_[2-9]|PENDING", "5+0|RUNNING", "7|RUNNING"), ""),
        (("6_1|PENDING", "5|RUNNING", "8|PENDING"), "5 RUNNING"),
    ],
)
def test_script_takes_no_element_of_an_array_for_an_older_job(rows, older, tmp_path, monkeypatch):
    assert find_older_job(tmp_path, monkeypatch, *rows) == older
