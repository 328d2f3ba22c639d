"""A spool takes MLflow's calls for logged models, also those of code that knows nothing of it."""

import mlflow
import pytest
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException

from tests.support.spooled import close_spool


def create_model(spool, **options):
    return spool.client.create_logged_model("1", "model", spool.run_id, **options)


class Doubler(mlflow.pyfunc.PythonModel):
    """A model of a user's own."""

    def predict(self, context, model_input: list[float]) -> list[float]:
        return [2 * value for value in model_input]


@pytest.fixture
def user(spool, monkeypatch):
    """The spool, which MLFLOW_TRACKING_URI names, and its run, which is active."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(spool.client.tracking_uri)
    with mlflow.start_run(run_id=spool.run_id):
        yield spool
    mlflow.set_tracking_uri(before)


def test_folder_is_logged_to_a_run_and_below_it(user, tmp_path):
    folder = tmp_path / "notes"
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "more" / "b.txt").write_text("b")

    mlflow.log_artifacts(str(folder))
    mlflow.log_artifacts(str(folder), "below")

    assert [file.path for file in user.client.list_artifacts(user.run_id)] == [
        "a.txt",
        "below",
        "more",
    ]
    assert (user.folder / "artifacts" / "below" / "more" / "b.txt").read_text() == "b"


def test_model_of_a_user_is_logged_and_loaded(user):
    mlflow.log_metric("accuracy", 0.5, step=3)
    logged = mlflow.pyfunc.log_model(name="doubler", python_model=Doubler(), step=3)

    model = mlflow.get_logged_model(logged.model_id)
    assert (model.name, model.status, model.source_run_id) == ("doubler", "READY", user.run_id)
    assert model.metrics[0].value == 0.5
    for uri in (logged.model_uri, f"runs:/{user.run_id}/doubler"):
        assert mlflow.pyfunc.load_model(uri).predict([1.5]) == [3.0]
    names = {file.path for file in user.client.list_artifacts(user.run_id, "doubler")}
    assert "doubler/MLmodel" in names


def test_model_is_read_as_it_was_logged_by_each_process(spool):
    model = create_model(spool, tags={"a": "b"}, params={"lr": "1"}, model_type="image-classifier")
    client, run_id = spool.client, spool.run_id
    assert model.status == LoggedModelStatus.PENDING
    client.set_logged_model_tags(model.model_id, {"c": "d", "gone": "soon"})
    client.delete_logged_model_tag(model.model_id, "gone")
    client.log_model_params(model.model_id, {"lr": "1", "depth": "3"})
    metric = Metric("test_accuracy", 0.5, 7, 0, model.model_id, "images", "abc")
    client.log_batch(run_id, metrics=[metric])
    for _ in range(2):
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 12)])
    client.finalize_logged_model(model.model_id, "READY")
    close_spool(spool.folder)

    read = client.get_logged_model(model.model_id)
    assert (read.name, read.status, read.model_type) == ("model", "READY", "image-classifier")
    assert (read.tags, read.params) == ({"a": "b", "c": "d"}, {"lr": "1", "depth": "3"})
    (point,) = read.metrics
    assert (point.value, point.dataset_name, point.run_id) == (0.5, "images", run_id)
    run = client.get_run(run_id)
    assert run.data.metrics == {"test_accuracy": 0.5}
    assert run.outputs.model_outputs == [LoggedModelOutput(model.model_id, 12)]


def test_model_without_a_status_is_failed_when_its_run_ends(spool):
    model, ready = create_model(spool), create_model(spool)
    spool.client.finalize_logged_model(ready.model_id, "READY")
    spool.client.set_terminated(spool.run_id, "KILLED")

    assert spool.client.get_logged_model(model.model_id).status == LoggedModelStatus.FAILED
    assert spool.client.get_logged_model(ready.model_id).status == LoggedModelStatus.READY


def test_model_is_found_by_a_filter(spool):
    model = create_model(spool, tags={"a": "b"})
    experiment = spool.client.get_run(spool.run_id).info.experiment_id

    def search(text):
        found = spool.client.search_logged_models([experiment], filter_string=text)
        return [model.model_id for model in found]

    assert search("name = 'model'") == search("tags.a = 'b'") == [model.model_id]
    assert search("name = 'other'") == []


@pytest.mark.parametrize(
    ("request_something", "message"),
    [
        (lambda client: client.create_logged_model("1", "model"), r"without a run.*start a run"),
        (lambda client: client.get_logged_model("m-1"), r"m-1 does not exist in the spool"),
        (lambda client: client.get_logged_model("../m-1"), r"does not exist in the spool"),
    ],
)
def test_unsupported_model_raises_and_names_the_remedy(request_something, message, spool):
    with pytest.raises(MlflowException, match=message):
        request_something(spool.client)


@pytest.mark.parametrize(
    ("request_something", "message"),
    [
        (lambda client, model: client.delete_logged_model(model), "deleting a model is not"),
        (lambda client, model: client.delete_logged_model_tag(model, "x"), "no tag 'x'.*: a"),
        (lambda client, model: client.log_model_params(model, {"lr": "2"}), "'lr' is '1' and can"),
    ],
)
def test_invalid_change_of_a_model_raises(request_something, message, spool):
    model = create_model(spool, tags={"a": "b"}, params={"lr": "1"})
    with pytest.raises(MlflowException, match=message):
        request_something(spool.client, model.model_id)


def test_name_that_the_server_would_reject_raises(spool):
    with pytest.raises(MlflowException, match="invalid model name: 'a/b'"):
        spool.client.create_logged_model("1", "a/b", spool.run_id)
