"""Daemons end with the test run, and one that fails says so."""

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


def test_a_daemon_that_fails_says_its_last_words(daemons):
    daemons.start("unlucky", "sh", "-c", "echo no free port; exit 3")

    # the form of this message
    with pytest.raises(RuntimeError, match=r"unlucky ended with 3, and last said:\nno free port"):
        daemons.wait("unlucky", ready=lambda: False)


def test_a_daemon_that_is_never_ready_says_so(daemons):
    daemons.start("slow", "sh", "-c", "echo still starting; exec sleep 60")

    late = r"not after \d+ s: slow is ready, and last said:\nstill starting"
    with pytest.raises(RuntimeError, match=late):
        daemons.wait("slow", ready=lambda: False, seconds=0.5)


def test_what_left_its_session_ends_with_the_daemon_that_started_it():
    daemons = Daemons(os.environ)
    leave = "import subprocess as s; s.Popen(['sleep', '60'], start_new_session=True)"
    daemons.start("father", sys.executable, "-c", leave)
    daemons.processes["father"].wait()
    left = sweep.using(daemons.folder)
    assert [each.name() for each in left] == ["sleep"]

    daemons.stop()
    assert not daemons.folder.exists()
    assert not left[0].is_running() or left[0].status() == psutil.STATUS_ZOMBIE
