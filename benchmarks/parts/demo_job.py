"""The life of a run on the tests' SLURM cluster, as a session in a terminal."""

import json
import re
from contextlib import contextmanager
from pathlib import Path

from tests.support.cluster import Cluster, missing
from tests.support.waiting import wait_until

_CONFIG = {"partition": "main", "time": 30, "mem": "3G", "gpus": 0, "environment": "$VIRTUAL_ENV"}
_RECIPE = """\
model:
  class_path: pyclassify.module.Classifier
  init_args: {model: pyclassify.AlexNetBN, learning_rate: 0.001}
data:
  class_path: pyclassify.SyntheticDataModule
  init_args: {train_size: 1000, val_size: 200, test_size: 200, resize: 32, crop: 32}
trainer: {max_epochs: 40}
"""  # long enough to be cancelled on a fast machine
_SUBMISSION = "mlflow run . --backend slurm --backend-config cpu.json -P config=small.yaml"


@contextmanager
def start_cluster():
    """Start a cluster.

    Raises:
        RuntimeError: Something that it needs is missing.
    """
    if reason := missing():
        raise RuntimeError(reason)
    with Cluster() as cluster:
        yield cluster


class JobSession:
    """Commands about one job, and their output.

    Args:
        demo: Where the commands run.
        cluster: The cluster.

    Attributes:
        lines: Pairs of a command line and its output.
    """

    def __init__(self, demo, cluster):
        self.demo, self.cluster, self.lines = demo, cluster, []
        self.env = {
            "SLURM_CONF": cluster.env["SLURM_CONF"],
            "PATH": f"{demo.env['PATH']}:/usr/sbin:/sbin",
            "OMP_NUM_THREADS": "2",
        }
        (demo.project / "cpu.json").write_text(json.dumps(_CONFIG))
        (demo.project / "small.yaml").write_text(_RECIPE)

    def record(self):
        """Submit a training while the nodes are busy, interrupt it, and resume it to its end."""
        name = self.demo.env["MLFLOW_EXPERIMENT_NAME"]
        if self.demo.client.get_experiment_by_name(name) is None:
            self.demo.run(f"mlflow experiments create --experiment-name {name}")
        others = self.cluster.submit("sleep 3600", "--exclusive", "--nodes=2")
        self.cluster.wait_for(others, "RUNNING")
        output = self._enter(_SUBMISSION)
        run_id = re.search(r"\(ID '(\w+)'\)", output)[1]
        short_id = run_id[:8]
        self._enter(f"pyclassify slurm status {short_id}")
        self.cluster.run("scancel", others)
        folder = Path(self.demo.client.get_run(run_id).data.tags["slurm_folder"])
        has_trained = re.compile(r"^epoch 1/\d+:", re.MULTILINE)
        wait_until(
            lambda: any(has_trained.search(path.read_text()) for path in folder.glob("*.out")),
            "the first epoch ends",
            seconds=300,
            pause=1,
        )
        self._enter(f"pyclassify slurm status {short_id}")
        self._enter(f"pyclassify slurm cancel {short_id}")
        resumed = self._enter(f"pyclassify slurm resume {short_id}")
        (job,) = re.findall(r"SLURM job (\d+)", resumed)
        self.cluster.wait_for(job, "COMPLETED", "FAILED", seconds=300)
        self._enter(f"pyclassify slurm status {short_id}")
        return self.lines

    def _enter(self, command):
        output = self.demo.run(command, **self.env)
        self.lines.append((command, output))
        return output
