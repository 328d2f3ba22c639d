"""SLURM's commands: jobs found, forgotten, submitted and cancelled, and SLURM busy or down."""

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
from tests.support.slurm_jobs import make_program, make_program_in_turn

GONE = make_program(stderr="slurm_load_jobs error: Invalid job id specified\n", code=1)
BUSY = ("", "slurm_load_jobs error: Socket timed out on send/recv operation\n", 1)
DOWN = ("", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", 1)


@pytest.fixture
def put(monkeypatch, tmp_path):
    """Put a program in the place of one of SLURM's; nothing waits between tries."""
    (tmp_path / "bin").mkdir()
    slurm_jobs.prepend_to_path(monkeypatch, tmp_path / "bin")
    monkeypatch.setattr(client, "RETRY_DELAYS_SECONDS", (0.0, 0.0))
    return lambda name, code: slurm_jobs.write_program(tmp_path / "bin", name, code)


@pytest.mark.parametrize(
    ("version", "job_id", "state", "status", "reason"),
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
def test_find_job_forgotten_by_squeue_asks_sacct(put, version, job_id, state, status, reason):
    put("squeue", GONE)
    put("sacct", slurm_jobs.make_sacct(version))

    job = client.find_job(job_id)
    outcome = derive_outcome(job)

    assert (job.state, outcome.status) == (state, status)
    assert outcome.reason.startswith(reason)


def test_find_job_unknown_to_both_raises(put):
    put("squeue", GONE)
    put("sacct", slurm_jobs.make_sacct("24.05.3"))
    with pytest.raises(JobNotFoundError, match=r"squeue .* job 7\b.*sacct .* job 7\b"):
        client.find_job("7")


def test_find_job_absent_from_squeues_output_asks_sacct(put):
    put(
        "squeue", make_program("70|RUNNING|None|n1|0:05\n")
    )  # as with -M, where that is not an error
    put("sacct", slurm_jobs.make_sacct("2.6.5"))

    assert client.find_job("4").state == "TIMEOUT"
    with pytest.raises(JobNotFoundError, match=r"squeue has no job 7\b"):
        client.find_job("7")


def test_find_job_without_accounting_raises(put):
    put("squeue", GONE)
    put("sacct", make_program(stderr="SLURM accounting storage is disabled\n", code=1))
    with pytest.raises(JobNotFoundError, match=r"sacct failed .* storage is disabled"):
        client.find_job("7")


def test_find_job_skips_lines_of_a_sites_wrapper(put):
    put(
        "squeue", make_program("Site-specific preamble here.\n7|PENDING|Resources||0:00\n\nMore.\n")
    )
    assert client.find_job("7") == Job("7", "PENDING", "Resources", "", "0:00")


def test_find_job_retries_while_the_controller_is_busy(put, tmp_path):
    answers = [BUSY, BUSY, ("7|RUNNING|None|n1|0:05\n",)]
    put("squeue", make_program_in_turn(tmp_path / "turn", *answers))
    assert client.find_job("7").state == "RUNNING"


def test_find_job_with_the_controller_down_trusts_an_ended_job_alone(put):
    put("squeue", make_program(*DOWN))
    put("sacct", slurm_jobs.make_sacct("2.6.5"))

    assert client.find_job("1").state == "COMPLETED"  # accounting has its end
    with pytest.raises(SlurmUnavailableError, match="Unable to contact slurm controller"):
        client.find_job("6")  # which may have ended since


LOST = ("Socket timed out on send/recv", "Zero Bytes were transmitted", "Connection reset by peer")


@pytest.mark.parametrize("message", LOST)
def test_submit_job_with_lost_output_submits_once(put, tmp_path, message):
    folder = tmp_path / "run"
    put(
        "sbatch",
        make_program_in_turn(tmp_path / "turn", ("", f"sbatch: error: {message}\n", 1), ("8\n",)),
    )
    rows = make_program_in_turn(tmp_path / "asked", BUSY, (f"6|/elsewhere\n7|{folder}\n",))
    put("squeue", f"import sys\nassert 'all' in sys.argv  # it may have ended by now\n{rows}")

    assert client.submit_job(folder / "job.sh", {}, []) == "7"
    assert (tmp_path / "turn").read_text() == "1"


def test_submit_job_with_lost_output_of_the_last_try_finds_the_job(put, tmp_path):
    put("sbatch", make_program_in_turn(tmp_path / "turn", DOWN, DOWN, BUSY))
    put("squeue", make_program(f"7|{tmp_path}\n"))
    assert client.submit_job(tmp_path / "job.sh", {}, []) == "7"


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        (("7_1", "7_[2-9%3]"), ""),
        (("6", "9_1", "12+0", "12+1"), "6"),
        (("9", "10", "8_3"), "10"),
        (("5", "4"), "4"),
    ],
)
def test_find_job_by_folder_passes_over_arrays_and_heterogeneous_jobs(put, tmp_path, ids, found):
    put("squeue", make_program("".join(f"{number}|{tmp_path}\n" for number in ids)))
    assert client.find_job_by_folder(tmp_path, earlier_jobs=["5"]) == found


def test_submit_job_not_received_is_submitted_again(put, tmp_path):
    put("sbatch", make_program_in_turn(tmp_path / "turn", DOWN, ("8\n",)))
    put("squeue", make_program(f"7|{tmp_path}\n"))
    assert client.submit_job(tmp_path / "job.sh", {}, []) == "8"


def test_submit_job_with_all_outputs_lost_raises(put, tmp_path):
    put("sbatch", make_program_in_turn(tmp_path / "turn", BUSY))
    put("squeue", make_program(f"6|{tmp_path}/other\n"))

    with pytest.raises(SlurmUnavailableError, match="Socket timed out"):
        client.submit_job(tmp_path / "job.sh", {}, [])
    assert (tmp_path / "turn").read_text() == "3"


def test_submit_job_that_times_out_finds_the_job(put, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 1.0)
    put("sbatch", f"open({str(tmp_path / 'turn')!r}, 'a').write('1')\nimport time; time.sleep(600)")
    put("squeue", make_program(f"7|{tmp_path}\n"))

    assert client.submit_job(tmp_path / "job.sh", {}, []) == "7"
    assert (tmp_path / "turn").read_text() == "1"


def test_run_command_that_times_out_raises(monkeypatch):
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 0.1)
    with pytest.raises(SlurmUnavailableError, match="sleep timed out"):
        client._run_command(["sleep", "600"], client._make_query_environment())


def test_submit_job_finds_the_id_among_other_lines(put, tmp_path):
    put("sbatch", make_program("Welcome to 2 clusters\n8;west\nGood bye\n"))
    assert client.submit_job(tmp_path / "job.sh", {}, []) == "8;west"

    put("sbatch", make_program("Submitted batch job 8\n"))
    with pytest.raises(SlurmError, match=r"sbatch .*'Submitted batch job 8'"):
        client.submit_job(tmp_path / "job.sh", {}, [])


def test_submit_job_refused_raises_sbatchs_message(put):
    lines = ["invalid partition specified: x", "Batch job submission failed: Invalid partition"]
    put(
        "sbatch", make_program(stderr="".join(f"sbatch: error: {line}\n" for line in lines), code=1)
    )
    with pytest.raises(SlurmError, match=r"^invalid partition specified: x; Batch job submission"):
        client.submit_job("job.sh", {}, [])


def test_cancel_job_ended_passes_and_refused_raises(put):
    ended = "scancel: error: Kill job error on job id 7: Invalid job id specified\n"
    put("scancel", make_program(stderr=ended, code=1))
    client.cancel_job("7")

    denied = "scancel: error: Kill job error on job id 7: Access/permission denied\n"
    put("scancel", make_program(stderr=denied))
    with pytest.raises(SlurmError, match="Access/permission denied"):
        client.cancel_job("7")

    put("scancel", make_program(stderr="scancel: error: Invalid user name: x\n", code=1))
    with pytest.raises(SlurmError, match=r"^Invalid user name: x$"):
        client.cancel_job("7")


def test_submit_job_withholds_variables_that_change_the_job(put, monkeypatch, tmp_path):
    outer = {"SLURM_NTASKS": "9", "SBATCH_TIMELIMIT": "1", "SBATCH_ACCOUNT": "mine", "RANK": "1"}
    for name, value in {**outer, "SBATCH_QOS": "low", "SLURM_CONF": "/a", "TOKEN": "t"}.items():
        monkeypatch.setenv(name, value)
    save = f"import json, os; json.dump(dict(os.environ), open({str(tmp_path / 'seen')!r}, 'w'))"
    put("sbatch", f"{save}\nprint(1)")

    client.submit_job(tmp_path / "job.sh", {"MLFLOW_TRACKING_URI": "uri"}, ["qos"])

    seen = json.loads((tmp_path / "seen").read_text())
    names = {*outer, "SBATCH_QOS", "SLURM_CONF", "TOKEN", "MLFLOW_TRACKING_URI"} & seen.keys()
    assert names == {"SBATCH_ACCOUNT", "SLURM_CONF", "TOKEN", "MLFLOW_TRACKING_URI"}


def test_find_job_without_slurm_raises(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match=r"^squeue is not on PATH; .*login node"):
        client.find_job("7")


def test_run_with_retries_waits_longer_before_each_retry(monkeypatch, tmp_path):
    slurm_jobs.prepend_to_path(monkeypatch, tmp_path)
    slurm_jobs.write_program(tmp_path, "squeue", make_program(*DOWN))
    slept = []
    monkeypatch.setattr(client, "time", SimpleNamespace(sleep=slept.append))

    with pytest.raises(SlurmUnavailableError, match="Unable to contact"):
        client._run_with_retries(["squeue"])
    assert slept == [0.0, 1.0, 2.0, 4.0]


WAITS = """
    None Priority Resources Dependency BeginTime Licenses Reservation Cleaning Prolog Constraints
    BurstBufferResources BurstBufferStageIn FedJobLock SchedDefer JobArrayTaskLimit
"""
NEVER_STARTS = {
    "PartitionTimeLimit": '"time"',
    "QOSMaxWallDurationPerJobLimit": '"time"',
    "AssocMaxWallDurationPerJobLimit": '"time"',
    "PartitionNodeLimit": "-P num_nodes",
    "PartitionDown": '"partition"',
    "PartitionInactive": '"partition"',
    "QOSMaxCpuPerUserLimit": "your other jobs",
    "QOSMaxGRESPerUser": "your other jobs",
    "QOSMaxGRESPerJob": '"qos"',
    "QOSMaxNodePerJobLimit": '"qos"',
    "QOSMinGRES": '"qos"',
    "QOSGrpGRES": "other jobs of the QOS",
    "QOSGrpCPURunMinutesLimit": "other jobs of the QOS",
    "QOSGrpCPUMinutesLimit": "used up",
    "AssocGrpGRESMinutes": "used up",
    "AssocGrpGRESRunMinutes": "other jobs of the account",
    "AssocGrpCpuLimit": "other jobs of the account",
    "AssocMaxJobsLimit": "your other jobs",
    "AssocMaxGRESPerJob": '"account"',
    "InvalidAccount": '"account"',
    "InvalidQOS": '"qos"',
    "AccountNotAllowed": '"account"',
    "MaxMemPerLimit": '"mem"',
    "MaxGRESPerAccount": '"account"',
    "BadConstraints": '"constraint"',
    "ReqNodeNotAvail, UnavailableNodes:n[1-2]": '"nodelist"',
    "ReqNodeNotAvail, May be reserved for other job": '"nodelist"',
    "ReservationDeleted": '"reservation"',
    "DependencyNeverSatisfied": '"dependency"',
    "JobHeldUser": "`scontrol release 7`",
    "launch failed requeued held": "`scontrol release 7`",
    "job requeued in held state": "`scontrol release 7`",
}


@pytest.mark.parametrize("reason", WAITS.split())
def test_reason_that_passes_by_itself_has_no_advice(reason):
    assert Job("7", "PENDING", reason).advice == ""


@pytest.mark.parametrize(("reason", "advice"), NEVER_STARTS.items())
def test_reason_that_does_not_pass_says_what_to_change(reason, advice):
    assert advice in Job("7;west", "PENDING", reason).advice
    assert Job("7", "RUNNING", reason).advice == Job("7", "CANCELLED", reason).advice == ""


def test_accounting_of_typed_gpus_counts_each_once():
    assert client._count_gpus("billing=2,gres/gpu:a100=2,gres/gpu=2,node=1") == 2
    assert client._count_gpus("cpu=2,gres/gpu:a100=2,gres/gpu:v100=1,node=1") == 3
    assert client._count_gpus("cpu=2,gres/gpu=4") == 4
    assert client._count_gpus("cpu=2,gres/gpumem=4G,node=1") == 0


def test_states_name_the_next_step():
    resume = "`pyclassify slurm resume`"
    resumes = {name for name, state in STATES.items() if resume in state.reason}
    assert resumes == {"BOOT_FAIL", "LAUNCH_FAILED", "NODE_FAIL", "PREEMPTED", "RECONFIG_FAIL"}
    assert '"mem"' in STATES["OUT_OF_MEMORY"].reason
    assert '"time"' in STATES["TIMEOUT"].reason


def test_states_have_a_status_and_a_reason_where_they_end():
    statuses = {"SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"}
    assert {state.status for state in STATES.values()} == statuses
    silent = [name for name, state in STATES.items() if state.ended and not state.reason]
    assert silent == ["COMPLETED"]


def test_find_job_in_an_unknown_state_raises(put):
    put("squeue", make_program("7|MOLTEN|None|n1|0:05\n"))
    with pytest.raises(SlurmError, match=r"job 7\b.*'MOLTEN'"):
        client.find_job("7")
