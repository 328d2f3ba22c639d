"""Runs whose files go to a bucket directly: in parts, again after an error, and a word on refusal.

`mlflow server` says where (`--artifact-location s3://...`); the training has the bucket's keys.
"""

import os
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.store.artifact import s3_artifact_repo

from pyclassify.cli.main import main
from pyclassify.spool import records, store
from tests.support.phrases import mentions
from tests.support.servers import BucketProxy
from tests.support.service import BUCKET, sign_in
from tests.support.spooled import close_spool, upload_spool

WEIGHTS = 28_000_000  # bytes
PART = 8 << 20  # what boto3 sends in one request


@pytest.fixture(scope="module")
def proxy(service):
    proxy = BucketProxy(service.s3_uri)
    yield proxy
    proxy.stop()


@pytest.fixture
def direct(service, proxy, tmp_path, monkeypatch):
    """A function that makes a run with its files in a bucket, and its spool."""
    sign_in(monkeypatch, service)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", proxy.address)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, service.env[name])
    s3_artifact_repo._cached_get_s3_client.cache_clear()  # which knows another address
    store.register_scheme()
    there, made = mlflow.MlflowClient(service.uri), []

    def make(bucket=BUCKET):
        experiment = there.create_experiment(f"direct {os.urandom(4).hex()}", f"s3://{bucket}/runs")
        run_id = there.create_run(experiment).info.run_id
        made.append(records.create_from_server(tmp_path / "spool", there, run_id))
        client = mlflow.MlflowClient(f"spool://{tmp_path}/spool")
        return SimpleNamespace(there=there, run_id=run_id, folder=made[-1], client=client)

    yield make
    for folder in made:
        close_spool(folder)


def key_of(run, name):
    return f"runs/{run.run_id}/artifacts/{name}"


def test_weights_arrive_in_parts_though_the_bucket_is_busy_at_first(
    direct, proxy, service, tmp_path
):
    weights = tmp_path / "best.ckpt"
    weights.write_bytes(os.urandom(1 << 20) * (WEIGHTS >> 20) + b"end")
    run = direct()
    run.client.log_artifact(run.run_id, str(weights), "weights")
    proxy.asked.clear()
    with proxy.responding_with(503, most=2):
        upload_spool(run)

    parts = [line for line in proxy.asked if line.startswith("PUT") and "partNumber=" in line]
    assert len({line.split("?")[1] for line in parts}) == -(-weights.stat().st_size // PART)
    assert proxy.refused == 2
    stored = service.bucket.get_object(Bucket=BUCKET, Key=key_of(run, "weights/best.ckpt"))
    assert stored["Body"].read() == weights.read_bytes()


@pytest.mark.parametrize(
    ("bucket", "error", "facts"),
    [
        ("unmade", 0, ["bucket unmade does not exist", "artifact location"]),
        (BUCKET, 403, [f"bucket {BUCKET}", "permission", "s3:PutObject"]),
        (BUCKET, 503, [f"bucket {BUCKET}", "503"]),
    ],
    ids=["missing", "forbidden", "busy"],
)
def test_bucket_that_takes_nothing_is_told_in_a_line_and_gets_it_later(
    bucket, error, facts, direct, proxy, service, capsys
):
    run = direct(bucket)
    run.client.log_text(run.run_id, "said", "a.txt")
    run.client.log_metric(run.run_id, "loss", 0.5, step=1)
    with proxy.responding_with(error):
        assert main(["sync", str(run.folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert mentions(line, f"pyclassify: error: {run.run_id}: file upload failed", *facts)
    assert run.there.get_run(run.run_id).data.metrics == {"loss": 0.5}

    service.bucket.create_bucket(Bucket=bucket)  # which is there already, but for the first
    assert main(["sync", str(run.folder)]) == 0
    stored = service.bucket.get_object(Bucket=bucket, Key=key_of(run, "a.txt"))
    assert stored["Body"].read() == b"said"
