"""How the tests are run: shared out to processes in groups, the slow ones only when asked for."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from tests.support import alone, budget

# What a fixture stands for, and the marker of the tests that need it.
NEEDS = {"cluster": "slurm", "service": "service"}
# Expensive parts that are started once, as one process of xdist runs all tests of each.
TOGETHER = ("service", "slurm", "browser", "environment")
# Groups that take longest, by marker or room: begun with, so that none is left for the end.
FIRST = (
    *("slurm", "service", "environment"),
    *("tests.real", "tests.benchmarks", "tests.runs", "tests.cli", "tests.registry"),
)


def pytest_addoption(parser):
    budget.add_options(parser)


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell's job in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # or tests' processes had it so
    config.addinivalue_line("markers", "xdist_group(name): run by one process of pytest-xdist")
    if not hasattr(config, "workerinput"):
        folder = tempfile.mkdtemp(prefix="pyclassify-tests-")
        os.environ[budget.FOLDER] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        config.option.loadscopereorder = False  # groups in the order that is given below
    config.pluginmanager.register(budget.Budget(config))
    config.pluginmanager.register(alone.Turns(Path(os.environ[budget.FOLDER])))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One process more than cores: a good part of the time tests wait for other programs."""
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None  # which xdist reads itself
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores + 1


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config, items):
    for item in items:
        for fixture, marker in NEEDS.items():
            if fixture in item.fixturenames:
                item.add_marker(marker)
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    items.sort(key=turn_of)
    is_named = any("::" in each for each in config.args)
    if "slow" not in config.option.markexpr and not is_named:
        left_out = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def turn_of(item):
    group = group_of(item)
    return next((turn for turn, name in enumerate(FIRST) if group.startswith(name)), len(FIRST))


def group_of(item):
    """Tests of one group are run by one process of xdist, one after another."""
    return next(filter(item.get_closest_marker, TOGETHER), item.module.__name__)
