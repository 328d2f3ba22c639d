"""Format errors of a store in one line, without credentials, and with a remedy.

A store is a tracking server, a model registry, a database or an artifact store. Its errors are
those of MLflow, and of the libraries below MLflow: for HTTP, databases and buckets.
"""

import html
import re
import shlex
import sys
import traceback
from functools import partial
from pathlib import Path

from pyclassify.spool import database
from pyclassify.utils.masking import mask
from pyclassify.utils.text import format_error, join_lines, shorten

_MAX_MESSAGE = 200  # characters
_MAX_PAGE_TITLE = 60
# Libraries whose errors are always a store's; other code may use those of the second tuple too.
_STORE_LIBRARIES = ("mlflow", "sqlalchemy", "alembic", "boto3", "botocore", "psycopg", "psycopg2")
_SHARED_LIBRARIES = ("builtins", "requests", "sqlite3", "urllib3")
_NOT_STORES = ("data", "models", "pyfunc", "pytorch", "types")  # MLflow's packages without a store
# MLflow wraps all errors within a database session in its own: those of bugs too.
# https://github.com/mlflow/mlflow/blob/master/mlflow/store/db/utils.py
_BUGS = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)

# SQLAlchemy ends a message with the address of its page about the kind of error.
_DATABASE_ERROR = re.compile(
    r"\([\w.]*(?:Error|Exception|psycopg2\.errors\.\w+)\) (.+?) (?:\[SQL: |\(Background on )"
)
_BUCKET_ERROR = re.compile(r"Failed to upload .* to ([^/ ]+)/.*: An error occurred \((\w+)\) when")
_NO_RESPONSE = re.compile(r'Could not connect to the endpoint URL: "(\w+://[^/"]+)')
# By the code that S3 answers with: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses
_NO_BUCKET = "bucket {} does not exist; create it, or set another artifact location"
_FORBIDDEN = "permission denied to write to bucket {}; its policy must allow s3:PutObject"
_INVALID_KEYS = "bucket {} rejected the credentials; check AWS_ACCESS_KEY_ID"
_BUCKET_ERRORS = {
    "NoSuchBucket": _NO_BUCKET,
    "AccessDenied": _FORBIDDEN,
    "AllAccessDisabled": _FORBIDDEN,
    "403": _FORBIDDEN,
    "InvalidAccessKeyId": _INVALID_KEYS,
    "SignatureDoesNotMatch": _INVALID_KEYS,
}
_CONNECTION_ERRORS = {
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate can't be verified",
    "WRONG_VERSION_NUMBER": "the server does not support HTTPS at this address",
    "Connection refused": "connection refused",
    "Connection aborted": "connection closed by the server",
    "Connection reset": "connection closed by the server",
    "Name or service not known": "the host name can't be resolved",
    "Temporary failure in name resolution": "the host name can't be resolved",
    "could not translate host name": "the host name can't be resolved",
    "No route to host": "no route to host",
    "Network is unreachable": "the network is unreachable",
    "timed out": "request timed out",
    "database is locked": "the database is locked by another process",
}
# An HTTP response with an error; the first form is MLflow's, the second that of requests.
_STATUS = re.compile(
    r"(?:failed with error code |^|: )(\d{3}) (?:!= \d+\.|\w+ Error: )(?: ?Response body: '(.*)')?"
)
_NOT_JSON = re.compile(r"not in a valid JSON format\. Response body: '(.*)'")
_HTTP_ERRORS = {
    "401": "authentication failed (HTTP 401)",
    "403": "permission denied (HTTP 403)",
    "404": "not an MLflow server, or an older version (HTTP 404)",
    "405": "not an MLflow server (HTTP 405)",
    "413": "the request is too large (HTTP 413)",
}
# The permanent ones among MLflow's internal errors: for an existing run, which may train while its
# server is unreachable, and for a new one.
_FINAL = r"out-of-date database|in the deleted state"
_MISCONFIGURED = rf"{_FINAL}|not in a valid JSON format|CERTIFICATE_VERIFY_FAILED|WRONG_VERSION"
_OTHER_STORE = "set MLFLOW_TRACKING_URI to another store"
_CHECK_ADDRESS = (
    "set MLFLOW_TRACKING_URI to the address at which the server's page opens without a login page"
)
_CHECK_SERVER = "check the server's log, or try again later"
# The message of MLflow or a database, its description and its remedy; {uri} is the store, {0} the
# first group of the expression. Without a description the message itself is shown.
_REMEDIES = (
    (
        r"filesystem (?:tracking|model registry) backend|model registry.*file store",
        "a file store of an older MLflow, which this version can't write",
        "convert it by `mlflow migrate-filestore --source {folder} --target sqlite:///mlflow.db` "
        "and set MLFLOW_TRACKING_URI=sqlite:///mlflow.db; or set MLFLOW_ALLOW_FILE_STORE=true",
    ),
    (
        r"[Cc]annot set a deleted experiment '(.*?)' as the active",
        "experiment {0!r} is deleted",
        "find its ID by `mlflow experiments search --view deleted_only`, and restore it by `mlflow "
        "experiments restore --experiment-id ID`",
    ),
    (
        r"experiment (\w+) must be in the 'active' state",
        "experiment {0} is deleted",
        "restore it by `mlflow experiments restore --experiment-id {0}`",
    ),
    (
        r"run (\w+) must be in the 'active' state|run with ID (\w+) because it is in the deleted",
        "run {0} is deleted",
        "restore it by `mlflow runs restore --run-id {0}`",
    ),
    (
        r"MLFLOW_EXPERIMENT_ID environment variable value `(.*?)` does not exist",
        "experiment {0!r} of MLFLOW_EXPERIMENT_ID does not exist",
        "list the experiments by `mlflow experiments search`",
    ),
    (
        r"No [Ee]xperiment with id=?'?([\w.-]+)'? exists|Experiment with ID '(\w+)' does not exist",
        "experiment {0} does not exist",
        "list the experiments by `mlflow experiments search`",
    ),
    (
        r"Run (?:with id=|')(\w+)'? not found",
        "run {0} does not exist",
        "unset MLFLOW_RUN_ID if it names this run; list the runs by `mlflow runs list "
        "--experiment-id ID`",
    ),
    (
        r"Can't locate revision identified by '(\w+)'",
        "the database was created by a newer MLflow (schema {0})",
        "upgrade MLflow by `pip install --upgrade mlflow`, or " + _OTHER_STORE,
    ),
    (
        r"out-of-date database schema \(found version (\w+), but expected (\w+)\)",
        "the database has schema {0} of another MLflow version (expected {1})",
        "back it up and run `mlflow db upgrade {uri}`; if that command does not know schema {0}, "
        "upgrade MLflow by `pip install --upgrade mlflow`",
    ),
    (
        r"file is not a database|database disk image is malformed|file is encrypted",
        "not an SQLite database, or a damaged one",
        "restore it from a backup, or " + _OTHER_STORE,
    ),
    (
        r"unable to open database file \((?!Background on )(.*)\)",
        "the database file can't be opened ({0})",
        "give another file by MLFLOW_TRACKING_URI=sqlite:///FILE",
    ),
    (
        r"attempt to write a readonly database|unable to open database file",
        "",
        "check the permissions of the file and its folder, or " + _OTHER_STORE,
    ),
    (r"database is locked", "", "stop that process, or wait until it ends"),
    (r"database or disk is full", "", "free space on the disk, or " + _OTHER_STORE),
    (
        r"No module named '(psycopg2?)'",
        "the PostgreSQL driver {0} is not installed",
        "run `pip install psycopg2-binary`, and use an address of the form postgresql+psycopg2://",
    ),
    (
        r"No module named '(\w+)'",
        "the database driver {0} is not installed",
        "install it (for MySQL: `pip install pymysql`, and an address of the form mysql+pymysql://)",
    ),
    (
        r"Can't load plugin: sqlalchemy\.dialects:([\w.+]+)",
        "unsupported database {0!r}",
        "use a database that SQLAlchemy supports, such as postgresql+psycopg2:// or "
        "mysql+pymysql://",
    ),
    (
        r"unsupported URI '(.*?)' for",
        "unsupported URI scheme",
        "set MLFLOW_TRACKING_URI to http://HOST:PORT of a server, or to sqlite:///FILE",
    ),
    (
        r"Invalid url|Invalid IPv6 URL",
        "invalid address",
        "set MLFLOW_TRACKING_URI to http://HOST:PORT of a server, or to sqlite:///FILE",
    ),
    (
        r"Invalid SQLite URL|[Cc]ould not parse (?:SQLAlchemy|rfc1738) URL",
        "invalid database address",
        "use sqlite:///relative.db, sqlite:////absolute.db or postgresql://USER:PASSWORD@HOST/NAME",
    ),
    (
        r"password authentication failed|no password supplied|role \"[^\"]*\" does not exist",
        "",
        "give a valid user and password in the address, postgresql://USER:PASSWORD@HOST/NAME",
    ),
    (
        r"database \"([^\"]*)\" does not exist",
        "",
        "create it by `createdb {0}`, or correct the address",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED",
        "",
        "set MLFLOW_TRACKING_SERVER_CERT_PATH to the file of its certificate authority",
    ),
    (r"WRONG_VERSION_NUMBER", "", "use an address of the form http://HOST:PORT"),
    (r"exceeds the maximum length|too long for type", "", "give a shorter value"),
    (
        r"Connection refused|timed out|No route|unreachable|name resolution|[Nn]ame or service",
        "",
        "check the address and that the server is running, or " + _OTHER_STORE,
    ),
)
_HTTP_REMEDIES = {
    "401": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    "403": "ask the administrator for permission, or set another MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD",
    "404": _CHECK_ADDRESS,
    "405": _CHECK_ADDRESS,
}


def is_store_error(error: BaseException) -> bool:
    """Whether an error comes from a store, and not from a bug in code that MLflow calls."""
    library = type(error).__module__.partition(".")[0]
    if library in _STORE_LIBRARIES:
        return not isinstance(error.__cause__, _BUGS)
    is_shared = library in _SHARED_LIBRARIES and isinstance(
        error, (OSError, ImportError, ValueError)
    )
    return (is_shared or library == "sqlite3") and _was_raised_below_mlflow(error)


def format_store_error(error: BaseException) -> str:
    """Format an error of a store in one line: the store, the error and the remedy."""
    uri = _find_uri()
    remedy = _find_remedy(join_lines(str(error)), uri)
    where = f"the tracking store {mask(uri)}" if uri else "the tracking store"
    return f"{where}: {describe_server_error(error)}; {remedy}"


def describe_server_error(error: BaseException) -> str:
    """Describe an error of the server in one line, without credentials."""
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
    """Whether an error that MLflow calls internal is permanent, so that a retry is useless.

    Args:
        error: The error.
        is_new_run: Whether the run is not created yet, so that nothing is lost by an error: then an
            HTML page instead of a response is permanent too.
    """
    return re.search(_MISCONFIGURED if is_new_run else _FINAL, str(error)) is not None


def lacks_logged_models(error: BaseException) -> bool:
    """Whether a request for a logged model failed since the server is of MLflow 2."""
    is_unknown = getattr(error, "error_code", "") == "ENDPOINT_NOT_FOUND"
    return is_unknown or isinstance(error, NotImplementedError)


def _describe_bucket_error(message: str) -> str:
    if match := _BUCKET_ERROR.search(message):
        bucket, code = match.groups()
        return _BUCKET_ERRORS.get(code, f"bucket {{}} returned error {code}").format(bucket)
    if match := _NO_RESPONSE.search(message):
        return f"the object store {match[1]} does not respond; check MLFLOW_S3_ENDPOINT_URL"
    if "Unable to locate credentials" in message:
        return "no credentials for the bucket; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return ""


def _describe_known_error(message: str) -> str:
    for pattern, description, _ in _REMEDIES:
        if description and (match := re.search(pattern, message)):
            return description.format(*_groups(match))
    return ""


def _describe_http_error(message: str) -> str:
    if match := re.search(r"too many (\d+) error responses", message):
        return f"HTTP error {match[1]}"
    if match := _NOT_JSON.search(message):
        return f"not an MLflow server: the response is an HTML page{_quote_title(match[1])}"
    if match := _STATUS.search(message):
        text = _HTTP_ERRORS.get(match[1], f"HTTP error {match[1]}")
        return f"{text}{_quote_title(match[2] or '')}"
    return _HTTP_ERRORS["403"] if "PERMISSION_DENIED" in message else ""


def _describe_connection_error(message: str) -> str:
    for part, description in _CONNECTION_ERRORS.items():
        if part in message:
            return description
    return ""


def _describe_database_error(message: str) -> str:
    match = _DATABASE_ERROR.search(message)
    return f"database error: {match[1]}" if match else ""


def _quote_title(page: str) -> str:
    """Quote the title of an HTML page, or its first words; empty for an empty page."""
    title = re.search(r"<title[^>]*>(.*?)</title>", page, re.IGNORECASE)
    text = html.unescape(title[1] if title else re.sub(r"<[^>]*>", " ", page))
    return f" ({shorten(join_lines(text), _MAX_PAGE_TITLE)!r})" if text.strip() else ""


def _find_remedy(message: str, uri: str) -> str:
    for pattern, _, remedy in _REMEDIES:
        if match := re.search(pattern, message):
            facts = {"uri": _quote_uri(uri), "folder": _quote_uri(_find_folder(uri))}
            return remedy.format(*_groups(match), **facts)
    if _NOT_JSON.search(message):
        return _CHECK_ADDRESS
    if match := _STATUS.search(message):
        return _HTTP_REMEDIES.get(match[1], _CHECK_SERVER if match[1] >= "500" else _OTHER_STORE)
    if "too many" in message:
        return _CHECK_SERVER
    return _OTHER_STORE


def _groups(match: re.Match[str]) -> list[str]:
    return [group for group in match.groups() if group is not None]


def _find_uri() -> str:
    """Find the tracking URI; empty if MLflow is not imported."""
    mlflow = sys.modules.get("mlflow")
    return str(mlflow.get_tracking_uri()) if mlflow else ""


def _find_folder(uri: str) -> str:
    return uri.removeprefix("file://").removeprefix("file:") or "mlruns"


def _quote_uri(uri: str) -> str:
    """Quote an address for a shell; for one with credentials name the environment variable."""
    return shlex.quote(uri) if mask(uri) == uri else '"$MLFLOW_TRACKING_URI"'


def _was_raised_below_mlflow(error: BaseException) -> bool:
    """Whether a store's module of MLflow, or a library that it called, raised an error.

    Code of this project or of the user, which MLflow calls back, has its own errors.
    """
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or not mlflow.__file__:
        return False
    package = Path(mlflow.__file__).parent
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    for file in reversed(files):
        if file.is_relative_to(package):
            return file.relative_to(package).parts[0] not in _NOT_STORES
        if not _is_library(file):
            return False
    return False


def _is_library(file: Path) -> bool:
    """Whether a file of a traceback belongs to Python or an installed package, except this one."""
    if file.is_relative_to(Path(__file__).parents[1]):
        return file == Path(database.__file__)  # MLflow opens databases by that module
    is_installed = not {"site-packages", "dist-packages"}.isdisjoint(file.parts)
    is_built_in = str(file).startswith("<") or file.is_relative_to(Path(traceback.__file__).parent)
    return is_installed or is_built_in
