"""The files of deploy/: systemd takes them, and what they start is what the page says."""

import subprocess
import sys
from pathlib import Path

import pytest
from required import program
from service_parts import ROOT, commands

DEPLOY = ROOT / "deploy"
UNITS = sorted(path.name for kind in ("service", "timer") for path in DEPLOY.glob(f"*.{kind}"))
HERE = f"{Path(sys.executable).parent}/"


def started_by(unit):
    """The command line of a unit, of the programs of this environment."""
    lines = (DEPLOY / unit).read_text().splitlines()
    (line,) = [each.removeprefix("ExecStart=") for each in lines if each.startswith("ExecStart=")]
    return _installed_here(line)


def _installed_here(text):
    return text.replace("/opt/mlflow/bin/", HERE).replace("%h/project/.venv/bin/", HERE)


def test_unit_of_the_server_starts_it_as_the_page_does():
    documented = commands("server").replace("\\\n", "").split()
    assert started_by("mlflow.service").removeprefix(HERE).split() == documented


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_takes_the_unit(unit, tmp_path):
    verify = program("systemd-analyze")
    for name in UNITS:
        (tmp_path / name).write_text(_installed_here((DEPLOY / name).read_text()))

    done = subprocess.run([verify, "verify", tmp_path / unit], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
