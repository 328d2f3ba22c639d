"""Environments on a real cluster: one that a manager builds, and that of an image."""

import os
import sys
from pathlib import Path

from tests.support import slurm_python
from tests.support.slurm_jobs import (
    get_description,
    get_newest_run,
    read_log,
    submit_project,
    write_project,
)

TELL = "import sys, mlflow\nmlflow.log_metric('torch', 'torch' in sys.modules)\nprint(sys.prefix)"


def test_manager_builds_on_the_login_node(slurm, tmp_path, monkeypatch):
    project = write_project(tmp_path / "submitted", "print('never')")
    (project / "MLproject").write_text(
        (project / "MLproject").read_text() + "python_env: python_env.yaml\n"
    )
    python = ".".join(map(str, sys.version_info[:3]))
    (project / "python_env.yaml").write_text(f'python: "{python}"\ndependencies: []\n')
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(tmp_path / "environments"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    submitted = submit_project(
        project, {"sbatch_args": ["--begin=now+1"]}, env_manager="uv", forks=False
    )
    built = [*(tmp_path / "environments").rglob("bin/activate")]
    slurm.wait_for(submitted.job_id, "FAILED")

    assert len(built) == 1
    assert "No module named 'mlflow'" in read_log(submitted, "err")  # it is that environment
    assert "never" not in read_log(submitted)
    assert submitted.get_status() == "FAILED"
    assert "the start of the run could not be reported to MLflow" in get_description(
        get_newest_run()
    )


def test_image_runs_the_command_and_reports(slurm, tmp_path, monkeypatch):
    project = write_project(tmp_path / "submitted", TELL)
    # In Apptainer's place: it runs here what is behind the image.
    apptainer = tmp_path / "bin" / "apptainer"
    apptainer.parent.mkdir()
    apptainer.write_text('#!/bin/bash\necho "in $5 by ${*:1:2}"\nexec "${@:6}"\n')
    apptainer.chmod(0o755)
    inside = Path(slurm_python.environment(), "bin")
    beside = (apptainer.parent, inside, os.environ["PATH"])
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, beside)))

    (project / "an image.sif").touch()

    submitted = submit_project(
        project, {"container": "an image.sif"}, synchronous=True, forks=False
    )

    assert get_newest_run().info.status == "FINISHED"
    # Start, training, end.
    assert read_log(submitted).count(f"in {project}/an image.sif by exec --nv\n") == 3
