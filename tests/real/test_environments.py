"""The environments that `mlflow run` makes out of conda.yaml."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.utils.conda import _get_conda_env_name
from mlflow.utils.environment import _PythonEnv
from mlflow.utils.virtualenv import _get_virtualenv_name
from packaging.utils import canonicalize_name

from tests.support import processes, required
from tests.support.required import program

ROOT = Path(__file__).parents[2]
LIST_DISTRIBUTIONS = """
import importlib.metadata, json, sys
found = {each.name: each.version for each in importlib.metadata.distributions()}
json.dump([sys.version_info[:3], found], sys.stdout)
"""


def environment_name(manager, project):
    """Ask MLflow for the name of a project's environment."""
    conda_yaml = project / "conda.yaml"
    if manager == "conda":
        return _get_conda_env_name(conda_yaml)
    return _get_virtualenv_name(_PythonEnv.from_conda_yaml(conda_yaml), project)


@pytest.fixture
def project(tmp_path):
    """A copy of what MLflow makes an environment from."""
    for name in ("conda.yaml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("manager", ["conda", "uv", "virtualenv"])
def test_new_pins_make_a_new_environment(manager, project):
    before = environment_name(manager, project)
    with (project / "requirements.txt").open("a") as requirements:
        requirements.write("one-more==1.0\n")
    # as .ci/pin does
    conda_yaml = project / "conda.yaml"
    conda_yaml.write_text(re.sub(r"(?<=sha256 )\w+", "0" * 64, conda_yaml.read_text()))

    assert environment_name(manager, project) != before


def test_every_manager_finds_all_it_needs_in_conda_yaml():
    found = _PythonEnv.from_conda_yaml(ROOT / "conda.yaml")

    assert re.fullmatch(r"3\.11\.\d+", found.python)
    assert found.dependencies == ["-r requirements.txt"]


def path_with_tools():
    """The path, with what is installed beside this Python first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def need(manager):
    """Skip a test of a manager where what it works with is missing."""
    if manager == "uv":
        program("uv", path_with_tools())
    elif not shutil.which("pyenv"):
        pytest.skip("pyenv is not installed, which MLflow takes Python from")
    else:
        python = _PythonEnv.from_conda_yaml(ROOT / "conda.yaml").python
        if subprocess.run(["pyenv", "prefix", python], capture_output=True).returncode:
            pytest.skip(f"pyenv has no Python {python}, and building it takes minutes")


@pytest.fixture
def environments(tmp_path):
    yield tmp_path / "envs"
    shutil.rmtree(tmp_path / "envs", ignore_errors=True)  # 6 GB


@pytest.mark.slow
@pytest.mark.environment
@pytest.mark.parametrize("manager", ["uv", "virtualenv"])
def test_mlflow_runs_the_project_in_an_environment_of_the_pins(manager, environments, tmp_path):
    need(manager)
    variables = {
        **os.environ,
        "PATH": path_with_tools(),
        "MLFLOW_ENV_ROOT": str(environments),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        # Compiling takes pip a minute, and would save the one run eight seconds.
        "PIP_COMPILE": "0",
    }
    command = ["-m", "mlflow", "run", str(ROOT), "--env-manager", manager]
    entry_point = ["-e", "prepare", "-P", "config=configs/synthetic.yaml"]
    output = {"stdout": processes.PIPE, "stderr": processes.STDOUT}

    run = processes.start(*command, *entry_point, cwd=tmp_path, env=variables, **output)
    try:
        log, _ = run.communicate(timeout=600)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)  # with the installation that it has started

    assert run.returncode == 0, log
    environment = environments / environment_name(manager, ROOT)
    assert f"source {environment}/bin/activate && python -m pyclassify prepare" in log
    python, distributions = installed(environment)
    assert python == _PythonEnv.from_conda_yaml(ROOT / "conda.yaml").python
    expected = required.versions("requirements.txt", platform_only=True)
    assert expected.items() <= distributions.items()
    assert distributions.keys() - expected.keys() <= {"pip"}


def installed(environment):
    """Ask an environment for its Python's version and for what is installed in it."""
    command = [str(environment / "bin" / "python"), "-I", "-c", LIST_DISTRIBUTIONS]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    python, distributions = json.loads(answer)
    return ".".join(map(str, python)), {
        canonicalize_name(name): version for name, version in distributions.items()
    }
