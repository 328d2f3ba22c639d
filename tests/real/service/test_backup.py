"""A group's server is backed up while runs arrive, and restored on an empty machine."""

import contextlib
import shutil
import socketserver
import threading
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from tests.support import service_content
from tests.support.ports import free_port
from tests.support.service import ADMIN, PATH, database, need, objects, rows, sign_in, started

pytestmark = pytest.mark.service


@contextlib.contextmanager
def before_each(programs, folder, act):
    """A PATH on which each of some programs waits for `act(program)` before it begins."""

    class Asked(socketserver.StreamRequestHandler):
        def handle(self):
            act(self.rfile.readline().decode().strip())
            self.wfile.write(b"go\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Asked) as server:
        for program in programs:
            script = folder / program
            script.write_text(
                "#!/bin/bash\n"
                f"exec 3<>/dev/tcp/127.0.0.1/{server.server_address[1]}\n"
                f"echo {program} >&3 && read -r go <&3 && exec 3>&-\n"
                f'exec {shutil.which(program, path=PATH)} "$@"\n'
            )
            script.chmod(0o755)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{folder}:{PATH}"
        server.shutdown()


@pytest.fixture(scope="module")
def kept(service, people, tmp_path_factory):
    """The service's backup, with a run that arrived before each step, and what was there then."""
    need("rclone", "pg_dump")
    folder, backup = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("backup")
    arrived, held = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        sign_in(patch, service, ADMIN)
        there = mlflow.MlflowClient(service.uri)
        runs = service_content.fill(there, folder)
        experiment = there.get_run(runs[0]).info.experiment_id

        def arrive(program):
            arrived[program] = service_content.make_run(there, experiment, folder)
            held[program] = rows(database(service))

        with before_each(["pg_dump", "rclone"], tmp_path_factory.mktemp("bin"), arrive) as path:
            service.run("rclone", "backup", BACKUP=str(backup), PATH=path)
        yield SimpleNamespace(there=there, runs=runs, backup=backup, arrived=arrived, held=held)


@pytest.fixture(scope="module")
def restored(kept):
    """The service that an empty machine has after the restore."""
    with started() as empty:
        empty.run("rclone", "restore", BACKUP=str(kept.backup))
        yield empty


def test_restored_database_is_that_of_the_dump(kept, restored):
    assert rows(database(restored)) == kept.held["pg_dump"]


def test_restored_bucket_has_every_file(kept, service, restored):
    assert objects(restored) == objects(service)


def test_run_that_arrives_after_the_dump_leaves_files_and_no_record(kept, restored):
    late = kept.arrived["rclone"]
    known = rows(database(restored), {"runs": ["run_uuid"]})["runs"]
    assert repr((kept.arrived["pg_dump"],)) in known
    assert repr((late,)) not in known
    assert [key for key in objects(restored) if late in key]


def test_restored_server_has_accounts_and_serves_the_champion(kept, restored, people, monkeypatch):
    restored.start_server()
    sign_in(monkeypatch, restored, people["bob"])
    client = mlflow.MlflowClient(restored.uri)
    champion = client.get_model_version_by_alias("net", "champion")
    model = mlflow.artifacts.download_artifacts(champion.source, tracking_uri=restored.uri)
    assert Path(model, "MLmodel").read_text() == f"run_id: {kept.runs[1]}\n"


def test_next_backup_has_a_file_that_was_written_again(kept, service):
    run_id = kept.runs[0]
    kept.there.log_text(run_id, "run_id: another\n".ljust(41), "model/MLmodel")
    service.run("rclone", "backup", BACKUP=str(kept.backup))
    (copy,) = kept.backup.glob(f"bucket/*/{run_id}/artifacts/model/MLmodel")
    assert copy.read_text().startswith("run_id: another")
    assert len(list(kept.backup.glob("mlflow-*.dump"))) == 2


def test_backup_without_the_bucket_fails_and_leaves_no_dump(service, tmp_path):
    need("rclone", "pg_dump")
    nobody = {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{free_port()}"}
    once = {"RCLONE_RETRIES": "1", "RCLONE_LOW_LEVEL_RETRIES": "1"}
    with pytest.raises(RuntimeError, match="connection refused"):
        service.run("rclone", "backup", BACKUP=str(tmp_path), **nobody, **once)
    assert not list(tmp_path.glob("mlflow-*.dump"))
