"""The command line in this process, in a folder and with a tracking store of its own."""

import json
import os
import shutil
from types import SimpleNamespace

import mlflow
import pytest
import required
import slurm_runs
from cluster import Cluster, missing

# Imported before a test is captured: Lightning logs for good to the stderr that it is born with.
from pyclassify import training  # noqa: F401
from pyclassify.cli import main
from pyclassify.tracking import capsule


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A database with MLflow's tables, which take seconds to make."""
    folder = tmp_path_factory.mktemp("store")
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    client.create_experiment("tested", str(folder / "artifacts"))
    return folder / "mlflow.db"


@pytest.fixture
def cli(empty_store, tmp_path, monkeypatch, capsys):
    """Run a command line: `cli("fit --seed 1", "--option=with blanks")`.

    It returns the exit code, what was written to stdout (`out`) and to stderr (`err`), and the
    store's runs, the newest first.
    """
    shutil.copy(empty_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tested")
    for name in ("MLFLOW_RUN_ID", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "")  # which restores it afterwards
        os.environ.pop(name)

    def run(options, *more):
        try:
            code = main([*options.split(), *more])
        except SystemExit as leaving:
            code = leaving.code
        out, err = capsys.readouterr()
        experiment = mlflow.get_experiment_by_name("tested").experiment_id
        runs = mlflow.MlflowClient().search_runs([experiment])
        return SimpleNamespace(code=code, out=out, err=err, runs=runs)

    yield run
    mlflow.set_tracking_uri(None)


@pytest.fixture
def write_capsule(tmp_path, monkeypatch):
    """Write the capsule of a run that starts in a folder; its folder and capsule.json."""

    def write(started_in, config=None, facts=None):
        monkeypatch.chdir(started_in)
        folder = tmp_path / "capsule"
        folder.mkdir()
        capsule.write(folder, config or {"seed_everything": 3}, facts or {}, ["runs"])
        return folder, json.loads((folder / "capsule.json").read_text())

    return write


@pytest.fixture(scope="session")
def cluster():
    """A SLURM cluster, started for the first test that asks for it."""
    if reason := missing():
        required.lack(reason)
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def slurm(cluster, empty_store, tmp_path, monkeypatch):
    """The cluster, for submissions from an empty folder with a tracking store of its own."""
    slurm_runs.enter(monkeypatch, cluster, empty_store, tmp_path)
    yield cluster
    mlflow.set_tracking_uri(None)
