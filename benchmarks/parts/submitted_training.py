"""A tracking server that can be killed, and one training in many SLURM jobs."""

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
        wait_for(self.responds, "a response of the server", 90)

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def responds(self):
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2)
        return False


class Training:
    """One run and its jobs.

    Args:
        cluster: The cluster.
        submitted: The submitted run of `mlflow run --backend slurm`.
        work_dir: The folder with the runs' folders.
    """

    def __init__(self, cluster, submitted, work_dir: Path):
        self.cluster, self.run_id, self.job = cluster, submitted.run_id, submitted.job_id
        self.folder = work_dir / submitted.run_id
        self._released = 0.0

    @property
    def step(self):
        """The step of the newest checkpoint."""
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

    def list_ranks(self):
        """List the processes of the training by rank."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                argv, environ = process.cmdline(), process.environ()
                started_by = process.parent() and process.parent().name()
                # Data workers have the same command line, and are started by Python.
                is_rank = environ.get("MLFLOW_RUN_ID") == self.run_id and started_by == "bash"
                if is_rank and "pyclassify" in argv and "SLURM_PROCID" in environ:
                    found[int(environ["SLURM_PROCID"])] = process
        return found

    def list_checkpoints(self):
        """List the checkpoints for a resume, the newest first."""
        return sorted(self.folder.rglob("resume/step=*.ckpt"), reverse=True)

    def wait_for_end(self, timeout=90):
        """Wait until the job has ended."""
        wait_for(lambda: self.state in ENDED, f"the end of job {self.job}", timeout)

    def ensure_running(self):
        """Start a pending job soon, and resubmit a job that has ended."""
        state = self.state
        if state == "PENDING" and time.monotonic() > self._released + 10:
            # Not more often: each call delays the start.
            self._released = time.monotonic()
            with contextlib.suppress(RuntimeError):  # it has just started
                self.cluster.run("scontrol", "update", f"jobid={self.job}", "starttime=now+2")
        elif state in ENDED and state != "COMPLETED":
            self.resume()

    def resume(self):
        """Resume the training by `pyclassify slurm resume`, as a user does."""
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = main.main(["slurm", "resume", self.run_id])
        if code:
            raise RuntimeError(f"slurm resume: {stdout.getvalue()}{stderr.getvalue()}")
        self.job = re.search(r"SLURM job (\d+)", stdout.getvalue())[1]

    def wait_for_attempt(self, attempt, timeout=120):
        """Wait until an attempt after the given one has started."""
        end = time.monotonic() + timeout
        while self.attempt <= attempt:
            if time.monotonic() > end:
                raise RuntimeError(f"no new attempt in {timeout} s ({self.state})\n{self.tail()}")
            self.ensure_running()
            time.sleep(0.5)

    def wait_for_steps(self, count, timeout=180):
        """Wait for a number of steps, in any number of jobs; return False if training has ended."""
        target, end = self.step + count, time.monotonic() + timeout
        while self.step < target:
            if time.monotonic() > end:
                raise RuntimeError(f"no step after {self.step} in {timeout} s\n{self.tail()}")
            if self.state == "COMPLETED":
                return False
            self.ensure_running()
            time.sleep(0.5)
        return True

    def tail(self, characters=3000):
        """Read the end of the output of its jobs."""
        logs = sorted(self.folder.glob("*.[oe][ur][tr]"), key=os.path.getmtime)
        return "\n".join(log.read_text()[-characters:] for log in logs)


def wait_for(condition, what, timeout):
    """Wait until a condition is true."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"timed out after {timeout} s waiting for {what}")
        time.sleep(0.2)
