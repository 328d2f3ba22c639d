"""Projects that know nothing of pyclassify, submitted to the cluster of the tests."""

import contextlib
import os
import shutil
import textwrap

import mlflow

from tests.support import slurm_python
from tests.support.waiting import wait_until

# Code of a project that says what it does.
TELLS = """
    import os, mlflow
    mlflow.log_param("said", "hello")
    print("I run in", os.getcwd())
"""

FINAL = ("FINISHED", "FAILED", "KILLED")


def enter(patch, cluster, empty_store, folder):
    """Go to an empty folder to submit from, with a tracking store beside it."""
    shutil.copy(empty_store, folder)
    (folder / "submitted").mkdir()
    patch.chdir(folder / "submitted")
    for name, value in cluster.env.items():
        patch.setenv(name, value)
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    patch.setenv("MLFLOW_EXPERIMENT_NAME", "tested")
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.delenv("MLFLOW_RUN_ID", raising=False)


def write_project(folder, code, parameters=""):
    """Write a project whose `main` runs some code of Python; returns its folder."""
    folder.mkdir(exist_ok=True)
    declared = f"\n    parameters: {{{parameters}}}" if parameters else ""
    given = "".join(f" {{{each.split(':')[0].strip()}}}" for each in parameters.split(",") if each)
    (folder / "MLproject").write_text(
        f'name: foreign\nentry_points:\n  main:{declared}\n    command: "python train.py{given}"\n'
    )
    (folder / "train.py").write_text(textwrap.dedent(code))
    return folder


def submit(project, config=None, forks=True, **options):
    """Submit it in this environment; returns the submitted run.

    Args:
        project: The project.
        config: The backend's configuration.
        forks: Whether the job's reports to MLflow are forked (see `slurm_python`).
        options: Of `mlflow.projects.run`.
    """
    given = {"synchronous": False, "env_manager": "local", **options}
    if forks:
        config = {"environment": slurm_python.environment(), **(config or {})}
    return mlflow.projects.run(
        str(project), backend="slurm", backend_config=dict(config or {}), **given
    )


def read(submitted):
    return mlflow.MlflowClient().get_run(getattr(submitted, "run_id", submitted))


def newest():
    experiment = mlflow.get_experiment_by_name("tested").experiment_id
    return mlflow.MlflowClient().search_runs([experiment], max_results=1)[0]


def note(run):
    return run.data.tags.get("mlflow.note.content", "")


def artifacts(run, folder="slurm"):
    return {each.path for each in mlflow.MlflowClient().list_artifacts(run.info.run_id, folder)}


def log(submitted, ending="out"):
    """What its job wrote."""
    folder = read(submitted).data.tags["slurm_folder"]
    with contextlib.ExitStack() as stack:
        names = [each.path for each in os.scandir(folder) if each.name.endswith(f".{ending}")]
        return "".join(stack.enter_context(open(name)).read() for name in names)


def wait_for_status(submitted, statuses=FINAL, seconds=120):
    """Wait until the job has said so itself: nobody asks SLURM here."""

    def has_come():
        return read(submitted).info.status in statuses

    try:
        wait_until(has_come, f"the run is {' or '.join(statuses)}", seconds, pause=0.1)
    except TimeoutError as late:
        late.add_note(f"{read(submitted).info.status}: {log(submitted, 'err')}")
        raise
    return read(submitted)
