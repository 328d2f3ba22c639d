"""Submit the foreign project to the tests' cluster, and see what becomes of its run."""

from pathlib import Path
from types import SimpleNamespace

import mlflow

from pyclassify.slurm import verbs
from tests.support import slurm_runs
from tests.support.waiting import wait_until

ENDED = ("COMPLETED", "FAILED", "OUT_OF_MEMORY", "TIMEOUT", "CANCELLED", "NODE_FAIL")
# Of the script too, which starts MLflow to report.
MEMORY = "1000M"


class Submissions:
    """Jobs of a project on a cluster, each with a name."""

    def __init__(self, cluster, project):
        self.cluster, self.project = cluster, project
        self.client, self.runs = mlflow.MlflowClient(), {}

    def submit(self, name, entry_point="main", parameters=None, **config):
        """As `mlflow run --backend slurm` does, on the node n1."""
        config = {"nodelist": "n1", "mem": MEMORY, "job_name": name, **config}
        self.runs[name] = slurm_runs.submit(
            self.project,
            config,
            entry_point=entry_point,
            parameters=parameters,
            experiment_name="tested",
        )

    def start(self, *names, code=0, **config):
        """Submit jobs whose task waits for `release`, and for no signal but SIGKILL."""
        for name in names:
            self.submit(name, "wait", {"file": self.file(name), "code": code}, **config)

    def wait_until_started(self, *names):
        for name in names:
            wait_until(Path(f"{self.file(name)}.waits").exists, f"{name} has started")

    def release(self, *names):
        for name in names:
            self.file(name).touch()

    def file(self, name):
        return self.project.parent / name.replace(" ", "-")

    def wait_until_ended(self, *names):
        for name in names:
            self.cluster.wait_for(self.job(name), *ENDED)

    def job(self, name):
        return self.runs[name].job_id

    def status(self, name):
        return self.client.get_run(self.runs[name].run_id).info.status

    def outcome(self, name):
        """The status that the run has by itself, and the one and the words that it then has."""
        at_once = self.status(name)
        assert verbs.main(["status", self.runs[name].run_id]) == 0
        return self.described(self.runs[name].run_id, at_once)

    def described(self, run_id, at_once=None):
        run = self.client.get_run(run_id)
        words = run.data.tags.get("mlflow.note.content", "")
        return SimpleNamespace(
            at_once=at_once or run.info.status, status=run.info.status, words=words
        )
