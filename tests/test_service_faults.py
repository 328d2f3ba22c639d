"""Trainings whose service fails them in all ways go on meanwhile, and it has all of them once."""

import os

import mlflow
import pytest

from tests.support import service_faults
from tests.support.bucket_proxy import BucketProxy
from tests.support.noting import EVERY
from tests.support.service_faults import Noted, bucket_busy
from tests.support.service_parts import BUCKET, sign_in

STEPS = 20  # that a training goes on by while something is wrong


@pytest.fixture(scope="session")
def proxy(service):
    """Between the server and its bucket, once the server has started anew, and as long as it."""
    proxy = BucketProxy(service.s3_uri)
    yield proxy
    proxy.stop()


@pytest.fixture
def trainings(service, tmp_path, monkeypatch):
    """Two of them, under way."""
    sign_in(monkeypatch, service)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    begun = [Noted(tmp_path / name, os.environ) for name in ("first", "second")]
    try:
        for each in begun:
            each.gain(1, seconds=120)
        yield begun
    finally:
        for each in begun:
            each.process.kill()
            each.process.wait()


def test_trainings_go_on_whatever_fails_and_nothing_is_lost_or_twice(
    service, proxy, trainings, monkeypatch
):
    monkeypatch.setitem(service.env, "AWS_ENDPOINT_URL_S3", proxy.address)
    for fault in (*service_faults.ALL, bucket_busy(proxy)):
        heard = [each.hears() for each in trainings]
        with fault(service):
            for each in heard:
                each.wait_for("the tracking server takes no")
            for each in trainings:
                each.gain(STEPS)
        for each in heard:
            each.wait_for("the tracking server takes what is logged again")
    assert [each.end() for each in trainings] == [0, 0]

    for each in trainings:
        noted = each.notes()
        assert points(service, each.run_id) == noted
        assert files(service, each.run_id) == {step for step in noted if step % EVERY == 0}
        assert mlflow.MlflowClient().get_run(each.run_id).info.status == "FINISHED"
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
