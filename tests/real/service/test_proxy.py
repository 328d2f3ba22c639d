"""What passes nginx, by deploy/nginx.conf: TLS alone, files of megabytes, and not of gigabytes."""

import http.client
import ssl
from pathlib import Path

import mlflow
import pytest
import requests

from tests.support.service import BUCKET, sign_in

GB = 1024**3


@pytest.fixture
def client(service, proxy, people, monkeypatch):
    """Of Bob, who trusts the certificate."""
    sign_in(monkeypatch, service, people["bob"])
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(proxy.certificate))
    return mlflow.MlflowClient(proxy.uri)


def connect(proxy):
    trusting = ssl.create_default_context(cafile=proxy.certificate)
    return http.client.HTTPSConnection(proxy.host, proxy.port, context=trusting, timeout=300)


def test_file_of_megabytes_goes_through_and_comes_back(service, client, tmp_path):
    sent = tmp_path / "weights.ckpt"
    sent.write_bytes(bytes(range(256)) * 5 * 4096)  # nginx's own limit is 1 MB
    run_id = client.create_run(client.create_experiment("big")).info.run_id

    client.log_artifact(run_id, str(sent))

    (stored,) = [
        each["Size"]
        for each in service.bucket.list_objects_v2(Bucket=BUCKET)["Contents"]
        if run_id in each["Key"]
    ]
    assert stored == sent.stat().st_size
    (tmp_path / "back").mkdir()
    back = client.download_artifacts(run_id, "weights.ckpt", str(tmp_path / "back"))
    assert Path(back).read_bytes() == sent.read_bytes()


@pytest.mark.parametrize(("size", "status"), [(1 * GB, 401), (3 * GB, 413)])
def test_files_of_a_gigabyte_are_let_in_and_larger_than_two_are_not(proxy, size, status):
    connection = connect(proxy)
    connection.putrequest("PUT", "/api/2.0/mlflow-artifacts/artifacts/0/file")
    connection.putheader("Content-Length", str(size))
    connection.endheaders()  # what is refused is so before it is sent

    assert connection.getresponse().status == status


def test_plain_http_is_sent_to_https(proxy):
    answer = requests.get(f"http://127.0.0.1:{proxy.plain_port}/x?y=1", allow_redirects=False)

    assert answer.status_code == 301
    assert answer.headers["Location"] == "https://127.0.0.1/x?y=1"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_old_tls_is_refused(proxy):
    old = ssl.create_default_context(cafile=proxy.certificate)
    old.set_ciphers("ALL:@SECLEVEL=0")  # or else this end would refuse it
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    connection = http.client.HTTPSConnection(proxy.host, proxy.port, context=old, timeout=300)

    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        connection.connect()


def test_certificate_that_is_not_trusted_is_refused(proxy, service, people, monkeypatch):
    sign_in(monkeypatch, service, people["bob"])
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    with pytest.raises(mlflow.MlflowException, match="CERTIFICATE_VERIFY_FAILED"):
        mlflow.MlflowClient(proxy.uri).get_experiment("0")
