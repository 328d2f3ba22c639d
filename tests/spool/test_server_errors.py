"""What a server answers, told apart: what it will never take, and what it may take later."""

import mlflow
import pytest
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE
from sqlalchemy import exc

from pyclassify.spool.server import is_permanent
from pyclassify.spool.store_errors import describe_server_error
from tests.support.phrases import mentions
from tests.support.spooled import deliver


def of_database(kind, words):
    """What MLflow makes of an error of its database's."""
    statement = ("INSERT INTO metrics (key) VALUES (?)", {"key": "loss"})
    return mlflow.MlflowException(kind(*statement, Exception(words)), BAD_REQUEST)


def full_pool():
    """Of more requests at once than a server has connections to its database."""
    words = "QueuePool limit of size 5 overflow 10 reached, connection timed out, timeout 30.00"
    return mlflow.MlflowException(exc.TimeoutError(words, code="3o7r"), BAD_REQUEST)


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (of_database(exc.InternalError, "cannot execute INSERT in a read-only transaction"), False),
        (of_database(exc.InterfaceError, "connection already closed"), False),
        (full_pool(), False),
        (of_database(exc.DataError, "bigint out of range"), True),
        (mlflow.MlflowException("no such name", INVALID_PARAMETER_VALUE), True),
    ],
    ids=["read-only", "closed", "full pool", "data", "name"],
)
def test_failure_of_a_database_is_not_permanent(error, final):
    assert is_permanent(error) is final


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("a.txt: 401 Client Error: Unauthorized for url", "user and a password"),
        ("a.txt: 403 Client Error: Forbidden for url", "refuses permission"),
    ],
)
def test_describe_server_error_of_a_forbidden_upload_is_one_line(said, words):
    assert words in describe_server_error(OSError(said))


def test_describe_server_error_of_sqlite_leaves_out_the_page_of_sqlalchemy():
    refused = Exception("unable to open database file")  # without a statement: it did not connect
    error = mlflow.MlflowException(exc.OperationalError(None, None, refused))

    assert describe_server_error(error) == "its database says: unable to open database file"


def test_describe_server_error_without_text_names_the_class():
    # An upload with an empty last error would count as delivered.
    assert describe_server_error(ConnectionError()) == "ConnectionError"


def test_describe_server_error_of_a_database_leaves_out_the_statement():
    said = "cannot execute INSERT in a read-only transaction"

    # the form of this message
    assert (
        describe_server_error(of_database(exc.InternalError, said)) == f"its database says: {said}"
    )


UPLOAD = "a.txt: Failed to upload /spool/a.txt to kept/1/abc/artifacts/a.txt: An error occurred "


@pytest.mark.parametrize(
    ("said", "facts"),
    [
        (
            f"{UPLOAD}(NoSuchBucket) when calling the PutObject operation: The specified bucket",
            ["no bucket kept", "artifact location"],
        ),
        (
            f"{UPLOAD}(AccessDenied) when calling the CreateMultipartUpload operation: Access",
            ["bucket kept", "permission", "s3:PutObject"],
        ),
        (
            f"{UPLOAD}(InvalidAccessKeyId) when calling the PutObject operation: The AWS Access",
            ["bucket kept", "keys", "AWS_ACCESS_KEY_ID"],
        ),
        (
            f"{UPLOAD}(SlowDown) when calling the PutObject operation (reached max retries: 4): ",
            ["the bucket kept answers with SlowDown"],  # the form of these messages
        ),
        (
            'a.txt: Could not connect to the endpoint URL: "http://127.0.0.1:1/kept/1/a.txt"',
            ["no bucket", "http://127.0.0.1:1", "MLFLOW_S3_ENDPOINT_URL"],
        ),
        (
            "a.txt: Unable to locate credentials",
            ["no keys", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
        ),
    ],
    ids=["missing", "refused", "keys", "busy", "address", "no keys"],
)
def test_describe_server_error_of_a_bucket_is_one_line(said, facts):
    told = describe_server_error(OSError(said))
    assert mentions(told, *facts)
    assert "\n" not in told
    assert "PutObject operation" not in told  # nor anything else of what boto3 said
    assert "/a.txt" not in told


@pytest.mark.parametrize("character", ["\0", "\udcff"], ids=["NUL", "half a pair"])
def test_character_that_no_database_stores_is_replaced(character, spool):
    client, run_id = spool.client, spool.run_id
    client.set_tag(run_id, "said", f"a{character}b")
    client.log_param(run_id, "root", f"c{character}")
    client.log_metric(run_id, "loss", 0.5, step=1)
    deliver(spool)

    data = spool.there.get_run(run_id).data
    assert data.tags["said"] == "a\N{REPLACEMENT CHARACTER}b"
    assert data.params == {"root": "c\N{REPLACEMENT CHARACTER}"}
    assert data.metrics == {"loss": 0.5}
