"""Trainings continue while the service fails, and each value and file is uploaded exactly once."""

import contextlib
import os

import mlflow
import pytest

from tests.support import service_faults
from tests.support.servers import BucketProxy
from tests.support.service import BUCKET, sign_in
from tests.support.service_faults import RecordedTraining, bucket_busy, database_restarted
from tests.support.step_recorder import FILE_STEPS

pytestmark = pytest.mark.service
STEPS = 20  # of each training during a fault


@pytest.fixture(scope="session")
def proxy(service):
    """A proxy between the server and its bucket, after the server is restarted."""
    proxy = BucketProxy(service.s3_uri)
    yield proxy
    proxy.stop()


@pytest.fixture
def start(service, tmp_path, monkeypatch):
    """A function that starts trainings by their names, and waits for their first steps."""
    sign_in(monkeypatch, service)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    with contextlib.ExitStack() as started:

        def start(*names):
            trainings = [RecordedTraining(tmp_path / name, os.environ) for name in names]
            for training in trainings:
                started.callback(training.stop)
            for training in trainings:
                training.wait_for_steps(1)
            return trainings

        yield start


def inject(fault, service, trainings):
    """Inject a fault; each training warns, continues, and reports the end of the fault."""
    logs = [training.watch_log() for training in trainings]
    with fault(service):
        for log in logs:
            log.wait_for("upload failed")
        for training in trainings:
            training.wait_for_steps(STEPS)
    for log in logs:
        log.wait_for("works again")


def check(service, trainings):
    """Check that each training finishes, and that the service has each of its values once."""
    assert {training.end() for training in trainings} == {0}
    for training in trainings:
        steps = training.read_steps()
        assert points(service, training.run_id) == steps
        file_steps = {step for step in steps if step % FILE_STEPS == 0}
        assert files(service, training.run_id) == file_steps
        assert mlflow.MlflowClient().get_run(training.run_id).info.status == "FINISHED"


def test_training_continues_without_the_database_and_each_value_is_there_once(service, start):
    trainings = start("only")
    inject(database_restarted, service, trainings)
    check(service, trainings)


@pytest.mark.slow
def test_trainings_continue_after_all_faults_and_each_value_is_there_once(
    service, proxy, start, monkeypatch
):
    trainings = start("first", "second")
    monkeypatch.setitem(service.env, "AWS_ENDPOINT_URL_S3", proxy.address)
    for fault in (*service_faults.ALL, bucket_busy(proxy)):
        inject(fault, service, trainings)
    check(service, trainings)
    assert proxy.refused > 0


def points(service, run_id):
    """Read the losses of a run from the database, and check that each step is there once."""
    rows = service.sql(
        f"SELECT step, value FROM metrics WHERE run_uuid = '{run_id}' AND key = 'train_loss'"
    )
    found = [(int(step), float(value)) for step, value in (row.split("|") for row in rows)]
    assert len(found) == len(dict(found))
    return dict(found)


def files(service, run_id):
    """List the steps of a run's files in the bucket."""
    pages = service.bucket.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [each["Key"] for page in pages for each in page.get("Contents", ())]
    return {int(key.split("/")[-1][:-4]) for key in keys if f"{run_id}/artifacts/notes/" in key}
