"""What the tests cost: a report at the end, and in CI a failure where it is more than was agreed.

The limits are settings of pytest in pyproject.toml: `max_test_seconds` for a test that isn't marked
`slow`, on a quiet machine, and `max_process_starts` for all tests together. Counted are programs
that tests start themselves, not what those start in turn, and not git, which takes milliseconds.
A fork of the fork server takes no imports and is counted apart.
"""

import contextlib
import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support import waiting

SLOWEST, SUBJECTS = 20, 15
FOLDER = "PYCLASSIFY_TESTS_FOLDER"  # names a folder that all processes of a run share


def add_options(parser):
    parser.addini("max_test_seconds", "of a test that isn't marked slow", default="60")
    parser.addini("max_process_starts", "by all tests together", default="0")


def count_starts():
    """Count what this process starts from now on."""
    sys.addaudithook(lambda event, args: _is_counted(event, args) and note_start("x"))


def _is_counted(event, args):
    # Not the monitor of each training in this process, which is there in a few hundredths.
    return event == "subprocess.Popen" and args[0] != "git" and "-IS" not in args[1]


def note_start(kind):
    """Note a start: `x` for a program, `f` for a fork of the fork server."""
    if FOLDER not in os.environ:
        return
    with contextlib.suppress(FileNotFoundError):  # what is started after the end of the run
        file = os.open(_starts(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(file, kind.encode())
        os.close(file)


def _starts():
    return Path(os.environ[FOLDER], "starts")


class Budget:
    """The plugin of pytest; in a worker of xdist it only says how fast the machine is."""

    def __init__(self, config):
        self.config = config
        self.is_worker = hasattr(config, "workerinput")
        self.seconds, self.factors, self.slow = Counter(), {}, set()
        self.spent = Counter()  # of the tests that this process runs
        self.starts = Counter()
        count_starts()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        self.spent[item.nodeid] += call.duration
        if self.spent[item.nodeid] > self.limit:
            report.user_properties.append(("times as slow", waiting.measure()))
        return report

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        if "slow" in report.keywords:
            self.slow.add(report.nodeid)
        factor = dict(report.user_properties).get("times as slow", 1)
        self.factors[report.nodeid] = max(factor, self.factors.get(report.nodeid, 1))

    def pytest_sessionfinish(self, session, exitstatus):
        if not self.is_worker:
            self.starts = Counter(_starts().read_text() if _starts().exists() else "")
            if os.environ.get("CI") and self.overruns() and exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.is_worker:
            return
        if len(self.seconds) >= SLOWEST:
            self._write_report(terminalreporter)
        for line in self.overruns():
            terminalreporter.write_line(f"over the budget: {line}", red=True)

    def _write_report(self, terminalreporter):
        write = terminalreporter.write_line
        terminalreporter.section("what the tests cost")
        for name, seconds in self.seconds.most_common(SLOWEST):
            write(f"{seconds:7.1f} s  {re.sub(r'@[a-z_]+$', '', name)}")  # without its group
        subjects = Counter()
        for name, seconds in self.seconds.items():
            subjects[subject(name)] += seconds
        total = sum(subjects.values())
        write(f"{total:7.1f} s  in all, most of it about:")
        for name, seconds in subjects.most_common(SUBJECTS):
            write(f"{seconds:7.1f} s  {seconds / total:4.0%}  {name}")
        write(f"{self.starts['x']} programs started, {self.starts['f']} processes forked")

    @property
    def limit(self):
        return float(self.config.getini("max_test_seconds"))

    def overruns(self):
        """What took more than was agreed, a line each."""
        most = int(self.config.getini("max_process_starts"))
        found = [
            f"{name} took {seconds:.0f} s, {self.factors[name]:.1f} times as slow as a quiet "
            f"machine; a test that isn't marked slow has {self.limit:.0f} s"
            for name, seconds in self.seconds.items()
            if name not in self.slow and seconds > self.limit * self.factors[name]
        ]
        if most and self.starts["x"] > most:
            found.append(f"{self.starts['x']} programs started; max_process_starts is {most}")
        return found


def subject(nodeid):
    """What a test is about: the room that its module lies in, or the first word of its name."""
    path = Path(nodeid.partition("::")[0])
    room = path.parent.name
    return room if room != "tests" else re.sub(r"^test_|_.*$|\.py$", "", path.name)
