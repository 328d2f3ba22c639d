"""What is old goes by the page's commands, with its files, and what serves stays."""

import time

import mlflow
import pytest

from tests.support.service import ADMIN, BUCKET, keys, need, sign_in
from tests.support.service_content import make_run

pytestmark = pytest.mark.service
DAY = 86400  # seconds


@pytest.fixture
def client(service, monkeypatch):
    need("rclone")
    sign_in(monkeypatch, service, ADMIN)
    return mlflow.MlflowClient(service.uri)


@pytest.fixture
def experiment(client, request):
    return client.create_experiment(request.node.name)


def make_old(client, experiment, days, tags=None):
    """Make a run that ended some days ago."""
    run_id = client.create_run(experiment, tags=tags).info.run_id
    client.log_text(run_id, "numbers", "weights/best.ckpt")
    client.set_terminated(run_id, end_time=int((time.time() - days * DAY) * 1000))
    return run_id


def add_model(client, experiment, run_id, folder):
    """Log a model of one file to a run; the model's ID."""
    (folder / "model.pt2").write_text("numbers")
    model_id = client.create_logged_model(experiment, "model", run_id).model_id
    client.log_model_artifacts(model_id, str(folder))
    client.finalize_logged_model(model_id, "READY")
    return model_id


def list_models(client, experiment):
    return {model.model_id for model in client.search_logged_models([experiment])}


def read_deletion_time(service, run_id):
    return service.sql(f"SELECT deleted_time FROM runs WHERE run_uuid = '{run_id}'")


def stages(client, *runs):
    return [client.get_run(run_id).info.lifecycle_stage for run_id in runs]


def files(service, run_id):
    """The run's files in the bucket."""
    return [key.split("/artifacts/")[1] for key in keys(service) if run_id in key]


def test_old_runs_are_hidden_but_for_what_is_registered_or_kept(service, client, experiment):
    parent, old = (make_old(client, experiment, days=40) for _ in range(2))
    registered = make_old(client, experiment, 40, {"mlflow.parentRunId": parent})
    kept = make_old(client, experiment, 40, {"keep": "for the paper"})
    new = make_old(client, experiment, days=20)
    client.create_registered_model("of an old run")
    source = client.get_run(registered).info.artifact_uri
    client.create_model_version("of an old run", source, registered)

    service.as_admin("forget", DAYS="30", WHAT="runs")

    assert stages(client, old) == ["deleted"]
    assert stages(client, parent, registered, kept, new) == ["active"] * 4


@pytest.mark.parametrize("what", ["runs", "models"])
def test_models_of_old_runs_are_hidden_but_for_what_is_registered_or_kept(
    what, service, client, experiment, tmp_path
):
    old, by_hand, registered = (make_old(client, experiment, days=40) for _ in range(3))
    kept = make_old(client, experiment, 40, {"keep": "for the paper"})
    new = make_old(client, experiment, days=20)
    runs = (old, by_hand, registered, kept, new)
    models = {run_id: add_model(client, experiment, run_id, tmp_path) for run_id in runs}
    name, model_id = f"{what} of an old run", models[registered]
    client.create_registered_model(name)
    client.create_model_version(name, f"models:/{model_id}", registered, model_id=model_id)
    client.delete_run(by_hand)
    deleted = read_deletion_time(service, by_hand)

    service.as_admin("forget", DAYS="30", WHAT=what)

    assert list_models(client, experiment) == {models[run_id] for run_id in (registered, kept, new)}
    assert stages(client, old) == ["deleted" if what == "runs" else "active"]
    assert stages(client, registered, kept, new) == ["active"] * 3
    assert read_deletion_time(service, by_hand) == deleted


def test_model_that_is_hidden_for_long_is_removed_with_its_files(
    service, client, experiment, tmp_path
):
    folder = tmp_path / "files"
    folder.mkdir()
    run_id = make_old(client, experiment, days=100)
    shown, *hidden = (add_model(client, experiment, run_id, folder) for _ in range(3))
    for days, model_id in zip((29, 31), hidden, strict=True):
        client.delete_logged_model(model_id)
        ago = int((time.time() - days * DAY) * 1000)
        service.sql(
            f"UPDATE logged_models SET last_updated_timestamp_ms = {ago} "
            f"WHERE model_id = '{model_id}'"
        )

    service.as_admin("gc", BACKUP=str(tmp_path))

    stored = keys(service)
    found = [any(model_id in key for key in stored) for model_id in (shown, *hidden)]
    assert found == [True, True, False]


def test_run_that_is_hidden_for_long_is_removed_with_its_files(
    service, client, experiment, tmp_path
):
    hidden = {days: make_old(client, experiment, days) for days in (29, 31)}
    for days, run_id in hidden.items():
        client.delete_run(run_id)
        ago = int((time.time() - days * DAY) * 1000)
        service.sql(f"UPDATE runs SET deleted_time = {ago} WHERE run_uuid = '{run_id}'")

    service.as_admin("gc", BACKUP=str(tmp_path))

    assert files(service, hidden[31]) == []
    assert service.sql(f"SELECT count(*) FROM runs WHERE run_uuid = '{hidden[31]}'") == ["0"]
    client.restore_run(hidden[29])
    assert files(service, hidden[29]) == ["weights/best.ckpt"]


def test_old_weights_go_and_the_registered_model_stays(service, client, experiment, tmp_path):
    run_ids = [make_run(client, experiment, tmp_path) for _ in range(2)]
    for run_id, days in zip(run_ids, (100, 10), strict=True):
        age = {"mtime": f"{time.time() - days * DAY:.0f}"}  # as rclone notes it of what it copies
        for name in ("weights/best.ckpt", "model/weights"):
            key = f"{experiment}/{run_id}/artifacts/{name}"
            service.bucket.put_object(Bucket=BUCKET, Key=key, Body=b"numbers", Metadata=age)

    service.run("rclone", "thin", DAYS="90")

    old, new = (files(service, run_id) for run_id in run_ids)
    assert "weights/best.ckpt" not in old
    assert "weights/best.ckpt" in new
    assert {"model/weights", "model/MLmodel"} <= set(old)
