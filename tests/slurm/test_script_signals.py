"""A signal on its way to the training, through the shell that SLURM may signal alone."""

import shlex
import signal
import subprocess
import sys

import pytest

from tests.support import required
from tests.support.slurm_jobs import check, render
from tests.support.waiting import scale, wait_until

READY = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
Path("ready").touch()
time.sleep(60)
"""


def write_task(accelerator, **job):
    """The text of the shell that srun starts."""
    text = render({}, {"devices": 1, "accelerator": accelerator}, **job)
    return shlex.split(text.partition("  bash -c ")[2])[0]


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_shell_that_srun_starts_is_good_bash(accelerator):
    required.program("shellcheck")
    assert check(write_task(accelerator), "shellcheck", "--shell=bash").stdout == ""


def start(folder, proctrack, command):
    """Start what srun would, in a folder; gives the shell's process once the command is ready."""
    task = write_task(accelerator="cpu", command=command, folder=str(folder))
    shell = subprocess.Popen(
        ["bash", "-c", task],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PROCTRACK": proctrack, "SLURM_NTASKS": "1"},
    )
    wait_until((folder / "ready").exists, "the training is ready")
    return shell


@pytest.mark.parametrize("before", ["", "true && "])
@pytest.mark.parametrize(
    ("signum", "code", "interrupted"), [(signal.SIGUSR1, 0, True), (signal.SIGTERM, 3, False)]
)
def test_shell_that_is_signalled_alone_forwards_the_signal(
    before, signum, code, interrupted, tmp_path
):
    (tmp_path / "train.py").write_text(READY)
    shell = start(tmp_path, "proctrack/cgroup", f"{before}{sys.executable} train.py")

    shell.send_signal(signum)

    assert shell.wait(scale(30)) == code
    assert (tmp_path / "interrupted").exists() == interrupted


def test_shell_of_a_training_that_is_signalled_too_forwards_nothing(tmp_path):
    # After the signal it runs for a second, in which a forwarded signal would reach it.
    until = "while not Path('may-end').exists(): time.sleep(0.05)\ntime.sleep(1)"
    (tmp_path / "train.py").write_text(READY.replace("time.sleep(60)", until))
    shell = start(tmp_path, "proctrack/linuxproc", f"{sys.executable} train.py")

    shell.send_signal(signal.SIGUSR1)
    (tmp_path / "may-end").touch()

    assert shell.wait(scale(30)) == 0
    assert not (tmp_path / "interrupted").exists()
