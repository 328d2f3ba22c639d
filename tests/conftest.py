"""The fixtures that all tests share; how the tests are run is in `tests.support.suite`."""

import itertools
import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

# Before torch is imported, and for all that tests start: many processes at once, whose threads
# would wait for each other's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import mlflow
import pytest
import requests
from filelock import FileLock
from sqlalchemy import event
from sqlalchemy.engine import Engine

# Imported before a test is captured: Lightning logs for good to the stderr that it is born with.
from pyclassify.cli import lightning_cli  # noqa: F401
from pyclassify.cli.main import main
from pyclassify.tracking import capsule
from tests.support import budget, required, slurm_jobs, spooled
from tests.support import service as service_parts
from tests.support.cluster import Cluster, missing
from tests.support.processes import running
from tests.support.service import ADMIN
from tests.support.stores import list_runs, new_store

pytest_plugins = ["tests.support.suite"]
FOLDERS = itertools.count()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A database with MLflow's tables, which take seconds to make: one for all processes."""
    folder = Path(os.environ[budget.FOLDER])
    made = folder / "store" / "mlflow.db"
    with FileLock(folder / "store.lock"):
        if not made.exists():
            making = tmp_path_factory.mktemp("store")
            client = mlflow.MlflowClient(f"sqlite:///{making}/mlflow.db")
            client.create_experiment("tested", str(folder / "artifacts"))
            made.parent.mkdir()
            shutil.copy(making / "mlflow.db", made)
    return made


@pytest.fixture
def tmp_path(tmp_path):
    """A folder whose path no other test has had.

    Pytest reuses the names of folders that it has removed, and MLflow keeps databases open by path.
    """
    folder = tmp_path / str(next(FOLDERS))
    folder.mkdir()
    return folder


@pytest.fixture
def store(empty_store, tmp_path):
    """A client of a new database, TMP_PATH/mlflow.db, which the environment names."""
    with new_store(empty_store, tmp_path) as client:
        yield client


@pytest.fixture
def other_store(tmp_path):
    """Have the process name a store that does not exist; the URI of the one that it named."""
    uri = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/other.db")
    yield uri
    mlflow.set_tracking_uri(uri)


@pytest.fixture(scope="module")
def module_store(empty_store, tmp_path_factory):
    """A client of a database that the tests of a module share."""
    with new_store(empty_store, tmp_path_factory.mktemp("store")) as client:
        yield client


@pytest.fixture
def cli(store, tmp_path, monkeypatch, capsys):
    """Run a command line in `tmp_path`: `cli("fit --seed 1", "--option=with blanks")`.

    It returns the exit code, what was written to stdout (`out`) and to stderr (`err`), and the
    store's runs, the newest first.
    """
    monkeypatch.chdir(tmp_path)

    def run(options, *more):
        try:
            code = main([*options.split(), *more])
        except SystemExit as leaving:
            code = leaving.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err, runs=list_runs(store))

    return run


@pytest.fixture
def command(capsys):
    """Run a command line, in the current folder: the exit code, and what was written."""

    def run(line, *more):
        code = main([*line.split(), *more])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture
def script():
    """A function that starts code in a process of its own, which ends with the test."""
    with ExitStack() as started:
        yield lambda code: started.enter_context(running(code))


@pytest.fixture(scope="module")
def registry_store(empty_store, tmp_path_factory):
    """A store that the tests of a file share: to open it takes longer than most of them."""
    with (
        new_store(empty_store, tmp_path_factory.mktemp("registry")),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        event.listen(Engine, "connect", _hurry)
        yield
        event.remove(Engine, "connect", _hurry)


def _hurry(connection, _):
    """Let SQLite wait for no disk: a promotion check is fifty transactions."""
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
    """A run in a store of its own, and its spool: see `spooled.open_run_with_spool`."""
    with spooled.open_run_with_spool(empty_store, tmp_path) as made:
        yield made


@pytest.fixture
def write_capsule(tmp_path, monkeypatch):
    """Write the capsule of a run that starts in a folder; its folder and capsule.json."""

    def write(started_in, config=None, facts=None):
        monkeypatch.chdir(started_in)
        folder = tmp_path / "capsule"
        folder.mkdir()
        capsule.write_capsule(folder, config or {"seed_everything": 3}, facts or {}, ["runs"])
        return folder, json.loads((folder / "capsule.json").read_text())

    return write


@pytest.fixture(scope="session")
def cluster():
    """A SLURM cluster, started for the first test that asks for it."""
    if reason := missing():
        required.lack(reason)
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def slurm(cluster, empty_store, tmp_path, monkeypatch):
    """The cluster, for submissions from an empty folder with a tracking store of its own."""
    slurm_jobs.enter_submission_folder(monkeypatch, cluster, empty_store, tmp_path)
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
    proxy = service_parts.Proxy(service)
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
