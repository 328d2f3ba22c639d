"""Errors of a store: temporary or permanent, in one line, and not those of a bug."""

import mlflow
import pytest
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE
from sqlalchemy import exc

from pyclassify.spool.server import is_permanent
from pyclassify.spool.store import SpoolStore, register_scheme
from pyclassify.spool.store_errors import describe_server_error, is_store_error
from tests.support.phrases import mentions
from tests.support.spooled import upload_spool


def make_database_error(kind, message):
    """MLflow's error for an error of its database."""
    statement = ("INSERT INTO metrics (key) VALUES (?)", {"key": "loss"})
    return mlflow.MlflowException(kind(*statement, Exception(message)), BAD_REQUEST)


def make_pool_error():
    """MLflow's error for more concurrent requests than connections to its database."""
    message = "QueuePool limit of size 5 overflow 10 reached, connection timed out, timeout 30.00"
    return mlflow.MlflowException(exc.TimeoutError(message, code="3o7r"), BAD_REQUEST)


READ_ONLY = "cannot execute INSERT in a read-only transaction"


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (make_database_error(exc.InternalError, READ_ONLY), False),
        (make_database_error(exc.InterfaceError, "connection already closed"), False),
        (make_pool_error(), False),
        (make_database_error(exc.DataError, "bigint out of range"), True),
        (mlflow.MlflowException("no such name", INVALID_PARAMETER_VALUE), True),
    ],
    ids=["read-only", "closed", "full pool", "data", "name"],
)
def test_failure_of_a_database_is_not_permanent(error, final):
    assert is_permanent(error) is final


@pytest.mark.parametrize(
    ("message", "description"),
    [
        ("a.txt: 401 Client Error: Unauthorized for url", "authentication failed (HTTP 401)"),
        ("a.txt: 403 Client Error: Forbidden for url", "permission denied (HTTP 403)"),
    ],
)
def test_describe_server_error_of_a_forbidden_upload_is_one_line(message, description):
    assert describe_server_error(OSError(message)) == description


def test_describe_server_error_of_sqlite_leaves_out_the_page_of_sqlalchemy():
    cause = Exception("unable to open database file")  # without a statement: it did not connect
    error = mlflow.MlflowException(exc.OperationalError(None, None, cause))

    assert describe_server_error(error) == "database error: unable to open database file"


def test_describe_server_error_without_text_names_the_class():
    # An empty last error means that the upload succeeded.
    assert describe_server_error(ConnectionError()) == "ConnectionError"


def test_describe_server_error_of_a_database_leaves_out_the_statement():
    error = make_database_error(exc.InternalError, READ_ONLY)

    # the form of this message
    assert describe_server_error(error) == f"database error: {READ_ONLY}"


def raise_in_mlflow(error):
    """Raise an error in code that MLflow calls within a database session."""
    store = mlflow.tracking._tracking_service.utils._get_store()
    with store.ManagedSessionMaker():
        raise error


def raise_in_spool(error, monkeypatch):
    """Raise an error in a store of this project, which MLflow calls."""
    monkeypatch.setattr(SpoolStore, "get_run", lambda *_: (_ for _ in ()).throw(error))
    register_scheme()
    mlflow.MlflowClient("spool:///tmp").get_run("123")


@pytest.mark.parametrize("error", [TypeError("bug"), KeyError("bug"), AttributeError("bug")])
def test_is_store_error_of_a_bug_that_mlflow_wraps_is_false(error, store):
    with pytest.raises(mlflow.MlflowException, match="bug") as wrapped:
        raise_in_mlflow(error)

    assert not is_store_error(wrapped.value)


@pytest.mark.parametrize("error", [ValueError("bug"), OSError("bug"), ImportError("bug")])
def test_is_store_error_of_a_bug_in_code_that_mlflow_calls_is_false(error, monkeypatch):
    with pytest.raises(type(error), match="bug") as raised:
        raise_in_spool(error, monkeypatch)

    assert not is_store_error(raised.value)


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("mysql+pymysql://127.0.0.1/runs", ImportError, "pymysql"),
        ("postgresql+psycopg://127.0.0.1/runs", ImportError, "psycopg"),
        ("http://[::1", ValueError, "Invalid IPv6 URL"),
    ],
)
def test_is_store_error_of_a_library_that_mlflow_calls_is_true(uri, error, message):
    register_scheme()
    with pytest.raises(error, match=message) as raised:
        mlflow.MlflowClient(uri).get_run("123")

    assert is_store_error(raised.value)


UPLOAD = "a.txt: Failed to upload /spool/a.txt to kept/1/abc/artifacts/a.txt: An error occurred "


@pytest.mark.parametrize(
    ("message", "facts"),
    [
        (
            f"{UPLOAD}(NoSuchBucket) when calling the PutObject operation: The specified bucket",
            ["bucket kept does not exist", "artifact location"],
        ),
        (
            f"{UPLOAD}(AccessDenied) when calling the CreateMultipartUpload operation: Access",
            ["bucket kept", "permission", "s3:PutObject"],
        ),
        (
            f"{UPLOAD}(InvalidAccessKeyId) when calling the PutObject operation: The AWS Access",
            ["bucket kept", "credentials", "AWS_ACCESS_KEY_ID"],
        ),
        (
            f"{UPLOAD}(SlowDown) when calling the PutObject operation (reached max retries: 4): ",
            ["bucket kept returned error SlowDown"],  # the form of these messages
        ),
        (
            'a.txt: Could not connect to the endpoint URL: "http://127.0.0.1:1/kept/1/a.txt"',
            ["does not respond", "http://127.0.0.1:1", "MLFLOW_S3_ENDPOINT_URL"],
        ),
        (
            "a.txt: Unable to locate credentials",
            ["no credentials", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
        ),
    ],
    ids=["missing", "forbidden", "credentials", "busy", "address", "no credentials"],
)
def test_describe_server_error_of_a_bucket_is_one_line(message, facts):
    description = describe_server_error(OSError(message))
    assert mentions(description, *facts)
    assert "\n" not in description
    assert "PutObject operation" not in description  # nothing of boto3's message
    assert "/a.txt" not in description


@pytest.mark.parametrize("character", ["\0", "\udcff"], ids=["NUL", "lone surrogate"])
def test_character_that_no_database_stores_is_replaced(character, spool):
    client, run_id = spool.client, spool.run_id
    client.set_tag(run_id, "text", f"a{character}b")
    client.log_param(run_id, "root", f"c{character}")
    client.log_metric(run_id, "loss", 0.5, step=1)
    upload_spool(spool)

    data = spool.there.get_run(run_id).data
    assert data.tags["text"] == "a\N{REPLACEMENT CHARACTER}b"
    assert data.params == {"root": "c\N{REPLACEMENT CHARACTER}"}
    assert data.metrics == {"loss": 0.5}
