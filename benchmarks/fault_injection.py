"""Inject faults into a training on a SLURM cluster, and compare it with one without faults.

It starts a private SLURM cluster (as root, with Debian's slurm-wlm, munge, slurmdbd and
mariadb-server) and an `mlflow server` on SQLite. Two processes train a small network, whose run
folder is on a small disk. The exit code is 0 if the result is one FINISHED run, with bitwise
identical weights and each value of its metrics exactly once.
"""

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow

from benchmarks.parts import run_comparison
from benchmarks.parts.command import BenchmarkParser
from benchmarks.parts.faults import FAULTS, SURVIVED_BY_JOB, choose_faults
from benchmarks.parts.submitted_training import Server, Training, wait_for
from tests.support.cluster import Cluster

ROOT = Path(__file__).parents[1]
DISK_MB = 300
CHECKPOINT_STEPS = 10  # between two checkpoints
# 25 steps per epoch of two processes with 8 images each.
SPLIT_SIZES = {"train": 400, "val": 40, "test": 40}


class FaultInjector:
    """Injects faults into a training.

    Args:
        cluster: The SLURM cluster.
        server: The tracking server.
        disk: The folder of a small disk, for the runs.
        report: Called with each line of progress.
        max_downtime: The maximum downtime of the server in seconds.
    """

    def __init__(self, cluster, server, disk, report, max_downtime=15.0):
        self.cluster, self.server, self.disk, self.report = cluster, server, disk, report
        self.max_downtime, self.rows = max_downtime, []

    def submit(self, name, epochs, pace, **parameters):
        """Submit a training, as `mlflow run --backend slurm` does."""
        os.environ["PACE"] = str(pace)
        all_parameters = {
            "data": "SyntheticDataModule",
            **{f"data.{split}_size": size for split, size in SPLIT_SIZES.items()},
            **{"data.resize": 12, "data.crop": 8, "data.batch_size": 8, "devices": 2},
            "model.model": "tests.support.networks.Paced",
            "max_epochs": epochs,
            "accelerator": "cpu",
            "trainer.log_every_n_steps": 1,
            "trainer.enable_progress_bar": "false",
            "resume.every_n_train_steps": CHECKPOINT_STEPS,
            **parameters,
        }
        config = {"work_dir": str(self.disk), "requeue": True, "mem": "4000M", "job_name": name}
        config["requeue_attempts"] = 1000
        submitted = mlflow.projects.run(
            str(ROOT),
            parameters=all_parameters,
            experiment_name="fault-injection",
            backend="slurm",
            backend_config=config,
            env_manager="local",
            synchronous=False,
        )
        return Training(self.cluster, submitted, self.disk)

    def inject(self, kind, rng):
        """Wait for some steps, inject a fault, and wait until the training continues."""
        training = self.training
        if not training.wait_for_steps(rng.randrange(1, 4) * CHECKPOINT_STEPS):
            raise RuntimeError("the training ended before its last fault; give more --epochs")
        time.sleep(rng.uniform(0, 1))
        wait_for(lambda: len(training.list_ranks()) == 2, "both ranks", 60)
        before, attempt, started = training.step, training.attempt, time.monotonic()
        description = FAULTS[kind](self, rng)
        if kind not in SURVIVED_BY_JOB:
            training.wait_for_attempt(attempt)
        training.wait_for_steps(1)
        outcome = f"resumed from step {before} after {time.monotonic() - started:.0f} s"
        self.rows.append((kind, before, attempt, training.attempt, description, outcome))
        self.report("{:28} step {:5} attempt {:2} -> {:2}  {}; {}".format(*self.rows[-1]))

    def finish(self, timeout=900):
        """Wait for the end of the training."""
        end = time.monotonic() + timeout
        while self.training.state != "COMPLETED":
            if time.monotonic() > end:
                raise RuntimeError(f"not finished after {timeout} s\n{self.training.tail()}")
            self.training.ensure_running()
            time.sleep(0.5)


@contextlib.contextmanager
def small_disk(folder, megabytes=DISK_MB):
    """Mount a small disk, which can be filled without affecting other programs."""
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "faults", str(folder)], check=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def train_with_faults(
    cluster, folder, count, seed, epochs, pace, max_downtime, report, kinds=tuple(FAULTS)
):
    """Train twice, once with faults.

    Returns:
        The differences, one line each, and a line that describes the comparison.
    """
    rng = random.Random(seed)
    server = Server(folder)
    server.start()
    os.environ["MLFLOW_TRACKING_URI"] = server.uri
    mlflow.set_tracking_uri(server.uri)
    try:
        with small_disk(folder / "disk") as disk:
            injector = FaultInjector(cluster, server, disk, report, max_downtime)
            injector.training = twin = injector.submit("twin", epochs, 0)
            injector.finish()
            injector.training = injector.submit("faults", epochs, pace)
            for kind in choose_faults(count, rng, kinds):
                injector.inject(kind, rng)
            injector.finish()
            return compare_with_twin(injector.training, twin, folder)
    finally:
        server.kill()


def compare_with_twin(training, twin, folder):
    """Compare a training with its twin, by the server's data and the weights."""
    client = mlflow.MlflowClient()
    run = client.get_run(training.run_id)
    comparison = run_comparison.compare(client, training.run_id, twin.run_id)
    run_count = len(client.search_runs([run.info.experiment_id]))
    weights = [run_comparison.hash_weights(each.folder) for each in (training, twin)]
    best = [
        run_comparison.hash_best(each.run_id, Path(tempfile.mkdtemp(dir=folder)))
        for each in (training, twin)
    ]
    differences = [
        f"{len(keys)} {kind}" for kind, keys in comparison.items() if kind != "points" and keys
    ]
    if run_count != 2:
        differences.append(f"{run_count - 1} runs instead of one")
    if run.info.status != "FINISHED":
        differences.append(f"the run is {run.info.status}")
    if weights[0] != weights[1] or best[0] != best[1]:
        differences.append("different weights")
    tags = {key: run.data.tags.get(key) for key in ("attempts", "slurm_restarts")}
    jobs = run.data.tags.get("slurm_job_ids", "").count(",") + 1
    return differences, (
        f"one run, {run.info.status}, in {jobs} jobs, {tags}; weights {weights[0]} and "
        f"{weights[1]}, best {best[0]} and {best[1]}; {run_comparison.format_counts(comparison)}"
    )


def parse():
    examples = ("--faults 20 --seed 0", "--faults 4 --only 'full disk' --only scancel")
    parser = BenchmarkParser("fault_injection", __doc__, examples)
    parser.add_argument("--faults", type=int, default=20, help="Inject this number of faults.")
    parser.add_argument(
        "--seed", type=int, default=0, help="Set the random seed that chooses faults and times."
    )
    parser.add_argument("--epochs", type=int, default=80, help="Train for epochs of 25 steps.")
    parser.add_argument(
        "--pace", type=float, default=0.05, help="Sleep for this number of seconds in each step."
    )
    parser.add_argument(
        "--max-downtime",
        type=float,
        default=20.0,
        help="Restart the server after at most this number of seconds.",
    )
    parser.add_argument(
        "--only", action="append", choices=[*FAULTS], help="Inject only this fault; repeatable."
    )
    return parser.parse_args(sys.argv[1:])


def main():
    args = parse()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cluster = Cluster()
    started = time.monotonic()

    def report(line):
        sys.stdout.write(f"{time.monotonic() - started:5.0f} s  {line}\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        try:
            cluster.start()
            os.environ.update({k: v for k, v in cluster.env.items() if k == "SLURM_CONF"})
            os.environ["PATH"] += ":/usr/sbin:/sbin"
            os.chdir(folder)
            differences, description = train_with_faults(
                cluster,
                Path(folder),
                args.faults,
                args.seed,
                args.epochs,
                args.pace,
                args.max_downtime,
                report,
                args.only or tuple(FAULTS),
            )
        finally:
            cluster.stop()
    report(description)
    report(f"FAILED: {'; '.join(differences)}" if differences else "PASSED")
    return bool(differences)


if __name__ == "__main__":
    sys.exit(main())
