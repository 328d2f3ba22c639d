"""The cluster of these tests does what the tests of the SLURM backend rely on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import cluster, sweep
from tests.support.waiting import wait_until

TAKE_400_MB = f"{sys.executable} -c 'bytearray(400_000_000)'"


@pytest.fixture(scope="module", autouse=True)
def failed(cluster):
    """A job that failed, and that the controller forgets."""
    job = cluster.submit("exit 3")
    cluster.wait_for(job, "FAILED")
    return job


def visible_gpus(cluster, folder, *options):
    """CUDA_VISIBLE_DEVICES of each task of a job."""
    job = cluster.submit(
        """srun sh -c 'echo "$CUDA_VISIBLE_DEVICES"'""", f"--output={folder}/visible", *options
    )
    assert cluster.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED"
    return sorted((folder / "visible").read_text().split())


@pytest.mark.parametrize(
    ("options", "visible"),
    [
        ("--gpus-per-node=2 --ntasks-per-node=2", ["0,1", "0,1"]),
        ("--gpus-per-node=2 --ntasks-per-node=2 --nodes=2", ["0,1"] * 4),
        ("--gpus-per-task=1 --ntasks-per-node=2", ["0", "1"]),
    ],
)
def test_each_task_sees_the_gpus_that_slurm_gives_it(options, visible, cluster, tmp_path):
    assert visible_gpus(cluster, tmp_path, *options.split()) == visible


def test_a_job_without_gpus_sees_none(cluster, tmp_path):
    assert visible_gpus(cluster, tmp_path) == []


def test_a_job_has_the_gpus_that_are_left(cluster, tmp_path):
    first = cluster.submit("sleep 1000", "--gpus-per-node=3", "--nodelist=n1")
    cluster.wait_for(first, "RUNNING")

    assert visible_gpus(cluster, tmp_path, "--gpus-per-node=1", "--nodelist=n1") == ["3"]
    cluster.run("scancel", first)


@pytest.mark.skipif(
    not cluster.LIMITS_MEMORY, reason="memory.limit_in_bytes of cgroups is not root's to set"
)
def test_a_job_that_takes_more_than_its_memory_is_killed(cluster):
    job = cluster.submit(TAKE_400_MB, "--mem=100")

    assert cluster.wait_for(job, "OUT_OF_MEMORY", "COMPLETED", "FAILED") == "OUT_OF_MEMORY"


def test_a_job_fails_with_its_node(cluster):
    job = cluster.submit("sleep 1000", "--nodelist=n2", "--no-requeue")
    cluster.wait_for(job, "RUNNING")

    with cluster.crashed("n2"):
        assert cluster.wait_for(job, "NODE_FAIL") == "NODE_FAIL"
    assert cluster.wait_for(cluster.submit("true", "--nodelist=n2"), "COMPLETED") == "COMPLETED"


def test_accounting_knows_a_job_that_the_controller_forgot(failed, cluster):
    def is_forgotten():
        return f"JobId={failed} " not in cluster.run("scontrol", "show", "job", "--oneliner")

    wait_until(is_forgotten, "the controller has forgotten the job", pause=0.2)
    assert cluster.accounting(failed, "state", "exitcode") == "FAILED|3:0"


START = """
import sys
from tests.support.cluster import Cluster
cluster = Cluster()
cluster.start()
job = cluster.submit("sleep 1000")
cluster.wait_for(job, "RUNNING")
sys.stdout.write(str(cluster.folder) + "\\n")
sys.stdout.flush()
sys.stdin.read()
"""


def test_nothing_outlives_a_test_run_that_is_killed(cluster):
    run = subprocess.Popen(
        [sys.executable, "-c", START],
        cwd=Path(__file__).parents[2],
        env=cluster.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    folder = Path(run.stdout.readline().strip())
    assert len(sweep.using(folder)) > 6

    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    wait_until(lambda: not folder.exists(), "the cluster's folder is gone")
    assert sweep.using(folder) == []


def test_a_job_outlives_a_controller_that_is_down(cluster, tmp_path):
    job = cluster.submit(f"until [ -e {tmp_path}/end ]; do sleep 0.1; done")
    cluster.wait_for(job, "RUNNING")

    with cluster.controller_down(), pytest.raises(RuntimeError, match="Unable to contact slurm"):
        cluster.run("squeue")
    (tmp_path / "end").touch()
    assert cluster.wait_for(job, "COMPLETED") == "COMPLETED"
