"""Programs that some tests need beside Python's packages."""

import os
import shutil

import pytest


def program(name, path=None):
    """The path of a program; without it the test is skipped, but in CI, where it must be, fails."""
    found = shutil.which(name, path=path)
    if found is None:
        lack(f"{name} is not installed")
    return found


def lack(reason):
    """Skip a test for want of something, and fail it in CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
