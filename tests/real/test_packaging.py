"""What a checkout installs and what a wheel of it holds."""

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import required
from tests.support.required import program

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = ["requirements.txt", "requirements-dev.txt"]
REQUIREMENTS = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]


def test_conda_yaml_is_of_the_current_pins():
    current = hashlib.sha256((ROOT / "requirements.txt").read_bytes()).hexdigest()

    assert f"requirements.txt: sha256 {current}" in (ROOT / "conda.yaml").read_text(), (
        "requirements.txt has changed since conda.yaml was told: run `.ci/pin`"
    )


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_range_admits_the_pin(requirement):
    asked = Requirement(requirement)

    assert asked.specifier.contains(required.versions(*PINS)[canonicalize_name(asked.name)])


def test_both_files_pin_the_same_versions():
    run, develop = (required.versions(file) for file in PINS)

    assert run | develop == develop | run


@pytest.mark.parametrize("file", PINS)
def test_every_requirement_is_pinned(file):
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in required.versions(file).values())


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_compromised_lightning_is_refused(version):
    lightning = next(each for each in map(Requirement, REQUIREMENTS) if each.name == "lightning")

    assert not lightning.specifier.contains(version)


@pytest.mark.parametrize(
    "file", [*PINS, "conda.yaml", "pyproject.toml", "MLproject", ".ci/pin", ".ci/run"]
)
def test_names_no_index_and_no_place_on_a_machine(file):
    text = (ROOT / file).read_text()

    assert not re.search(r"\w://|index-url|find-links|--editable|^-e ", text, re.MULTILINE)
    assert not re.search(r"(?:^|[\s\"'=(])/\w", text, re.MULTILINE)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [tool("uv"), "build", "--wheel", "--quiet", "--out-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def bare_python(wheel, tmp_path_factory):
    """A new environment's Python, with the wheel and nothing that the wheel needs."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder)
    python = folder / "bin" / "python"
    command = [tool("uv"), "pip", "install", "--quiet", "--no-deps", "--python", str(python)]
    subprocess.run([*command, str(wheel)], check=True)
    return python


@pytest.fixture
def full_python(bare_python):
    """The same Python, where what the wheel needs is this test's own."""
    site_packages = next(bare_python.parents[1].glob("lib/python*/site-packages"))
    needs = site_packages / "needs.pth"
    needs.write_text(sysconfig.get_paths()["purelib"])
    yield bare_python
    needs.unlink()


def tool(name):
    """Find a tool beside this Python or on the path."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return program(name, path=beside)


def output(command, folder):
    # Neither the checkout nor anything else but the environment may be where the package is from.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_the_package_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tracked = output(["git", "ls-files", "pyclassify"], ROOT).split()

    assert {name for name in names if ".dist-info/" not in name} >= set(tracked)
    assert {name.partition("/")[0] for name in names} == {
        "pyclassify",
        f"pyclassify-{PROJECT['project']['version']}.dist-info",
    }


def test_wheel_has_the_template_of_the_batch_script(wheel):
    assert "pyclassify/slurm/job.sh.j2" in zipfile.ZipFile(wheel).namelist()


def test_wheel_is_typed_and_licensed(wheel):
    names = zipfile.ZipFile(wheel).namelist()

    assert "pyclassify/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_package_is_found_where_nothing_else_is_installed(bare_python, tmp_path):
    found = output([bare_python, "-c", "import pyclassify; print(pyclassify.__file__)"], tmp_path)

    assert Path(found.strip()).is_relative_to(bare_python.parents[1])


@pytest.mark.environment
def test_console_script_says_what_it_can_do(full_python, tmp_path):
    helped = output([full_python.parent / "pyclassify", "--help"], tmp_path)

    assert re.search(r"usage: pyclassify\b", helped)
    assert "train" in helped
