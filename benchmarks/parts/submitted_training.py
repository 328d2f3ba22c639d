"""The parts of a torture: a tracking server that can be killed, and one training in many jobs."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil

from pyclassify.cli import main
from tests.support.ports import free_ports

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY", "PREEMPTED")


class Server:
    """`mlflow server` on SQLite, in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.port = free_ports("mlflow")["mlflow"]
        self.uri = f"http://{os.uname().nodename}:{self.port}"
        self.process = None

    def start(self):
        options = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--workers", "1"]
        options += ["--artifacts-destination", f"{self.folder}/artifacts", "--host", "0.0.0.0"]
        options += ["--port", str(self.port), "--allowed-hosts", "*"]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options],
                env={k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self.answers, "the server to answer", 90)

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def answers(self):
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2)
        return False


class Training:
    """One run, and the jobs that it takes.

    Args:
        cluster: The cluster.
        submitted: What `mlflow run --backend slurm` gave.
        work_dir: The folder of all runs' folders.
    """

    def __init__(self, cluster, submitted, work_dir: Path):
        self.cluster, self.run_id, self.job = cluster, submitted.run_id, submitted.job_id
        self.folder = work_dir / submitted.run_id
        self._released = 0.0

    @property
    def step(self):
        """The step of the newest checkpoint to go on from."""
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / "progress").read_text())
        return 0

    @property
    def attempt(self):
        with contextlib.suppress(OSError):
            return len((self.folder / "attempts").read_text().splitlines())
        return 0

    @property
    def state(self):
        return self.cluster.state(self.job)

    def ranks(self):
        """The processes of the training, by rank."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words, environ = process.cmdline(), process.environ()
                started_by = process.parent() and process.parent().name()
                # Data workers and the like have the same words, and are started by Python.
                ours = environ.get("MLFLOW_RUN_ID") == self.run_id and started_by == "bash"
                if ours and "pyclassify" in words and "SLURM_PROCID" in environ:
                    found[int(environ["SLURM_PROCID"])] = process
        return found

    def checkpoints(self):
        """Those to go on from, the newest first."""
        return sorted(self.folder.rglob("resume/step=*.ckpt"), reverse=True)

    def wait_for_end(self, seconds=90):
        """Wait until the job has ended, or its next start can be had."""
        wait_for(lambda: self.state in ENDED, f"job {self.job} to end", seconds)

    def go_on(self):
        """Have the training run: release a job that waits, resubmit one that has ended."""
        state = self.state
        if state == "PENDING" and time.monotonic() > self._released + 10:
            # Once: each time the start is put off anew.
            self._released = time.monotonic()
            with contextlib.suppress(RuntimeError):  # it has just started
                self.cluster.run("scontrol", "update", f"jobid={self.job}", "starttime=now+2")
        elif state in ENDED and state != "COMPLETED":
            self.resume()

    def resume(self):
        """`pyclassify slurm resume`, which a person would type."""
        said, complained = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
            code = main.main(["slurm", "resume", self.run_id])
        if code:
            raise RuntimeError(f"slurm resume: {said.getvalue()}{complained.getvalue()}")
        self.job = re.search(r"SLURM job (\d+)", said.getvalue())[1]

    def start_again(self, attempt, seconds=120):
        """Wait until an attempt after the given one has begun."""
        end = time.monotonic() + seconds
        while self.attempt <= attempt:
            if time.monotonic() > end:
                raise RuntimeError(f"no new start in {seconds} s ({self.state})\n{self.tail()}")
            self.go_on()
            time.sleep(0.5)

    def gain(self, steps, seconds=180):
        """Wait until so many steps are gained, in however many jobs; False where it has ended."""
        aim, end = self.step + steps, time.monotonic() + seconds
        while self.step < aim:
            if time.monotonic() > end:
                raise RuntimeError(f"no step beyond {self.step} in {seconds} s\n{self.tail()}")
            if self.state == "COMPLETED":
                return False
            self.go_on()
            time.sleep(0.5)
        return True

    def tail(self, characters=3000):
        """The last that its jobs wrote."""
        logs = sorted(self.folder.glob("*.[oe][ur][tr]"), key=os.path.getmtime)
        return "\n".join(log.read_text()[-characters:] for log in logs)


def wait_for(condition, what, seconds):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.2)
