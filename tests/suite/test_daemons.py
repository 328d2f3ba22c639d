"""Daemons end with the test run, and a failure is reported with its output."""

import os
import sys

import psutil
import pytest

from tests.support import sweep
from tests.support.daemons import Daemons


@pytest.fixture
def daemons():
    daemons = Daemons(os.environ)
    yield daemons
    daemons.stop()


def test_daemon_that_fails_raises_with_its_output(daemons):
    daemons.start("failing", "sh", "-c", "echo no free port; exit 3")

    # the form of this message
    message = r"failing exited with code 3; its last output:\nno free port"
    with pytest.raises(RuntimeError, match=message):
        daemons.wait("failing", ready=lambda: False)


def test_daemon_that_is_never_ready_raises_with_its_output(daemons):
    daemons.start("slow", "sh", "-c", "echo still starting; exec sleep 60")

    late = r"not after \d+ s: slow is ready; its last output:\nstill starting"
    with pytest.raises(RuntimeError, match=late):
        daemons.wait("slow", ready=lambda: False, seconds=0.5)


def test_child_that_left_its_session_ends_with_its_daemon():
    daemons = Daemons(os.environ)
    leave = "import subprocess as s; s.Popen(['sleep', '60'], start_new_session=True)"
    daemons.start("parent", sys.executable, "-c", leave)
    daemons.processes["parent"].wait()
    (child,) = sweep.using(daemons.folder)
    assert child.name() == "sleep"

    daemons.stop()
    assert not daemons.folder.exists()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
