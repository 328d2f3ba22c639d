"""Tests that are marked `alone` run while no other test does, in whatever process of xdist."""

import contextlib
import fcntl

import pytest


class Turns:
    """The plugin of pytest: two locks on files that all processes of a run share.

    Others hold `running` together. Who waits for it alone holds `gate` meanwhile, where all have to
    pass, so that those who come later wait too.
    """

    def __init__(self, folder):
        self.folder = folder

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        alone = item.get_closest_marker("alone")
        with contextlib.ExitStack() as held:
            with self._lock("gate", fcntl.LOCK_EX):
                held.enter_context(self._lock("running", fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
            return (yield)

    @contextlib.contextmanager
    def _lock(self, name, kind):
        with (self.folder / name).open("w") as file:
            fcntl.flock(file, kind)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # a forked process may have the file open too
