"""A spool as MLflow's tracking store: what is logged to it can be read from it."""

from pathlib import Path
from urllib.parse import quote

import mlflow
import pytest
from mlflow.entities import DatasetInput, InputTag, LoggedModelInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from pyclassify.spool import records
from pyclassify.spool.records import create_from_server
from pyclassify.spool.store import register_scheme
from pyclassify.spool.uploader import Uploader
from tests.support.runs import MetaDataset
from tests.support.spooled import close_spool, points


def test_everything_that_is_logged_is_read_from_the_spool(spool):
    client, run_id = spool.client, spool.run_id
    client.log_metric(run_id, "loss", 0.5, step=1)
    client.log_batch(run_id, [Metric("loss", 0.25, 7, 2)], [Param("lr", "1")], [RunTag("a", "b")])
    client.log_param(run_id, "depth", 3)
    client.set_tag(run_id, "gone", "soon")
    client.delete_tag(run_id, "gone")
    client.update_run(run_id, name="called")
    client.set_terminated(run_id, "FINISHED", end_time=9)

    run = client.get_run(run_id)
    assert run.data.metrics == {"loss": 0.25}
    assert run.data.params == {"lr": "1", "depth": "3"}
    assert run.data.tags["a"] == "b"
    assert "gone" not in run.data.tags
    assert (run.info.run_name, run.info.status, run.info.end_time) == ("called", "FINISHED", 9)
    assert points(client, run_id, "loss") == [(1, 0.5), (2, 0.25)]


def test_files_are_listed_and_fetched(spool, tmp_path):
    client, run_id = spool.client, spool.run_id
    client.log_text(run_id, "some text", "notes/first.txt")
    client.log_dict(run_id, {"a": 1}, ".hidden.json")
    client.log_table(run_id, {"label": ["a", "b"]}, "table.json")

    assert [file.path for file in client.list_artifacts(run_id)] == [
        ".hidden.json",
        "notes",
        "table.json",
    ]
    path = client.download_artifacts(run_id, "notes/first.txt", str(tmp_path))
    assert Path(path).read_text() == "some text"


def test_data_set_is_an_input_of_the_run(spool):
    source = mlflow.data.http_dataset_source.HTTPDatasetSource("http://localhost/images")
    dataset = MetaDataset(source, name="images", digest="abc")._to_mlflow_entity()
    spool.client.log_inputs(
        spool.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "test")])]
    )
    close_spool(spool.folder)

    (dataset_input,) = spool.client.get_run(spool.run_id).inputs.dataset_inputs
    assert (dataset_input.dataset.name, dataset_input.dataset.digest) == ("images", "abc")
    assert [(tag.key, tag.value) for tag in dataset_input.tags] == [("mlflow.data.context", "test")]


def test_first_value_of_a_step_counts_over_all_attempts(spool):
    client, run_id = spool.client, spool.run_id
    for attempt in (1, 2):
        for step in (0, 10, 5 * attempt):
            client.log_metric(run_id, "loss", attempt + step, timestamp=attempt, step=step)
        close_spool(spool.folder)

    history = client.get_metric_history(run_id, "loss")
    assert len(history) == 3
    assert {metric.step: metric.value for metric in history} == {0: 1, 5: 6, 10: 11}
    assert {metric.timestamp for metric in history} == {1}


def test_finished_run_that_resumes_has_its_last_results(spool):
    client, run_id = spool.client, spool.run_id
    for attempt, accuracy in enumerate((0.5, 0.75)):
        for name, value in {"test_accuracy": accuracy, "parameters": 1000}.items():
            client.log_metric(run_id, name, value, timestamp=attempt, step=0)
            client.log_metric(run_id, name, -1, timestamp=attempt, step=0)  # not of a new attempt
        client.log_metric(run_id, "train_loss", accuracy, timestamp=attempt, step=7)
        client.set_terminated(run_id, "FINISHED")
        close_spool(spool.folder)

    run = client.get_run(run_id)
    assert run.data.metrics == {"test_accuracy": 0.75, "parameters": 1000, "train_loss": 0.5}
    assert points(client, run_id, "test_accuracy") == [(0, 0.5), (0, 0.75)]
    assert points(client, run_id, "parameters") == [(0, 1000)]


def test_steps_that_the_server_has_are_not_logged_twice_from_a_new_spool(spool):
    spool.there.log_metric(spool.run_id, "loss", 0.5, timestamp=1, step=3)
    elsewhere = spool.root.parent / "elsewhere"
    create_from_server(elsewhere, spool.there, spool.run_id)
    client = mlflow.MlflowClient(f"spool://{elsewhere}")
    for step in (3, 4):
        client.log_metric(spool.run_id, "loss", 0.25, step=step)

    assert points(client, spool.run_id, "loss") == [(4, 0.25)]


def test_parameter_that_is_logged_twice_is_recorded_once(spool):
    spool.client.log_param(spool.run_id, "depth", 3)
    size = records.count_bytes(spool.folder)
    spool.client.log_param(spool.run_id, "depth", 3)

    assert records.count_bytes(spool.folder) == size
    assert spool.client.get_run(spool.run_id).data.params == {"depth": "3"}


def test_parameter_does_not_change(spool):
    spool.client.log_param(spool.run_id, "depth", 3)
    # the form of this message
    with pytest.raises(MlflowException, match="'depth' is '3' and can't be changed to '4': "):
        spool.client.log_param(spool.run_id, "depth", 4)


@pytest.mark.parametrize(
    "request_something",
    [
        lambda client: client.search_runs(["0"]),
        lambda client: client.search_experiments(),
        lambda client: client.set_experiment_tag("12", "a", "b"),
        lambda client: client.log_inputs("12", models=[LoggedModelInput("m-1")]),
    ],
)
def test_unsupported_request_raises_and_names_the_remedy(request_something, spool):
    with pytest.raises(MlflowException, match=r"not supported by a spool.* `pyclassify sync`"):
        request_something(spool.client)


def test_unknown_run_raises_with_the_folder(spool):
    with pytest.raises(MlflowException, match=f"run 123 does not exist .*{spool.root}"):
        spool.client.get_run("123")


@pytest.mark.parametrize("uri", ["spool:runs/spool", "spool://runs/spool"])
def test_uri_without_an_absolute_path_raises(uri):
    register_scheme()
    # the form of this message
    expected = rf"invalid spool URI: {uri} \(expected .*spool:///FOLDER"
    with pytest.raises(MlflowException, match=expected):
        mlflow.MlflowClient(uri).get_run("123")


def test_experiment_is_known_by_its_name_until_the_server_gives_it_a_number(spool):
    found = spool.client.get_experiment_by_name("new")
    assert spool.client.create_experiment("new") == found.experiment_id
    run_id = spool.client.create_run(found.experiment_id).info.run_id
    Uploader(spool.root / run_id, spool.there).upload()

    assert spool.client.get_experiment(found.experiment_id).name == found.name == "new"
    experiment = spool.there.get_experiment_by_name("new")
    assert len(spool.there.search_runs([experiment.experiment_id])) == 1


@pytest.mark.parametrize("name", ["with blanks", "50%", "a#b?c", "ä"])
def test_folder_may_have_any_name(name, tmp_path):
    register_scheme()
    client = mlflow.MlflowClient(f"spool://{quote(str(tmp_path / name))}")
    run_id = client.create_run("0").info.run_id
    client.log_text(run_id, "words", "a.txt")

    assert (tmp_path / name / run_id / "artifacts" / "a.txt").read_text() == "words"
    assert client.download_artifacts(run_id, "a.txt", str(tmp_path))
