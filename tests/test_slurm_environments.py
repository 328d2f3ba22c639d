"""Environments on a real cluster: one with mlflow alone, and one that a manager builds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pins
import pytest
from slurm_runs import log, newest, note, submit, write_project

ROOT = Path(__file__).parents[1]
TELL = "import sys, mlflow\nmlflow.log_metric('torch', 'torch' in sys.modules)\nprint(sys.prefix)"


def uv(*words):
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    program = shutil.which("uv", path=beside) or pytest.skip("uv is not installed")
    subprocess.run([program, *map(str, words)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def mlflow_alone(tmp_path_factory):
    """An environment with mlflow and what that needs, and the wheel without what it needs."""
    folder = tmp_path_factory.mktemp("alone")
    uv("build", "--wheel", "--out-dir", folder / "dist", ROOT)
    uv("venv", "--python", sys.executable, folder / "venv")
    version = pins.versions("requirements.txt")["mlflow"]
    python = folder / "venv/bin/python"
    uv("pip", "install", "--python", python, f"mlflow=={version}", "-c", ROOT / "requirements.txt")
    uv("pip", "install", "--python", python, "--no-deps", *(folder / "dist").glob("*.whl"))
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 1
    return folder / "venv"


def test_foreign_project_runs_where_there_is_mlflow_alone(slurm, mlflow_alone, tmp_path):
    write_project(tmp_path / "submitted", TELL)

    words = [mlflow_alone / "bin/mlflow", "run", ".", "--env-manager", "local"]
    words += ["--backend", "slurm", "--backend-config", '{"wait": true}']
    done = subprocess.run(words, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert (newest().info.status, newest().data.metrics) == ("FINISHED", {"torch": 0.0})
    assert f"\n{mlflow_alone}\n" in done.stdout


def test_manager_builds_on_the_login_node(slurm, tmp_path, monkeypatch):
    project = write_project(tmp_path / "submitted", "print('never')")
    (project / "MLproject").write_text(
        (project / "MLproject").read_text() + "python_env: python_env.yaml\n"
    )
    python = ".".join(map(str, sys.version_info[:3]))
    (project / "python_env.yaml").write_text(f'python: "{python}"\ndependencies: []\n')
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(tmp_path / "environments"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    submitted = submit(project, {"sbatch_args": ["--begin=now+1"]}, env_manager="uv")
    built = [*(tmp_path / "environments").rglob("bin/activate")]
    slurm.wait_for(submitted.job_id, "FAILED")

    assert len(built) == 1
    assert "No module named 'mlflow'" in log(submitted, "err")  # it is that environment
    assert "never" not in log(submitted)
    assert submitted.get_status() == "FAILED"
    assert "MLflow can't be told that the run starts" in note(newest())


def test_image_runs_the_command_and_reports(slurm, tmp_path, monkeypatch):
    project = write_project(tmp_path / "submitted", TELL)
    # In Apptainer's place: it runs here what is behind the image.
    apptainer = tmp_path / "bin" / "apptainer"
    apptainer.parent.mkdir()
    apptainer.write_text('#!/bin/bash\necho "in $5 by ${*:1:2}"\nexec "${@:6}"\n')
    apptainer.chmod(0o755)
    beside = (apptainer.parent, Path(sys.executable).parent, os.environ["PATH"])
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, beside)))

    submitted = submit(project, {"container": "an image.sif"}, synchronous=True)

    assert newest().info.status == "FINISHED"
    assert log(submitted).count("in an image.sif by exec --nv\n") == 3  # start, training, end
