"""The backend for a project of someone else, in an environment that has MLflow and no torch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from tests.support import required, slurm_jobs

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """The programs of a new environment: MLflow, and this package's wheel without its needs."""
    folder = tmp_path_factory.mktemp("no-torch")
    beside = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    uv = required.program("uv", path=beside)
    install = [uv, "pip", "install", "--quiet", "--python", folder / "env"]
    mlflow_alone = [f"mlflow=={mlflow.__version__}", "--constraint", ROOT / "requirements.txt"]
    for command in (
        [uv, "venv", "--quiet", folder / "env"],
        [*install, *mlflow_alone],
        [uv, "build", "--wheel", "--quiet", "--out-dir", folder / "dist", ROOT],
    ):
        subprocess.run(command, check=True)
    wheel = next(folder.glob("dist/*.whl"))
    subprocess.run([*install, "--no-deps", wheel], check=True)
    yield folder / "env" / "bin"
    shutil.rmtree(folder)  # 1 GB


def run(tools, *words):
    """Run a program of that environment, where the checkout can't be imported; its output."""
    # It has no bytecode yet; without it each program would compile MLflow.
    without = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    variables = {name: value for name, value in os.environ.items() if name not in without}
    variables["PATH"] = f"{tools}:{os.environ['PATH']}"
    done = subprocess.run(words, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_foreign_project_is_submitted_runs_and_has_a_status_without_torch(slurm, tools, tmp_path):
    found = run(tools, "python", "-c", "import importlib.util as u; print(u.find_spec('torch'))")
    assert found == "None\n"
    slurm_jobs.write_foreign_project(tmp_path / "foreign")
    words = ["mlflow", "run", str(tmp_path / "foreign"), "--env-manager", "local"]
    run(tools, *words, "--backend", "slurm", "--backend-config", '{"mem": "1000M"}')

    submitted = mlflow.search_runs(output_format="list")[0]
    slurm.wait_for(submitted.data.tags["slurm_job_id"], "COMPLETED", "FAILED")
    ended = mlflow.get_run(submitted.info.run_id)
    assert ended.info.status == "FINISHED", ended.data.tags
    assert f"source {tools}/activate" in script(ended)
    output = run(tools, "pyclassify", "slurm", "status", submitted.info.run_id)
    assert output.startswith(f"run {submitted.info.run_id}: FINISHED\njob ")
    assert "it is done" in run(tools, "pyclassify", "slurm", "logs", submitted.info.run_id)


def script(run):
    return mlflow.artifacts.load_text(f"{run.info.artifact_uri}/slurm/job.sh")
