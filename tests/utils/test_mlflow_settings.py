"""MLflow's environment variables are set, unless the user has set them."""

import os

import pytest

from pyclassify.utils.mlflow_settings import configure_mlflow, limit_requests, short_request_limits

RETRIES, TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
PROGRESS_BAR = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """Unset the variables; they are restored after the test."""
    for name in (RETRIES, TIMEOUT, PROGRESS_BAR):
        monkeypatch.setenv(name, "")  # so that it is restored afterwards
        del os.environ[name]


def test_configure_mlflow_without_limits_leaves_mlflows_defaults():
    configure_mlflow()

    assert os.environ[PROGRESS_BAR] == "false"
    assert not {RETRIES, TIMEOUT} & os.environ.keys()


def test_configure_mlflow_does_not_override_the_user(monkeypatch):
    monkeypatch.setenv(RETRIES, "9")

    configure_mlflow(retries=2, timeout_seconds=20)

    assert (os.environ[RETRIES], os.environ[TIMEOUT]) == ("9", "20")


def test_short_request_limits_end_with_their_context():
    limit_requests()
    before = os.environ[RETRIES], os.environ[TIMEOUT]

    with short_request_limits():
        within = os.environ[RETRIES], os.environ[TIMEOUT]

    assert (before, within) == (("1", "30"), ("0", "8"))
    assert (os.environ[RETRIES], os.environ[TIMEOUT]) == before


def test_short_request_limits_do_not_override_the_user(monkeypatch):
    monkeypatch.setenv(TIMEOUT, "120")
    limit_requests()

    with short_request_limits():
        assert (os.environ[RETRIES], os.environ[TIMEOUT]) == ("0", "120")
