"""One training on a cluster, killed in all ways, against its twin that nobody touched.

    python -m benchmarks.torture --kills 20 --seed 0

A SLURM cluster of the tests' own (as root, with Debian's slurm-wlm, munge, slurmdbd and
mariadb-server), an `mlflow server` on SQLite, and a small network trained by two processes, whose
run folder is on a small disk. The exit code is 0 if there is one run, FINISHED, with the twin's
weights to the last bit and every point of its metrics once.
"""

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow

from benchmarks.parts import tally
from benchmarks.parts.kills import KILLS, LASTS, draw_kills
from benchmarks.parts.tortured import Server, Training, wait_for
from tests.support.cluster import Cluster

ROOT = Path(__file__).parents[1]
DISK_MB = 300
EVERY = 10  # steps between two checkpoints


class Torture:
    """A training and all that can be done to it."""

    def __init__(self, cluster, server, disk, say, away=15.0):
        self.cluster, self.server, self.disk, self.say = cluster, server, disk, say
        self.away, self.rows = away, []

    def submit(self, name, epochs, pace, **parameters):
        """As `mlflow run --backend slurm` does."""
        os.environ["PACE"] = str(pace)
        given = {
            "data": "SyntheticDataModule",
            **{f"data.{part}_size": size for part, size in PARTS.items()},
            **{"data.resize": 12, "data.crop": 8, "data.batch_size": 8, "devices": 2},
            "model.model": "tests.support.networks.Paced",
            "max_epochs": epochs,
            "accelerator": "cpu",
            "trainer.log_every_n_steps": 1,
            "trainer.enable_progress_bar": "false",
            "resume.every_n_train_steps": EVERY,
            **parameters,
        }
        config = {"work_dir": str(self.disk), "requeue": True, "mem": "4000M", "job_name": name}
        config["requeue_attempts"] = 1000
        submitted = mlflow.projects.run(
            str(ROOT),
            parameters=given,
            experiment_name="torture",
            backend="slurm",
            backend_config=config,
            env_manager="local",
            synchronous=False,
        )
        return Training(self.cluster, submitted, self.disk)

    def kill(self, kind, draw):
        """Gain some steps, do the harm, and see that it goes on."""
        training = self.training
        if not training.gain(draw.randrange(1, 4) * EVERY):
            raise RuntimeError("the training ended before its last kill; give more --epochs")
        time.sleep(draw.uniform(0, 1))
        wait_for(lambda: len(training.ranks()) == 2, "both ranks", 60)
        before, attempt, started = training.step, training.attempt, time.monotonic()
        told = KILLS[kind](self, draw)
        if kind not in LASTS:
            training.start_again(attempt)
        training.gain(1)
        seen = f"on from step {before} after {time.monotonic() - started:.0f} s"
        self.rows.append((kind, before, attempt, training.attempt, told, seen))
        self.say("{:28} step {:5} attempt {:2} -> {:2}  {}; {}".format(*self.rows[-1]))

    def finish(self, seconds=900):
        """Let it train to its end."""
        end = time.monotonic() + seconds
        while self.training.state != "COMPLETED":
            if time.monotonic() > end:
                raise RuntimeError(f"not at its end after {seconds} s\n{self.training.tail()}")
            self.training.go_on()
            time.sleep(0.5)


PARTS = {"train": 400, "val": 40, "test": 40}  # 25 steps an epoch of two processes with 8 images


@contextlib.contextmanager
def small_disk(folder, megabytes=DISK_MB):
    """A disk of its own, that can be filled without harm to others."""
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "torture", str(folder)], check=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def torture(cluster, folder, kills, seed, epochs, pace, away, say, kinds=tuple(KILLS)):
    """Train twice, once with kills.

    Returns:
        What is wrong, a line each; and the line that says what was compared.
    """
    draw = random.Random(seed)
    server = Server(folder)
    server.start()
    os.environ["MLFLOW_TRACKING_URI"] = server.uri
    mlflow.set_tracking_uri(server.uri)
    try:
        with small_disk(folder / "disk") as disk:
            done = Torture(cluster, server, disk, say, away)
            done.training = twin = done.submit("twin", epochs, 0)
            done.finish()
            done.training = done.submit("tortured", epochs, pace)
            for kind in draw_kills(kills, draw, kinds):
                done.kill(kind, draw)
            done.finish()
            return judge(done, twin, folder)
    finally:
        server.kill()


def judge(done, twin, folder):
    """Compare the run with its twin, by what the server has."""
    client, training = mlflow.MlflowClient(), done.training
    run = client.get_run(training.run_id)
    counted = tally.compare(client, training.run_id, twin.run_id)
    made = len(client.search_runs([run.info.experiment_id]))
    weights = [tally.hash_weights(each.folder) for each in (training, twin)]
    best = [
        tally.hash_best(each.run_id, Path(tempfile.mkdtemp(dir=folder)))
        for each in (training, twin)
    ]
    wrong = [
        f"{len(counted[kind])} {kind}" for kind in counted if kind != "points" if counted[kind]
    ]
    if made != 2:
        wrong.append(f"{made - 1} runs in place of one")
    if run.info.status != "FINISHED":
        wrong.append(f"the run is {run.info.status}")
    if weights[0] != weights[1] or best[0] != best[1]:
        wrong.append("other weights")
    tags = {key: run.data.tags.get(key) for key in ("attempts", "slurm_restarts")}
    jobs = run.data.tags.get("slurm_job_ids", "").count(",") + 1
    return wrong, (
        f"one run, {run.info.status}, in {jobs} jobs, {tags}; weights {weights[0]} and "
        f"{weights[1]}, best {best[0]} and {best[1]}; {tally.in_words(counted)}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=80, help="of 25 steps")
    parser.add_argument("--pace", type=float, default=0.05, help="seconds that a step sleeps")
    parser.add_argument("--away", type=float, default=20.0, help="seconds of the server at most")
    parser.add_argument("--only", action="append", choices=[*KILLS], help="these kinds alone")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cluster = Cluster()
    started = time.monotonic()

    def say(line):
        sys.stdout.write(f"{time.monotonic() - started:5.0f} s  {line}\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        try:
            cluster.start()
            os.environ.update({k: v for k, v in cluster.env.items() if k == "SLURM_CONF"})
            os.environ["PATH"] += ":/usr/sbin:/sbin"
            os.chdir(folder)
            wrong, told = torture(
                cluster,
                Path(folder),
                asked.kills,
                asked.seed,
                asked.epochs,
                asked.pace,
                asked.away,
                say,
                asked.only or tuple(KILLS),
            )
        finally:
            cluster.stop()
    say(told)
    say(f"WRONG: {'; '.join(wrong)}" if wrong else "all is well")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
