"""The files of deploy/: systemd takes them, and what they start is what the page says."""

import subprocess

import pytest

from tests.support.required import program
from tests.support.service import DEPLOY, HERE, commands, installed_here, started_by

UNITS = sorted(path.name for kind in ("service", "timer") for path in DEPLOY.glob(f"*.{kind}"))


def test_unit_of_the_server_starts_it_as_the_page_does():
    documented = commands("server").replace("\\\n", "").split()
    assert started_by("mlflow.service").removeprefix(HERE).split() == documented


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_takes_the_unit(unit, tmp_path):
    verify = program("systemd-analyze")
    for name in UNITS:
        (tmp_path / name).write_text(installed_here((DEPLOY / name).read_text()))

    done = subprocess.run([verify, "verify", tmp_path / unit], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
