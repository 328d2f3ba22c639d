"""What SLURM's programs say: of jobs that are there, that are gone, and on a bad day."""

import json
from types import SimpleNamespace

import pytest

from pyclassify.slurm import client
from pyclassify.slurm.states import (
    STATES,
    Job,
    JobNotFoundError,
    SlurmError,
    SlurmUnavailableError,
)
from pyclassify.slurm.status import derive_outcome
from tests.support import slurm_jobs
from tests.support.slurm_jobs import say, say_in_turn

GONE = say(stderr="slurm_load_jobs error: Invalid job id specified\n", code=1)
BUSY = ("", "slurm_load_jobs error: Socket timed out on send/recv operation\n", 1)
DOWN = ("", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", 1)


@pytest.fixture
def put(monkeypatch, tmp_path):
    """Put a program in the place of one of SLURM's; nothing waits between tries."""
    (tmp_path / "bin").mkdir()
    slurm_jobs.first_on_path(monkeypatch, tmp_path / "bin")
    monkeypatch.setattr(client, "RETRY_DELAYS_SECONDS", (0.0, 0.0))
    return lambda name, code: slurm_jobs.put(tmp_path / "bin", name, code)


@pytest.mark.parametrize(
    ("version", "job_id", "state", "status", "words"),
    [
        ("2.6.5", "1", "COMPLETED", "FINISHED", ""),
        ("2.6.5", "2", "CANCELLED", "KILLED", f"{STATES['CANCELLED'].reason} by "),
        ("2.6.5", "3", "NODE_FAIL", "FAILED", STATES["NODE_FAIL"].reason),
        ("2.6.5", "4", "TIMEOUT", "FAILED", STATES["TIMEOUT"].reason),
        ("2.6.5", "5", "FAILED", "FAILED", f"{STATES['FAILED'].reason}, exit code 1"),
        ("2.6.5", "6", "RUNNING", "RUNNING", ""),
        ("24.05.3", "8183088", "FAILED", "FAILED", STATES["FAILED"].reason),
        ("24.05.3", "8183089", "COMPLETED", "FINISHED", ""),
    ],
)
def test_jobs_that_the_queue_has_forgotten(put, version, job_id, state, status, words):
    put("squeue", GONE)
    put("sacct", slurm_jobs.replay(version))

    job = client.find_job(job_id)
    outcome = derive_outcome(job)

    assert (job.state, outcome.status) == (state, status)
    assert outcome.reason.startswith(words)


def test_job_that_neither_knows_is_an_error_of_its_own(put):
    put("squeue", GONE)
    put("sacct", slurm_jobs.replay("24.05.3"))
    with pytest.raises(JobNotFoundError, match=r"squeue .* job 7\b.*sacct .* job 7\b"):
        client.find_job("7")


def test_queue_that_answers_without_the_job_has_forgotten_it(put):
    put("squeue", say("70|RUNNING|None|n1|0:05\n"))  # as with -M, where it is no error
    put("sacct", slurm_jobs.replay("2.6.5"))

    assert client.find_job("4").state == "TIMEOUT"
    with pytest.raises(JobNotFoundError, match=r"squeue has no job 7\b"):
        client.find_job("7")


def test_cluster_without_accounting_says_so(put):
    put("squeue", GONE)
    put("sacct", say(stderr="SLURM accounting storage is disabled\n", code=1))
    with pytest.raises(JobNotFoundError, match=r"sacct can't say .* storage is disabled"):
        client.find_job("7")


def test_what_a_site_says_beside_the_rows_is_passed_over(put):
    put("squeue", say("Site-specific preamble here.\n7|PENDING|Resources||0:00\n\nMore.\n"))
    assert client.find_job("7") == Job("7", "PENDING", "Resources", "", "0:00")


def test_busy_controller_is_asked_again(put, tmp_path):
    answers = [BUSY, BUSY, ("7|RUNNING|None|n1|0:05\n",)]
    put("squeue", say_in_turn(tmp_path / "turn", *answers))
    assert client.find_job("7").state == "RUNNING"


def test_controller_that_is_down_says_nothing_of_the_job(put):
    put("squeue", say(*DOWN))
    put("sacct", slurm_jobs.replay("2.6.5"))

    assert client.find_job("1").state == "COMPLETED"  # accounting has its end
    with pytest.raises(SlurmUnavailableError, match="Unable to contact slurm controller"):
        client.find_job("6")  # which may have ended since


LOST = ("Socket timed out on send/recv", "Zero Bytes were transmitted", "Connection reset by peer")


@pytest.mark.parametrize("words", LOST)
def test_submission_whose_answer_was_lost_is_not_made_twice(put, tmp_path, words):
    folder = tmp_path / "run"
    put("sbatch", say_in_turn(tmp_path / "turn", ("", f"sbatch: error: {words}\n", 1), ("8\n",)))
    rows = say_in_turn(tmp_path / "asked", BUSY, (f"6|/elsewhere\n7|{folder}\n",))
    put("squeue", f"import sys\nassert 'all' in sys.argv  # it may have ended by now\n{rows}")

    assert client.submit_job(folder / "job.sh", {}, []) == "7"
    assert (tmp_path / "turn").read_text() == "1"


def test_last_try_whose_answer_was_lost_is_looked_for(put, tmp_path):
    put("sbatch", say_in_turn(tmp_path / "turn", DOWN, DOWN, BUSY))
    put("squeue", say(f"7|{tmp_path}\n"))
    assert client.submit_job(tmp_path / "job.sh", {}, []) == "7"


def test_submission_that_was_never_heard_is_made_again(put, tmp_path):
    put("sbatch", say_in_turn(tmp_path / "turn", DOWN, ("8\n",)))
    put("squeue", say(f"7|{tmp_path}\n"))
    assert client.submit_job(tmp_path / "job.sh", {}, []) == "8"


def test_submission_whose_answers_are_all_lost_is_an_error(put, tmp_path):
    put("sbatch", say_in_turn(tmp_path / "turn", BUSY))
    put("squeue", say(f"6|{tmp_path}/other\n"))

    with pytest.raises(SlurmUnavailableError, match="Socket timed out"):
        client.submit_job(tmp_path / "job.sh", {}, [])
    assert (tmp_path / "turn").read_text() == "3"


def test_submission_that_hangs_is_ended_and_looked_for(put, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 1.0)
    put("sbatch", f"open({str(tmp_path / 'turn')!r}, 'a').write('1')\nimport time; time.sleep(600)")
    put("squeue", say(f"7|{tmp_path}\n"))

    assert client.submit_job(tmp_path / "job.sh", {}, []) == "7"
    assert (tmp_path / "turn").read_text() == "1"


def test_program_that_hangs_says_nothing(monkeypatch):
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 0.1)
    with pytest.raises(SlurmUnavailableError, match="sleep timed out"):
        client._run_command(["sleep", "600"], client._make_query_environment())


def test_id_of_a_job_is_found_among_what_a_site_says(put, tmp_path):
    put("sbatch", say("Welcome to 2 clusters\n8;west\nGood bye\n"))
    assert client.submit_job(tmp_path / "job.sh", {}, []) == "8;west"

    put("sbatch", say("Submitted batch job 8\n"))
    with pytest.raises(SlurmError, match=r"sbatch .*'Submitted batch job 8'"):
        client.submit_job(tmp_path / "job.sh", {}, [])


def test_refusal_is_in_sbatchs_own_words(put):
    lines = ["invalid partition specified: x", "Batch job submission failed: Invalid partition"]
    put("sbatch", say(stderr="".join(f"sbatch: error: {line}\n" for line in lines), code=1))
    with pytest.raises(SlurmError, match=r"^invalid partition specified: x; Batch job submission"):
        client.submit_job("job.sh", {}, [])


def test_cancelling_what_has_ended_is_no_error_but_a_refusal_is(put):
    ended = "scancel: error: Kill job error on job id 7: Invalid job id specified\n"
    put("scancel", say(stderr=ended, code=1))
    client.cancel_job("7")

    denied = "scancel: error: Kill job error on job id 7: Access/permission denied\n"
    put("scancel", say(stderr=denied))
    with pytest.raises(SlurmError, match="Access/permission denied"):
        client.cancel_job("7")

    put("scancel", say(stderr="scancel: error: Invalid user name: x\n", code=1))
    with pytest.raises(SlurmError, match=r"^Invalid user name: x$"):
        client.cancel_job("7")


def test_environment_of_the_submission_does_not_change_the_job(put, monkeypatch, tmp_path):
    outer = {"SLURM_NTASKS": "9", "SBATCH_TIMELIMIT": "1", "SBATCH_ACCOUNT": "mine", "RANK": "1"}
    for name, value in {**outer, "SBATCH_QOS": "low", "SLURM_CONF": "/a", "TOKEN": "t"}.items():
        monkeypatch.setenv(name, value)
    keep = f"import json, os; json.dump(dict(os.environ), open({str(tmp_path / 'seen')!r}, 'w'))"
    put("sbatch", f"{keep}\nprint(1)")

    client.submit_job(tmp_path / "job.sh", {"MLFLOW_TRACKING_URI": "uri"}, ["qos"])

    seen = json.loads((tmp_path / "seen").read_text())
    names = {*outer, "SBATCH_QOS", "SLURM_CONF", "TOKEN", "MLFLOW_TRACKING_URI"} & seen.keys()
    assert names == {"SBATCH_ACCOUNT", "SLURM_CONF", "TOKEN", "MLFLOW_TRACKING_URI"}


def test_where_there_is_no_slurm_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match=r"no squeue on PATH.*login node"):
        client.find_job("7")


def test_busy_slurm_is_asked_again_after_pauses_that_grow(monkeypatch, tmp_path):
    slurm_jobs.first_on_path(monkeypatch, tmp_path)
    slurm_jobs.put(tmp_path, "squeue", say(*DOWN))
    slept = []
    monkeypatch.setattr(client, "time", SimpleNamespace(sleep=slept.append))

    with pytest.raises(SlurmUnavailableError, match="Unable to contact"):
        client._run_with_retries(["squeue"])
    assert slept == [0.0, 1.0, 2.0, 4.0]


def test_state_says_what_to_do_next():
    resume = "`pyclassify slurm resume`"
    resumes = {name for name, state in STATES.items() if resume in state.reason}
    assert resumes == {"BOOT_FAIL", "LAUNCH_FAILED", "NODE_FAIL", "PREEMPTED", "RECONFIG_FAIL"}
    assert '"mem"' in STATES["OUT_OF_MEMORY"].reason
    assert '"time"' in STATES["TIMEOUT"].reason


def test_every_state_means_something():
    statuses = {"SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"}
    assert {state.status for state in STATES.values()} == statuses
    silent = [name for name, state in STATES.items() if state.ended and not state.reason]
    assert silent == ["COMPLETED"]


def test_state_that_nobody_knows_is_not_guessed(put):
    put("squeue", say("7|MOLTEN|None|n1|0:05\n"))
    with pytest.raises(SlurmError, match=r"job 7\b.*'MOLTEN'"):
        client.find_job("7")
