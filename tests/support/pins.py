"""The files of pins, as the tests read them."""

from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


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
