"""What befalls a group's service while runs log, and trainings that note what they logged."""

import contextlib
import pwd
import subprocess
from pathlib import Path

from tests.support import processes
from tests.support.service import ROOT, _as_postgres
from tests.support.waiting import wait_until

SMALL = {
    "data": "SyntheticDataModule",
    **{f"data.{part}_size": size for part, size in {"train": 400, "val": 8, "test": 8}.items()},
    **{
        "data.resize": 12,
        "data.crop": 8,
        "data.batch_size": 8,
        "model.model": "tests.support.networks.Paced",
    },
    **{"max_epochs": 10_000, "accelerator": "cpu", "trainer.log_every_n_steps": 1},
    **{"trainer.enable_progress_bar": "false", "trainer.callbacks+": "tests.support.noting.Noting"},
}


class Noted:
    """A training of a process of its own, which logs to the service.

    Args:
        folder: Where it is started, which it makes.
        environ: The environment that it finds the service by.
        pace: The seconds of a step.
    """

    def __init__(self, folder: Path, environ, pace=0.05):
        folder.mkdir()
        self.folder, self.log = folder, folder / "log"
        environ = {**environ, "NOTES": str(folder), "PACE": str(pace), "OMP_NUM_THREADS": "1"}
        environ["PYTHONPATH"] = str(ROOT)
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

    def notes(self):
        """What it logged as it says itself: {step: loss}."""
        lines = (self.folder / "steps").read_text().splitlines()
        return {int(step): float(loss) for step, loss in map(str.split, lines)}

    def gain(self, steps):
        """Wait until it has gone on by so many steps."""
        notes = self.folder / "steps"
        aim = steps + (len(self.notes()) if notes.exists() else 0)

        def has():
            if self.process.poll() is not None:
                raise RuntimeError(f"it ended:\n{self.log.read_text()[-2000:]}")
            return notes.exists() and len(self.notes()) >= aim

        wait_until(has, f"step {aim} of {self.folder.name}")

    def hears(self):
        """What it says from now on."""
        return Heard(self)

    def end(self):
        """Have it come to its end; its exit code."""
        (self.folder / "end").touch()
        return self.process.wait(120)

    def stop(self):
        self.process.kill()
        self.process.wait()


class Heard:
    """What a training has said since a moment."""

    def __init__(self, training):
        self.training, self.start = training, training.log.stat().st_size

    def wait_for(self, words):
        """Wait until it says something."""
        name = self.training.folder.name
        log = self.training.log
        wait_until(lambda: words in log.read_text()[self.start :], f"{words!r} in {name}'s log")


@contextlib.contextmanager
def database_restarted(service):
    service.stop_postgres()
    try:
        yield
    finally:
        service.start_postgres()


@contextlib.contextmanager
def database_read_only(service):
    """As one that is kept for reading during a backup, or a hosted one whose disk is full."""
    _administer(service, "ALTER SYSTEM SET default_transaction_read_only = on")
    try:
        yield
    finally:
        _administer(service, "ALTER SYSTEM RESET default_transaction_read_only")


@contextlib.contextmanager
def disk_full(service, megabytes=32):
    """The disk that has the values of metrics is full."""
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
    """The bucket answers 503, by a proxy in front of it."""

    @contextlib.contextmanager
    def busy(_):
        with proxy.responding_with(503):
            yield

    return busy


def _administer(service, statement, database="postgres"):
    service.daemons.run(
        *_as_postgres("psql", "--no-psqlrc", "-Upostgres", f"-d{database}"),
        # What a statement writes it may write, be the database read-only for others.
        *("-c", "SET default_transaction_read_only = off", "-c", statement),
        *("-c", "SELECT pg_reload_conf()"),
    )
