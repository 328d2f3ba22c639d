"""Describe in one line what a store did not do, without credentials, and name the way out.

A store is a tracking server, a registry, a database, or where artifacts are. Its errors are those
of MLflow, and of the libraries that MLflow lets through: of HTTP, of databases, of buckets.
"""

import html
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pyclassify.utils.masking import mask
from pyclassify.utils.text import format_error, join_lines, shorten

_MAX_MESSAGE = 200  # characters
_MAX_PAGE_TITLE = 60
# Libraries whose errors are a store's; those of the second tuple only where MLflow called them.
_STORE_LIBRARIES = ("mlflow", "sqlalchemy", "alembic", "boto3", "botocore", "psycopg", "psycopg2")
_SHARED_LIBRARIES = ("builtins", "requests", "sqlite3", "urllib3")

# SQLAlchemy ends a message with the address of its page about the kind of error.
_DATABASE_ERROR = re.compile(
    r"\([\w.]*(?:Error|Exception|psycopg2\.errors\.\w+)\) (.+?) (?:\[SQL: |\(Background on )"
)
_BUCKET_ERROR = re.compile(r"Failed to upload .* to ([^/ ]+)/.*: An error occurred \((\w+)\) when")
_NO_ANSWER = re.compile(r'Could not connect to the endpoint URL: "(\w+://[^/"]+)')
# By the code that S3 answers with: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses
_NO_BUCKET = "there is no bucket {}; make it, or give the experiment another artifact location"
_FORBIDDEN = "the bucket {} refuses permission to write; its policy must allow s3:PutObject"
_INVALID_KEYS = "the bucket {} does not take these keys; see AWS_ACCESS_KEY_ID"
_BUCKET_ERRORS = {
    "NoSuchBucket": _NO_BUCKET,
    "AccessDenied": _FORBIDDEN,
    "AllAccessDisabled": _FORBIDDEN,
    "403": _FORBIDDEN,
    "InvalidAccessKeyId": _INVALID_KEYS,
    "SignatureDoesNotMatch": _INVALID_KEYS,
}
_CONNECTION_ERRORS = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate can't be verified",
    "WRONG_VERSION_NUMBER": "it does not speak https",
    "Connection refused": "nothing listens there",
    "Connection aborted": "it broke off the connection",
    "Connection reset": "it broke off the connection",
    "Name or service not known": "its name is not known here",
    "Temporary failure in name resolution": "its name is not known here",
    "could not translate host name": "its name is not known here",
    "No route to host": "there is no route to it",
    "Network is unreachable": "there is no route to it",
    "timed out": "it does not answer in time",
    "database is locked": "another process has locked the database",
}
# An answer of HTTP; the first form is MLflow's, the second that of requests.
_STATUS = re.compile(
    r"(?:failed with error code |^|: )(\d{3}) (?:!= \d+\.|\w+ Error: )(?: ?Response body: '(.*)')?"
)
_NOT_JSON = re.compile(r"not in a valid JSON format\. Response body: '(.*)'")
_HTTP_ERRORS = {
    "401": "it asks for a user and a password, or for others",
    "403": "it refuses permission",
    "404": "it answers with error 404, so it is not an MLflow server, or an older one",
    "405": "it answers with error 405, so it is not an MLflow server",
    "413": "it refuses what is so large (error 413)",
}
# Of what MLflow calls an internal error, what does not pass: for a run that is there already, which
# may train while its server is away, and for a new one.
_FINAL = r"out-of-date database|in the deleted state"
_MISCONFIGURED = rf"{_FINAL}|not in a valid JSON format|CERTIFICATE_VERIFY_FAILED|WRONG_VERSION"
_ELSEWHERE = "MLFLOW_TRACKING_URI names another place"
_SEE_ADDRESS = (
    "see that MLFLOW_TRACKING_URI is the address at which its page opens without a login between"
)
_SEE_SERVER = "see its log, or try again later"
# What is wrong, and the way out, by what MLflow or a database says; {uri} is the store, {0} what
# the expression found. A message without description describes itself.
_REMEDIES = (
    (
        r"filesystem (?:tracking|model registry) backend|model registry.*file store",
        "it is a folder of an older MLflow, which this one does not write",
        "`mlflow migrate-filestore --source {folder} --target sqlite:///mlflow.db` makes a "
        "database of it, which MLFLOW_TRACKING_URI=sqlite:///mlflow.db then names; or set "
        "MLFLOW_ALLOW_FILE_STORE=true",
    ),
    (
        r"[Cc]annot set a deleted experiment '(.*?)' as the active",
        "experiment {0!r} is deleted",
        "`mlflow experiments search --view deleted_only` shows its id, and `mlflow experiments "
        "restore --experiment-id ID` brings it back",
    ),
    (
        r"experiment (\w+) must be in the 'active' state",
        "experiment {0} is deleted",
        "`mlflow experiments restore --experiment-id {0}` brings it back",
    ),
    (
        r"run (\w+) must be in the 'active' state|run with ID (\w+) because it is in the deleted",
        "run {0} is deleted",
        "`mlflow runs restore --run-id {0}` brings it back",
    ),
    (
        r"MLFLOW_EXPERIMENT_ID environment variable value `(.*?)` does not exist",
        "MLFLOW_EXPERIMENT_ID is {0!r}, and there is no such experiment",
        "`mlflow experiments search` lists those that there are",
    ),
    (
        r"No [Ee]xperiment with id=?'?([\w.-]+)'? exists|Experiment with ID '(\w+)' does not exist",
        "there is no experiment {0}",
        "`mlflow experiments search` lists those that there are",
    ),
    (
        r"Run (?:with id=|')(\w+)'? not found",
        "there is no run {0}",
        "if MLFLOW_RUN_ID names it, unset that; `mlflow runs list --experiment-id ID` lists runs",
    ),
    (
        r"Can't locate revision identified by '(\w+)'",
        "the database is of a newer MLflow (schema {0})",
        "`pip install --upgrade mlflow` to that one's release, or another database: " + _ELSEWHERE,
    ),
    (
        r"out-of-date database schema \(found version (\w+), but expected (\w+)\)",
        "the database has the schema {0} of another MLflow, and this one's is {1}",
        "back it up, then `mlflow db upgrade {uri}`; if that does not know {0}, the database is of "
        "a newer MLflow: `pip install --upgrade mlflow`",
    ),
    (
        r"file is not a database|database disk image is malformed|file is encrypted",
        "it is not a database of SQLite, or a damaged one",
        "restore it from a copy, or move it away; " + _ELSEWHERE,
    ),
    (
        r"unable to open database file \((?!Background on )(.*)\)",
        "its file can't be opened ({0})",
        "give another as MLFLOW_TRACKING_URI=sqlite:///FILE",
    ),
    (
        r"attempt to write a readonly database|unable to open database file",
        "",
        "see the permissions of the file and of its folder; " + _ELSEWHERE,
    ),
    (r"database is locked", "", "end that process, or wait for it"),
    (r"database or disk is full", "", "make room on that disk; " + _ELSEWHERE),
    (
        r"No module named '(psycopg2?)'",
        "Python has no driver for PostgreSQL ({0})",
        "`pip install psycopg2-binary`, and write the address as postgresql+psycopg2://",
    ),
    (
        r"No module named '(\w+)'",
        "Python has no driver for this database ({0})",
        "install it (for MySQL `pip install pymysql`, and mysql+pymysql:// in the address)",
    ),
    (
        r"Can't load plugin: sqlalchemy\.dialects:([\w.+]+)",
        "SQLAlchemy knows no database {0!r}",
        "give a driver that it has, such as postgresql+psycopg2:// or mysql+pymysql://",
    ),
    (
        r"unsupported URI '(.*?)' for",
        "MLflow knows no place of this kind",
        "give http://HOST:PORT of a server, or sqlite:///FILE, as MLFLOW_TRACKING_URI",
    ),
    (
        r"Invalid SQLite URL|[Cc]ould not parse (?:SQLAlchemy|rfc1738) URL",
        "the address is not one of a database",
        "write it as sqlite:///relative.db, sqlite:////absolute.db or "
        "postgresql://USER:PASSWORD@HOST/NAME",
    ),
    (
        r"password authentication failed|no password supplied|role \"[^\"]*\" does not exist",
        "",
        "give another user and password in the address, postgresql://USER:PASSWORD@HOST/NAME",
    ),
    (
        r"database \"([^\"]*)\" does not exist",
        "",
        "make it by `createdb {0}`, or correct the address",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED",
        "",
        "name the file of its authority by MLFLOW_TRACKING_SERVER_CERT_PATH",
    ),
    (r"WRONG_VERSION_NUMBER", "", "give its address with http://"),
    (r"exceeds the maximum length|too long for type", "", "give a shorter one"),
)
_HTTP_REMEDIES = {
    "401": "give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    "403": "ask who runs it for the permission, or give another MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD",
    "404": _SEE_ADDRESS,
    "405": _SEE_ADDRESS,
}


def is_store_error(error: BaseException) -> bool:
    """Whether an error is MLflow's, or came through MLflow from a library below it."""
    library = type(error).__module__.partition(".")[0]
    if library in _STORE_LIBRARIES:
        return True
    is_shared = library in _SHARED_LIBRARIES and isinstance(
        error, (OSError, ImportError, ValueError)
    )
    return (is_shared or library == "sqlite3") and _came_through_mlflow(error)


def format_store_error(error: BaseException) -> str:
    """Format an error of a store in one line: which store, what is wrong, and the way out."""
    uri = _find_uri()
    remedy = _find_remedy(join_lines(str(error)), uri)
    where = f"the tracking store {mask(uri)}" if uri else "the tracking store"
    return f"{where}: {describe_server_error(error)}; {remedy}"


def describe_server_error(error: BaseException) -> str:
    """Describe in one line what is wrong with the server, without credentials."""
    message = join_lines(str(error))
    descriptions = (
        partial(_describe_bucket_error, message),
        partial(_describe_known_error, message),
        partial(_describe_http_error, message),
        partial(_describe_connection_error, message),
        partial(_describe_database_error, message),
    )
    text = next(filter(None, (describe() for describe in descriptions)), "")
    return shorten(mask(text), _MAX_MESSAGE) if text else format_error(error, _MAX_MESSAGE)


def is_final(error: BaseException, is_new_run: bool) -> bool:
    """Whether an error that MLflow calls internal does not pass, however long one waits.

    Args:
        error: The error.
        is_new_run: Whether nothing is lost if the run is not made: then a page in place of an
            answer is final too.
    """
    return re.search(_MISCONFIGURED if is_new_run else _FINAL, str(error)) is not None


def _describe_bucket_error(message: str) -> str:
    if match := _BUCKET_ERROR.search(message):
        bucket, code = match.groups()
        return _BUCKET_ERRORS.get(code, f"the bucket {{}} answers with {code}").format(bucket)
    if match := _NO_ANSWER.search(message):
        return f"no bucket answers at {match[1]}; see MLFLOW_S3_ENDPOINT_URL"
    if "Unable to locate credentials" in message:
        return "there are no keys for the bucket; give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return ""


def _describe_known_error(message: str) -> str:
    for pattern, description, _ in _REMEDIES:
        if description and (match := re.search(pattern, message)):
            return description.format(*_groups(match))
    return ""


def _describe_http_error(message: str) -> str:
    if match := re.search(r"too many (\d+) error responses", message):
        return f"it answers with error {match[1]}"
    if match := _NOT_JSON.search(message):
        return f"it answers with a page{_quote_title(match[1])}, so it is not an MLflow server"
    if match := _STATUS.search(message):
        text = _HTTP_ERRORS.get(match[1], f"it answers with error {match[1]}")
        return f"{text}{_quote_title(match[2] or '')}"
    return _HTTP_ERRORS["403"] if "PERMISSION_DENIED" in message else ""


def _describe_connection_error(message: str) -> str:
    for part, description in _CONNECTION_ERRORS.items():
        if part in message:
            return description
    return ""


def _describe_database_error(message: str) -> str:
    match = _DATABASE_ERROR.search(message)
    return f"its database says: {match[1]}" if match else ""


def _quote_title(page: str) -> str:
    """Quote the title of a page of HTML, or its first words; empty for an empty page."""
    title = re.search(r"<title[^>]*>(.*?)</title>", page, re.IGNORECASE)
    text = html.unescape(title[1] if title else re.sub(r"<[^>]*>", " ", page))
    return f" ({shorten(join_lines(text), _MAX_PAGE_TITLE)!r})" if text.strip() else ""


def _find_remedy(message: str, uri: str) -> str:
    for pattern, _, remedy in _REMEDIES:
        if match := re.search(pattern, message):
            facts = {"uri": _quote_uri(uri), "folder": _quote_uri(_find_folder(uri))}
            return remedy.format(*_groups(match), **facts)
    if _NOT_JSON.search(message):
        return _SEE_ADDRESS
    if match := _STATUS.search(message):
        return _HTTP_REMEDIES.get(match[1], _SEE_SERVER if match[1] >= "500" else _ELSEWHERE)
    if "too many" in message:
        return _SEE_SERVER
    return _ELSEWHERE


def _groups(match: re.Match[str]) -> list[str]:
    return [group for group in match.groups() if group is not None]


def _find_uri() -> str:
    """Find the tracking URI; empty where MLflow is not loaded, or does not tell."""
    mlflow = sys.modules.get("mlflow")
    return str(mlflow.get_tracking_uri()) if mlflow else ""


def _find_folder(uri: str) -> str:
    return uri.removeprefix("file://").removeprefix("file:") or "mlruns"


def _quote_uri(uri: str) -> str:
    """Quote an address for a shell; one with credentials is read from the environment."""
    return shlex.quote(uri) if mask(uri) == uri else '"$MLFLOW_TRACKING_URI"'


def _came_through_mlflow(error: BaseException) -> bool:
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or not mlflow.__file__:
        return False
    folder = Path(mlflow.__file__).parent
    return any(Path(name).is_relative_to(folder) for name in _list_files(error))


def _list_files(error: BaseException) -> Iterator[str]:
    return (frame.filename for frame in traceback.extract_tb(error.__traceback__))
