"""Faults of a group's service, and trainings that record what they log."""

import contextlib
import pwd
import subprocess
from pathlib import Path

from tests.support import processes
from tests.support.service import ROOT, _as_postgres
from tests.support.waiting import wait_until

SMALL = {
    "data": "SyntheticDataModule",
    **{f"data.{split}_size": size for split, size in {"train": 400, "val": 8, "test": 8}.items()},
    **{
        "data.resize": 12,
        "data.crop": 8,
        "data.batch_size": 8,
        "model.model": "tests.support.networks.Paced",
    },
    **{"max_epochs": 10_000, "accelerator": "cpu", "trainer.log_every_n_steps": 1},
    **{
        "trainer.enable_progress_bar": "false",
        "trainer.callbacks+": "tests.support.step_recorder.StepRecorder",
    },
}


class RecordedTraining:
    """A training in a separate process, which logs to the service.

    Args:
        folder: The folder in which it is started, which is created.
        environ: The environment, which names the service.
        pace: The seconds of a step.
    """

    def __init__(self, folder: Path, environ, pace=0.05):
        folder.mkdir()
        self.folder, self.log = folder, folder / "log"
        environ = {**environ, "RECORDER_FOLDER": str(folder), "PACE": str(pace)}
        environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        options = [f"--{name}={value}" for name, value in SMALL.items()]
        with self.log.open("w") as log:
            self.process = processes.start(
                *("-m", "pyclassify", "train", *options),
                cwd=folder,
                env=environ,
                stdout=log,
                stderr=log,
            )

    @property
    def run_id(self):
        (spool,) = (self.folder / "runs" / "spool").iterdir()
        return spool.name

    def read_steps(self):
        """Read the recorded steps: {step: loss}."""
        lines = (self.folder / "steps").read_text().splitlines()
        return {int(step): float(loss) for step, loss in map(str.split, lines)}

    def wait_for_steps(self, count):
        """Wait for a number of further steps."""
        file = self.folder / "steps"
        target = count + (len(self.read_steps()) if file.exists() else 0)

        def has_steps():
            if self.process.poll() is not None:
                raise RuntimeError(f"the training ended:\n{self.log.read_text()[-2000:]}")
            return file.exists() and len(self.read_steps()) >= target

        wait_until(has_steps, f"step {target} of {self.folder.name}")

    def watch_log(self):
        """Watch the output from now on."""
        return LogWatch(self)

    def end(self):
        """End the training; return its exit code."""
        (self.folder / "end").touch()
        return self.process.wait(120)

    def stop(self):
        self.process.kill()
        self.process.wait()


class LogWatch:
    """The output of a training since a moment."""

    def __init__(self, training):
        self.training, self.start = training, training.log.stat().st_size

    def wait_for(self, text):
        """Wait for a text in the output."""
        name = self.training.folder.name
        log = self.training.log
        wait_until(lambda: text in log.read_text()[self.start :], f"{text!r} in {name}'s log")


@contextlib.contextmanager
def database_restarted(service):
    service.stop_postgres()
    try:
        yield
    finally:
        service.start_postgres()


@contextlib.contextmanager
def database_read_only(service):
    """Make the database read-only, as during a backup or with a full disk of a hosted database."""
    _administer(service, "ALTER SYSTEM SET default_transaction_read_only = on")
    try:
        yield
    finally:
        _administer(service, "ALTER SYSTEM RESET default_transaction_read_only")


@contextlib.contextmanager
def disk_full(service, megabytes=32):
    """Fill the disk with the table of metrics."""
    disk = service.folder / "disk"
    disk.mkdir()
    options = ["-o", f"size={megabytes}m,uid={pwd.getpwnam('postgres').pw_uid},mode=700"]
    subprocess.run(["mount", "-t", "tmpfs", *options, "faults", str(disk)], check=True)
    try:
        _administer(service, f"CREATE TABLESPACE small LOCATION '{disk}'")
        _administer(service, "ALTER TABLE metrics SET TABLESPACE small", "mlflow")
        with (disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while ballast.write(bytes(1 << 12)):
                pass
        yield
    finally:
        (disk / "ballast").unlink(missing_ok=True)
        _administer(service, "ALTER TABLE metrics SET TABLESPACE pg_default", "mlflow")
        _administer(service, "DROP TABLESPACE small")
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
        disk.rmdir()


@contextlib.contextmanager
def server_killed(service):
    service.kill_server()
    try:
        yield
    finally:
        service.start_server()


ALL = (server_killed, database_restarted, database_read_only, disk_full)


def bucket_busy(proxy):
    """Make the fault of a bucket that responds with 503, by a proxy in front of it."""

    @contextlib.contextmanager
    def busy(_):
        with proxy.responding_with(503):
            yield

    return busy


def _administer(service, statement, database="postgres"):
    service.daemons.run(
        *_as_postgres("psql", "--no-psqlrc", "-Upostgres", f"-d{database}"),
        # The statement must be able to write, even if the database is read-only.
        *("-c", "SET default_transaction_read_only = off", "-c", statement),
        *("-c", "SELECT pg_reload_conf()"),
    )
