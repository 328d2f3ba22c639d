"""Jobs of a demo on the tests' SLURM cluster: one run of each status."""

import json
import re
from contextlib import contextmanager

from tests.support.cluster import Cluster, missing
from tests.support.waiting import wait_until

# Of trainings that take seconds, and of one that is still running when the picture is taken.
_TRAINING = "-P config=configs/synthetic.yaml -P accelerator=cpu"
_TRAINING += " -P data.train_size=400 -P data.val_size=100 -P data.test_size=100"


@contextmanager
def start_cluster():
    """Start a cluster; its environment variables.

    Raises:
        RuntimeError: Something that it needs is missing.
    """
    if reason := missing():
        raise RuntimeError(reason)
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


class Jobs:
    """Submissions of a demo.

    Args:
        demo: The demo.
        cluster: The cluster.
    """

    def __init__(self, demo, cluster):
        self.demo, self.cluster = demo, cluster
        self.env = {
            "SLURM_CONF": cluster.env["SLURM_CONF"],
            "PATH": f"{demo.env['PATH']}:/usr/sbin:/sbin",
            "MLFLOW_EXPERIMENT_NAME": "Jobs",
            "OMP_NUM_THREADS": "1",
        }
        config = {"partition": "main", "time": 30, "mem": "3G", "environment": "$VIRTUAL_ENV"}
        self.config = config

    def submit(self, name, options, **config):
        """Submit a training; return the IDs of the run and the job."""
        path = self.demo.project / "slurm.json"
        path.write_text(json.dumps({**self.config, **config}))
        command = f"mlflow run . --backend slurm --backend-config slurm.json --run-name {name}"
        output = self.demo.run(f"{command} {_TRAINING} {options}", **self.env)
        return re.search(r"\(ID '(\w+)'\) is submitted as SLURM job (\d+)", output).groups()

    @property
    def experiment_id(self):
        name = self.env["MLFLOW_EXPERIMENT_NAME"]
        return self.demo.client.get_experiment_by_name(name).experiment_id

    def wait_for(self, run_id, status):
        """Wait for the status of a run.

        Raises:
            RuntimeError: The run has ended otherwise.
        """

        def has_come():
            found = self.demo.client.get_run(run_id).info.status
            if found in ("FAILED", "FINISHED", "KILLED") and found != status:
                raise RuntimeError(f"the run {run_id} is {found} (expected {status})")
            return found == status

        wait_until(has_come, f"the run {run_id} is {status}", 300, pause=1)

    def submit_one_of_each_status(self):
        """Submit four trainings, and wait until their runs have four statuses."""
        finished, _ = self.submit("lr-0.001", "-P learning_rate=0.001 -P max_epochs=2")
        cancelled, _ = self.submit("lr-0.01", "-P learning_rate=0.01 -P max_epochs=500")
        self.wait_for(finished, "FINISHED")
        self.wait_for(cancelled, "RUNNING")
        self.demo.run(f"pyclassify slurm cancel {cancelled}", **self.env)
        running, job = self.submit("lr-0.0003", "-P learning_rate=0.0003 -P max_epochs=500")
        self.submit(
            "lr-0.0001", "-P learning_rate=0.0001 -P max_epochs=5", dependency=f"afterok:{job}"
        )
        self.wait_for(running, "RUNNING")
        self.demo.run("pyclassify slurm reconcile", **self.env)
