"""What utils may import: the reporter of a SLURM job runs it with MLflow alone."""

import ast
import sys
from pathlib import Path

import pytest

from pyclassify import utils

MODULES = sorted(Path(utils.__file__).parent.glob("*.py"))


def list_imports(path):
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_module_of_utils_imports_the_standard_library_and_yaml_only(path):
    allowed = {*sys.stdlib_module_names, "yaml"}
    others = {
        name
        for name in list_imports(path)
        if name.partition(".")[0] not in allowed and not f"{name}.".startswith("pyclassify.utils.")
    }
    assert others == set()
