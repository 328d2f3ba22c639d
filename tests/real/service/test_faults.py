"""Trainings whose service fails them in all ways go on meanwhile, and it has all of them once."""

import contextlib
import os

import mlflow
import pytest

from tests.support import service_faults
from tests.support.noting import EVERY
from tests.support.servers import BucketProxy
from tests.support.service import BUCKET, sign_in
from tests.support.service_faults import Noted, bucket_busy, database_restarted

pytestmark = pytest.mark.service
STEPS = 20  # that a training goes on by while something is wrong


@pytest.fixture(scope="session")
def proxy(service):
    """Between the server and its bucket, once the server has started anew, and as long as it."""
    proxy = BucketProxy(service.s3_uri)
    yield proxy
    proxy.stop()


@pytest.fixture
def start(service, tmp_path, monkeypatch):
    """A function that starts trainings of some names; they are under way when it returns."""
    sign_in(monkeypatch, service)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    with contextlib.ExitStack() as started:

        def start(*names):
            trainings = [Noted(tmp_path / name, os.environ) for name in names]
            for each in trainings:
                started.callback(each.stop)
            for each in trainings:
                each.gain(1)
            return trainings

        yield start


def go_through(fault, service, trainings):
    """Have something fail; each training says so, goes on, and says that it is well again."""
    heard = [each.hears() for each in trainings]
    with fault(service):
        for each in heard:
            each.wait_for("tracking server takes no")
        for each in trainings:
            each.gain(STEPS)
    for each in heard:
        each.wait_for("is logged again")


def check(service, trainings):
    """Check that each ends well, and that the service has all that it noted, and once."""
    assert {each.end() for each in trainings} == {0}
    for each in trainings:
        noted = each.notes()
        assert points(service, each.run_id) == noted
        assert files(service, each.run_id) == {step for step in noted if step % EVERY == 0}
        assert mlflow.MlflowClient().get_run(each.run_id).info.status == "FINISHED"


def test_training_goes_on_while_the_database_is_away_and_nothing_is_lost_or_twice(service, start):
    trainings = start("only")
    go_through(database_restarted, service, trainings)
    check(service, trainings)


@pytest.mark.slow
def test_trainings_go_on_whatever_fails_and_nothing_is_lost_or_twice(
    service, proxy, start, monkeypatch
):
    trainings = start("first", "second")
    monkeypatch.setitem(service.env, "AWS_ENDPOINT_URL_S3", proxy.address)
    for fault in (*service_faults.ALL, bucket_busy(proxy)):
        go_through(fault, service, trainings)
    check(service, trainings)
    assert proxy.refused > 0


def points(service, run_id):
    """The losses of a run that the database has, each of its steps once."""
    rows = service.sql(
        f"SELECT step, value FROM metrics WHERE run_uuid = '{run_id}' AND key = 'train_loss'"
    )
    found = [(int(step), float(value)) for step, value in (row.split("|") for row in rows)]
    assert len(found) == len(dict(found))
    return dict(found)


def files(service, run_id):
    """The steps of the files of a run that the bucket has."""
    pages = service.bucket.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [each["Key"] for page in pages for each in page.get("Contents", ())]
    return {int(key.split("/")[-1][:-4]) for key in keys if f"{run_id}/artifacts/notes/" in key}
