"""The service of docs/service.md, as the page's commands start it, keeps what it is given."""

import mlflow
import pytest

from tests.support.browser import mlflow_ui
from tests.support.service import BUCKET, commands, sign_in


@pytest.fixture
def client(service, monkeypatch):
    sign_in(monkeypatch, service)
    return mlflow.MlflowClient(service.uri)


def test_run_is_in_the_database_and_its_file_in_the_bucket(service, client):
    run_id = client.create_run(client.create_experiment("kept")).info.run_id
    client.log_metric(run_id, "loss", 0.5, step=3)
    client.log_text(run_id, "hello", "notes/said.txt")

    rows = service.sql(f"SELECT key, value, step FROM metrics WHERE run_uuid = '{run_id}'")
    objects = service.bucket.list_objects_v2(Bucket=BUCKET)["Contents"]
    assert rows == ["loss|0.5|3"]
    assert [each["Size"] for each in objects if run_id in each["Key"]] == [len("hello")]


@pytest.mark.service
def test_alone_the_runs_of_a_folder_are_shown_without_any_of_it(tmp_path):
    here = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    made = here.create_experiment("alone", str(tmp_path / "files"))

    with mlflow_ui(commands("alone"), tmp_path) as address:
        assert mlflow.MlflowClient(address).get_experiment(made).name == "alone"
