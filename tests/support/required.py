"""What tests need beside Python's packages, and the versions of those."""

import os
import shutil
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def program(name, path=None):
    """The path of a program; without it the test is skipped, but in CI, where it must be, fails."""
    found = shutil.which(name, path=path)
    if found is None:
        lack(f"{name} is not installed")
    return found


def lack(reason):
    """Skip a test for want of something, and fail it in CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def versions(*files, platform_only=False):
    """Read requirements files: name to version.

    Args:
        files: Their names.
        platform_only: Leave out what is not for this platform and Python.
    """
    lines = [line for file in files for line in (ROOT / file).read_text().splitlines()]
    requirements = [Requirement(line) for line in lines if not line.lstrip().startswith("#")]
    return {
        canonicalize_name(requirement.name): str(requirement.specifier).removeprefix("==")
        for requirement in requirements
        if not (platform_only and requirement.marker and not requirement.marker.evaluate())
    }
