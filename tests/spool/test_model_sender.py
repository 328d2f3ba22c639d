"""The upload of a run's logged models: each is at the server once, whatever fails meanwhile."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from pyclassify.spool import model_sender, records
from pyclassify.spool.dead_run import DeadRun
from pyclassify.spool.records import REASON_TAG
from pyclassify.spool.spooled_run import SpooledRun
from pyclassify.spool.store import register_scheme
from pyclassify.spool.sync import Sync
from pyclassify.spool.uploader import PendingError, Uploader
from pyclassify.spool.writer import open_writer
from tests.support.phrases import mentions
from tests.support.restarting_server import Server
from tests.support.spooled import close_spool, points, upload_spool
from tests.support.waiting import scale


def log_model(client, run_id, folder, status="READY", step=12):
    """Log a model with all that belongs to it, as a training does; return its ID in the spool."""
    experiment = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(
        experiment, "model", run_id, {"classes": "10"}, {"lr": "1"}, "image-classifier"
    )
    described = Model(
        artifact_path=model.artifact_location,
        run_id=run_id,
        model_uuid=model.model_id,
        model_id=model.model_id,
    )
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    described.save(folder / "MLmodel")
    (folder / "artifacts" / "model.pt2").write_text("weights")
    client.log_model_artifacts(model.model_id, str(folder))
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    metric = ("test_accuracy", 0.5, 1_700_000_000_000, 0)
    client.log_batch(run_id, [Metric(*metric)])
    client.log_batch(run_id, [Metric(*metric, model.model_id, "images", "abc")])
    client.set_logged_model_tags(model.model_id, {"test_accuracy": "0.5"})
    if status:
        client.finalize_logged_model(model.model_id, status)
    return model.model_id


def list_models(spool, run_id=None):
    experiment = spool.there.get_run(run_id or spool.run_id).info.experiment_id
    models = spool.there.search_logged_models([experiment])
    return [spool.there.get_logged_model(model.model_id) for model in models]


def assert_is_complete(spool, model_id, tmp_path, run_id=None):
    """One model at the server, and of all that was logged one each, with the server's IDs."""
    run_id = run_id or spool.run_id
    (model,) = list_models(spool, run_id)
    assert (model.name, model.model_type, model.status) == ("model", "image-classifier", "READY")
    assert model.tags[model_sender.MODEL_TAG] == model_id
    assert (model.tags["classes"], model.tags["test_accuracy"]) == ("10", "0.5")
    assert (model.source_run_id, model.params) == (run_id, {"lr": "1"})
    (metric,) = model.metrics
    assert (metric.key, metric.value, metric.dataset_name) == ("test_accuracy", 0.5, "images")
    outputs = spool.there.get_run(run_id).outputs.model_outputs
    assert outputs == [LoggedModelOutput(model.model_id, 12)]
    assert points(spool.there, run_id, "test_accuracy") == [(0, 0.5)]

    artifacts = model_sender.open_artifacts(spool.there, model.artifact_location)
    folder = tmp_path / f"downloaded-{model.model_id}"
    folder.mkdir(exist_ok=True)
    for name in ("MLmodel", "artifacts/model.pt2"):
        artifacts.download_artifacts(name, str(folder))
    assert (folder / "artifacts" / "model.pt2").read_text() == "weights"
    read = Model.load(str(folder / "MLmodel"))
    assert (read.model_id, read.model_uuid, read.run_id) == (model.model_id, model.model_id, run_id)
    assert read.artifact_path == model.artifact_location
    return model


def test_server_has_the_model_and_a_second_upload_makes_no_other(spool, tmp_path):
    model_id = log_model(spool.client, spool.run_id, tmp_path / "model")
    spool.client.set_terminated(spool.run_id, "FINISHED")
    uploader = Uploader(spool.folder, spool.there)
    uploader.upload()
    model = assert_is_complete(spool, model_id, tmp_path)
    assert uploader.get_model_id(model_id) == model.model_id

    for _ in range(2):
        (spool.folder / records.PROGRESS_FILE).unlink()
        upload_spool(spool)
    assert_is_complete(spool, model_id, tmp_path)


def test_model_of_a_run_started_offline_is_of_the_run_at_the_server(spool, tmp_path):
    run_id = spool.client.create_run("name:tested").info.run_id
    model_id = log_model(spool.client, run_id, tmp_path / "model")
    uploader = Uploader(spool.root / run_id, spool.there)
    uploader.upload()

    assert uploader.server_id != run_id
    assert_is_complete(spool, model_id, tmp_path, uploader.server_id)


class Killed(BaseException):
    """In place of SIGKILL: nothing catches it."""


class Counter:
    """Ends the process at one request, before or after it is executed."""

    def __init__(self, last, is_executed):
        self.last, self.is_executed, self.count = last, is_executed, 0

    def wrap(self, wrapped):
        """Wrap an object whose methods send requests."""

        def get(_, name):
            attribute = getattr(wrapped, name)
            return self._count(attribute) if callable(attribute) else attribute

        return type("Wrapped", (), {"__getattr__": get})()

    def _count(self, send):
        def request(*args, **kwargs):
            self.count += 1
            if self.count == self.last and not self.is_executed:
                raise Killed
            response = send(*args, **kwargs)
            if self.count == self.last:
                raise Killed
            return response

        return request


@pytest.mark.parametrize(
    ("is_executed", "keeps_progress"),
    [(False, True), (True, False)],
    ids=["before the request", "after the request, and without its progress"],
)
def test_uploader_killed_at_each_request_leaves_one_model(
    is_executed, keeps_progress, spool, tmp_path, monkeypatch
):
    original = model_sender.open_artifacts
    versions = set()

    def make_version(client, record):
        versions.add((record["name"], record["model"]))
        return ""

    count = 0
    while True:
        run_id = spool.client.create_run("name:tested").info.run_id
        model_id = log_model(spool.client, run_id, tmp_path / "model")
        version = {"kind": "version", "name": "shapes", "model": model_id, "tags": {}}
        open_writer(spool.root / run_id).append(version)
        spool.client.set_terminated(run_id, "FINISHED")
        count += 1
        counter = Counter(count, is_executed)
        with monkeypatch.context() as patch:
            patch.setattr(
                model_sender,
                "open_artifacts",
                lambda client, uri, counter=counter: counter.wrap(original(spool.there, uri)),
            )
            try:
                Uploader(spool.root / run_id, counter.wrap(spool.there), make_version).upload()
            except Killed:
                if not keeps_progress:
                    (spool.root / run_id / records.PROGRESS_FILE).unlink(missing_ok=True)
        uploader = Uploader(spool.root / run_id, spool.there, make_version)
        uploader.upload()
        close_spool(spool.root / run_id)

        made = assert_is_complete(spool, model_id, tmp_path, uploader.server_id)
        assert versions == {("shapes", made.model_id)}
        assert spool.there.get_run(uploader.server_id).info.status == "FINISHED"
        spool.there.delete_logged_model(made.model_id)
        versions.clear()
        if counter.count < count:
            break
    assert count > 15


def test_request_that_is_executed_twice_leaves_one_model(spool, tmp_path, monkeypatch):
    model_id = log_model(spool.client, spool.run_id, tmp_path / "model")
    create = SqlAlchemyStore.create_logged_model

    def create_twice(*args, **kwargs):
        create(*args, **kwargs)
        return create(*args, **kwargs)

    monkeypatch.setattr(SqlAlchemyStore, "create_logged_model", create_twice)
    upload_spool(spool)

    assert_is_complete(spool, model_id, tmp_path)


def test_model_is_ready_after_its_files_and_delays_nothing_else(spool, tmp_path):
    model_id = log_model(spool.client, spool.run_id, tmp_path / "model")
    version = {"kind": "version", "name": "shapes", "model": model_id, "tags": {}}
    open_writer(spool.folder).append(version)
    spool.client.set_terminated(spool.run_id, "FINISHED")
    uploader = Uploader(spool.folder, spool.there, pytest.fail)

    def open_failing(client, uri):
        raise OSError("no space")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_sender, "open_artifacts", open_failing)
        with pytest.raises(PendingError, match="no space"):
            uploader.upload()
    (model,) = list_models(spool)
    assert model.status == "PENDING"
    assert spool.there.get_run(spool.run_id).info.status == "FINISHED"

    made = []
    uploader = Uploader(spool.folder, spool.there, lambda *args: made.append(args) or "made")
    uploader.upload()
    assert_is_complete(spool, model_id, tmp_path)
    ((_, record),) = made
    assert record["model"] == model.model_id


def test_file_of_another_model_delays_no_model(spool, tmp_path, monkeypatch):
    first = log_model(spool.client, spool.run_id, tmp_path / "model")
    second = log_model(spool.client, spool.run_id, tmp_path / "model", step=24)
    upload = model_sender.ModelSender.upload_file

    def upload_of_second(self, record):
        if record["model"] == first:
            raise OSError("no space")
        upload(self, record)

    monkeypatch.setattr(model_sender.ModelSender, "upload_file", upload_of_second)
    with pytest.raises(PendingError, match="no space"):
        upload_spool(spool)

    statuses = {m.tags[model_sender.MODEL_TAG]: m.status for m in list_models(spool)}
    assert statuses == {first: "PENDING", second: "READY"}


def test_model_that_lost_a_file_is_failed_and_not_registered(spool, tmp_path):
    model_id = log_model(spool.client, spool.run_id, tmp_path / "model")
    (spool.folder / "models" / model_id / "artifacts" / "model.pt2").unlink()
    version = {"kind": "version", "name": "shapes", "model": model_id, "tags": {}}
    open_writer(spool.folder).append(version)

    uploader = Uploader(spool.folder, spool.there, pytest.fail)
    with pytest.warns(UserWarning, match=r"model lacks artifacts/model\.pt2"):
        uploader.upload()
    (model,) = list_models(spool)
    assert model.status == "FAILED"
    assert mentions(model.tags[REASON_TAG], "lacks artifacts/model.pt2")

    uploader.remove_copies()
    assert (spool.folder / "models" / model_id / "MLmodel").is_file()


def test_upload_repeated_without_copies_leaves_the_model_ready(spool, tmp_path):
    model_id = log_model(spool.client, spool.run_id, tmp_path / "model")
    uploader = Uploader(spool.folder, spool.there)
    uploader.upload()
    uploader.remove_copies()
    assert [*(spool.folder / "models" / model_id).iterdir()] == []

    (spool.folder / records.PROGRESS_FILE).unlink()
    upload_spool(spool)
    assert_is_complete(spool, model_id, tmp_path)
    assert not (spool.folder / records.REJECTED_FILE).exists()
    assert spool.client.get_logged_model(model_id).status == "READY"


def end_by_itself(spool):
    spool.client.set_terminated(spool.run_id, "KILLED")
    upload_spool(spool)


def end_by_monitor(spool):
    close_spool(spool.folder)
    assert DeadRun(spool.run_id, "", spool.root, spool.there.tracking_uri).close("FAILED", "died")


def end_by_monitor_on_a_full_disk(spool):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeadRun, "_record", lambda *args: False)
        end_by_monitor(spool)


def end_by_another_process(spool):
    spool.there.set_terminated(spool.run_id, "FAILED")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", spool.there.tracking_uri)
        assert Sync(spool.root).upload_all() == 0


def end_by_resuming(spool):
    close_spool(spool.folder)
    run = SpooledRun(spool.folder, spool.there.tracking_uri)
    assert run.upload_thread.wait_until_uploaded(scale(60))
    (model,) = list_models(spool)
    run.close("FINISHED")
    run.release()
    assert model.status == "FAILED"


@pytest.mark.parametrize(
    "end",
    [
        end_by_itself,
        end_by_monitor,
        end_by_monitor_on_a_full_disk,
        end_by_another_process,
        end_by_resuming,
    ],
)
@pytest.mark.parametrize("is_known", [True, False], ids=["uploaded before", ""])
def test_model_without_a_status_is_failed_when_its_run_ends(end, is_known, spool, tmp_path):
    log_model(spool.client, spool.run_id, tmp_path / "model", status="")
    if is_known:
        upload_spool(spool)
        (model,) = list_models(spool)
        assert model.status == "PENDING"
    end(spool)

    (model,) = list_models(spool)
    assert model.status == "FAILED"


def test_status_that_is_set_after_the_end_of_the_run_counts(spool, tmp_path):
    model_id = log_model(spool.client, spool.run_id, tmp_path / "model", status="")
    spool.client.set_terminated(spool.run_id, "FINISHED")
    upload_spool(spool)
    spool.client.finalize_logged_model(model_id, "READY")
    upload_spool(spool)

    model = assert_is_complete(spool, model_id, tmp_path)
    assert REASON_TAG not in model.tags


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("SqlAlchemyStore"),
        MlflowException("Not Found", mlflow.protos.databricks_pb2.ENDPOINT_NOT_FOUND),
    ],
    ids=["store", "server"],
)
def test_server_without_logged_models_stores_files_in_the_run(error, spool, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    for name in ("search_logged_models", "create_logged_model", "get_logged_model"):
        monkeypatch.setattr(SqlAlchemyStore, name, fail)
    model_id = log_model(spool.client, spool.run_id, tmp_path / "model")
    version = {"kind": "version", "name": "shapes", "model": model_id, "tags": {}}
    open_writer(spool.folder).append(version)
    spool.client.log_metric(spool.run_id, "loss", 0.5, step=1)
    spool.client.set_terminated(spool.run_id, "FINISHED")
    uploader = Uploader(spool.folder, spool.there, pytest.fail)
    with pytest.warns(UserWarning, match="does not know logged models, .* upgrade") as warned:
        uploader.upload()
    uploader.remove_copies()

    run = spool.there.get_run(spool.run_id)
    assert (run.info.status, run.data.metrics["loss"]) == ("FINISHED", 0.5)
    _, of_version = (str(each.message) for each in warned if "rejected" in str(each.message))
    assert mentions(of_version, "the server has rejected the model")
    assert uploader.get_model_id(model_id) == ""
    assert not (spool.folder / "models" / model_id / "MLmodel").exists()
    lines = (spool.folder / records.REJECTED_FILE).read_text().splitlines()
    assert "artifact" not in {json.loads(line)["kind"] for line in lines}
    assert {json.loads(line)["kind"] for line in lines} >= {"model", "version"}
    stored = model_sender.open_artifacts(spool.there, f"{run.info.artifact_uri}/model")
    read = Model.load(stored.download_artifacts("MLmodel", str(tmp_path)))
    assert (read.model_id, read.run_id, read.artifact_path) == (None, spool.run_id, "model")
    weights = stored.download_artifacts("artifacts/model.pt2", str(tmp_path))
    assert Path(weights).read_text() == "weights"


def test_model_that_is_deleted_at_the_server_costs_a_warning(spool, tmp_path):
    model_id = log_model(spool.client, spool.run_id, tmp_path / "model")
    upload_spool(spool)
    (model,) = list_models(spool)
    spool.there.delete_logged_model(model.model_id)
    spool.client.set_logged_model_tags(model_id, {"a": "b"})
    spool.client.set_terminated(spool.run_id, "FINISHED")
    with pytest.warns(UserWarning, match="the model is deleted at the server"):
        upload_spool(spool)

    assert records.is_uploaded(spool.folder)
    assert spool.there.get_run(spool.run_id).info.status == "FINISHED"


def test_invalid_tag_of_a_model_is_rejected_alone(spool, tmp_path, monkeypatch):
    model_id = log_model(spool.client, spool.run_id, tmp_path / "model")
    spool.client.set_logged_model_tags(model_id, {"bad": "1", "good": "2"})
    set_tags = SqlAlchemyStore.set_logged_model_tags

    def reject_bad(store, model, tags):
        if "bad" in {tag.key for tag in tags}:
            raise MlflowException("bad", mlflow.protos.databricks_pb2.INVALID_PARAMETER_VALUE)
        set_tags(store, model, tags)

    monkeypatch.setattr(SqlAlchemyStore, "set_logged_model_tags", reject_bad)
    with pytest.warns(UserWarning, match="rejected"):
        upload_spool(spool)

    model = assert_is_complete(spool, model_id, tmp_path)
    assert model.tags["good"] == "2"


def test_spooled_run_names_the_model_at_the_server(spool, tmp_path):
    run = SpooledRun(spool.folder, spool.there.tracking_uri)
    model_id = log_model(run.client, run.run_id, tmp_path / "model")
    run.close("FINISHED")
    run.release()

    (model,) = list_models(spool)
    assert run.get_server_model_id(model_id) == model.model_id
    assert run.get_server_model_id(model.model_id) == model.model_id


def test_model_of_another_machine_is_known_by_the_ids_of_the_server(spool, tmp_path):
    log_model(spool.client, spool.run_id, tmp_path / "model")
    spool.client.set_terminated(spool.run_id, "KILLED")
    upload_spool(spool)
    (model,) = list_models(spool)
    root, made = tmp_path / "elsewhere", []
    folder = records.create_from_server(root, spool.there, spool.run_id)
    client = mlflow.MlflowClient(f"spool://{root}")
    (output,) = client.get_run(spool.run_id).outputs.model_outputs
    version = {"kind": "version", "name": "shapes", "model": output.model_id, "tags": {}}
    client.log_outputs(spool.run_id, [output])
    client.log_metric(spool.run_id, "late", 0.25, 7, 0, model_id=output.model_id)
    open_writer(folder).append(version)
    Uploader(folder, spool.there, lambda *args: made.append(args) or "").upload()
    close_spool(folder)

    assert made[0][1]["model"] == output.model_id == model.model_id
    read = spool.there.get_logged_model(model.model_id)
    assert [metric.value for metric in read.metrics if metric.key == "late"] == [0.25]
    assert len(spool.there.get_run(spool.run_id).outputs.model_outputs) == 1


def test_server_with_an_artifact_proxy_has_the_model(empty_store, tmp_path, monkeypatch):
    register_scheme()
    monkeypatch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
    server = Server(shutil.copy(empty_store, tmp_path), tmp_path / "proxied")
    try:
        server.set_available(True)
        there = mlflow.MlflowClient(f"http://127.0.0.1:{server.port}")
        there.create_experiment("proxied", "mlflow-artifacts:/1")
        root = tmp_path / "spool"
        client = mlflow.MlflowClient(f"spool://{root}")
        run_id = client.create_run("name:proxied").info.run_id
        params = {f"p{number}": "1" for number in range(250)}
        model_id = log_model(client, run_id, tmp_path / "model")
        other = client.create_logged_model("1", "other", run_id, params=params)
        client.delete_logged_model_tag(model_id, "classes")
        client.set_logged_model_tags(model_id, {"classes": "10"})
        for _ in range(2):
            uploader = Uploader(root / run_id, there)
            uploader.upload()
            (root / run_id / records.PROGRESS_FILE).unlink()
        assert len(there.get_logged_model(uploader.get_model_id(other.model_id)).params) == 250

        there.delete_logged_model(uploader.get_model_id(other.model_id))
        model = assert_is_complete(
            SimpleNamespace(there=there), model_id, tmp_path, uploader.server_id
        )
        assert model.artifact_location.startswith("mlflow-artifacts:")
        close_spool(root / run_id)
    finally:
        server.stop()
