"""How the tests themselves are run: what is left out, what runs alone, and what they may cost."""

import os
import subprocess
import sys

import pytest

from tests.support import ports, waiting
from tests.support.phrases import mentions
from tests.support.processes import ROOT


@pytest.fixture
def suite(tmp_path):
    """Run tests of some code as a suite of its own: the exit code and what is written."""

    def run(code, *options, limits="", **variables):
        (tmp_path / "pytest.ini").write_text(f"[pytest]\nmarkers =\n  slow\n  alone\n{limits}")
        (tmp_path / "conftest.py").write_text('pytest_plugins = ["tests.support.suite"]\n')
        (tmp_path / "test_it.py").write_text(code)
        known = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options],
            cwd=tmp_path,
            env={**known, "PYTHONPATH": str(ROOT), **variables},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    return run


SLOW = """
import pytest

def test_quick():
    pass

@pytest.mark.slow
def test_slow():
    pass
"""


def test_slow_tests_run_only_where_they_are_asked_for(suite):
    assert mentions(suite(SLOW)[1], "1 passed, 1 deselected")
    assert mentions(suite(SLOW, "-m", "slow")[1], "1 passed, 1 deselected")
    assert mentions(suite(SLOW, "test_it.py::test_slow")[1], "1 passed")


COSTLY = """
import subprocess, sys, time
import pytest

@pytest.mark.parametrize("number", range(20))
def test_something(number):
    pass

def test_that_takes_long():
    time.sleep(1)

def test_that_starts_programs():
    for _ in range(3):
        subprocess.run(["true"], check=True)
"""


def test_ci_fails_for_a_test_that_takes_long_and_the_report_names_it(suite):
    code, out = suite(COSTLY, limits="max_test_seconds = 0.01\n", CI="true")

    assert code == 1
    assert mentions(out, "over the budget", "test_that_takes_long", "marked slow")


def test_ci_names_what_failed_it_in_a_run_of_few_tests(suite):
    code = "import time\n\ndef test_that_takes_long():\n    time.sleep(1)\n"

    exit_code, out = suite(code, limits="max_test_seconds = 0.01\n", CI="true")

    assert exit_code == 1
    assert mentions(out, "over the budget", "test_that_takes_long")


def test_ci_fails_for_more_programs_than_were_agreed(suite):
    limits = "max_process_starts = 2\n"

    assert suite(COSTLY, limits=limits)[0] == 0  # on a developer's machine it is said alone
    code, out = suite(COSTLY, limits=limits, CI="true")

    assert code == 1
    assert mentions(out, "3 programs started", "max_process_starts is 2")


ALONE = """
import os, time
from pathlib import Path
import pytest

FOLDER = Path(__file__).parent
HERE = FOLDER / f"running-{os.getpid()}"

def others():
    return [each for each in FOLDER.glob("running-*") if each != HERE]

@pytest.fixture(autouse=True)
def noted():
    HERE.touch()
    yield
    HERE.unlink()

@pytest.mark.parametrize("number", range(12))
def test_with_others(number):
    time.sleep(0.05)

@pytest.mark.alone
@pytest.mark.parametrize("number", range(6))
def test_alone(number):
    for _ in range(5):
        assert others() == []
        time.sleep(0.01)
"""


def test_tests_that_are_marked_alone_run_while_no_other_does(suite):
    code, out = suite(ALONE, "-n", "3", "--dist", "load")

    assert code == 0, out
    assert mentions(out, "18 passed")


GROUPS = """
import os
import pytest

@pytest.fixture(scope="module")
def process():
    return os.getpid()

@pytest.mark.parametrize("number", range(40))
def test_module_is_run_by_one_process(process, number):
    with open("processes", "a") as file:
        file.write(f"{process}\\n")
"""


def test_tests_of_a_module_are_run_by_one_process(suite, tmp_path):
    code, out = suite(GROUPS, "-n", "3", "--dist", "loadgroup")

    assert code == 0, out
    assert len({*(tmp_path / "processes").read_text().split()}) == 1


def test_ports_are_given_once():
    given = [ports.free_port() for _ in range(5)] + list(ports.free_ports("a", "b").values())

    assert len(set(given)) == len(given)


def test_wait_that_is_in_vain_says_for_what(monkeypatch):
    monkeypatch.setattr(waiting, "HEADROOM", 1)

    with pytest.raises(TimeoutError, match="the server has begun"):
        waiting.wait_until(lambda: False, "the server has begun", seconds=0.01)


def test_bounds_follow_the_machine(monkeypatch):
    monkeypatch.setattr(waiting, "measure", lambda: 4.0)

    assert waiting.scale(10) == 10 * 4 * waiting.HEADROOM
