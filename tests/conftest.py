"""The command line in this process, in a folder and with a tracking store of its own."""

import json
import os
import shutil
from contextlib import ExitStack
from types import SimpleNamespace

# Before torch is imported, and for all that tests start: many processes at once, whose threads
# would wait for each other's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import mlflow
import pytest
import requests
from sqlalchemy import event
from sqlalchemy.engine import Engine

# Imported before a test is captured: Lightning logs for good to the stderr that it is born with.
from pyclassify import training  # noqa: F401
from pyclassify.cli import main
from pyclassify.tracking import capsule
from tests.support import required, service_parts, service_proxy, slurm_runs, spooled
from tests.support.cluster import Cluster, missing
from tests.support.scripts import running
from tests.support.service_parts import ADMIN


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
def script():
    """A function that starts code in a process of its own, which ends with the test."""
    with ExitStack() as started:
        yield lambda code: started.enter_context(running(code))


@pytest.fixture(scope="module")
def registry_store(empty_store, tmp_path_factory):
    """A store that the tests of a file share: to open it takes longer than most of them."""
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_store, folder)}")
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        event.listen(Engine, "connect", _hurry)
        yield
        event.remove(Engine, "connect", _hurry)
    mlflow.set_tracking_uri(None)


def _hurry(connection, _):
    """Let SQLite wait for no disk: a judgement is fifty transactions."""
    connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture
def registry(registry_store):
    """A client of a store without registered models."""
    client = mlflow.MlflowClient()
    yield client
    for model in client.search_registered_models():
        client.delete_registered_model(model.name)


@pytest.fixture
def spool(empty_store, tmp_path):
    """A run in a store of its own, and its spool: see `spooled.a_run`."""
    with spooled.a_run(empty_store, tmp_path) as made:
        yield made


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
    cluster.run("scancel", "--user=root")  # what still waits or runs would be in others' way


@pytest.fixture(scope="session")
def service():
    """The group's service of docs/service.md, started for the first test that asks for it."""
    if reason := service_parts.missing():
        required.lack(reason)
    service = service_parts.Service()
    try:
        service.start()
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="session")
def proxy(service):
    """nginx before the service: what users reach."""
    required.program("nginx", path=service_parts.PATH)
    proxy = service_proxy.Proxy(service)
    proxy.start()
    return proxy


@pytest.fixture(scope="session")
def people(service):
    """The names and the passwords of Ada, whom the page's command made, and Bob."""
    accounts = {name: (name, f"the password of {name}") for name in ("ada", "bob")}
    user, password = accounts["ada"]
    service.as_admin("account", WHO=user, SECRET=password)
    user, password = accounts["bob"]
    asked = {"username": user, "password": password}
    made = requests.post(f"{service.uri}/api/2.0/mlflow/users/create", json=asked, auth=ADMIN)
    made.raise_for_status()
    return accounts
