"""What a database or a bucket behind a tracking server says, in a line for a person.

MLflow hands on what SQLAlchemy and boto3 say: a statement, or two long paths, around the reason.
"""

import re

# SQLAlchemy ends what it says with the address of its page about the kind of error; 9h9h is its
# DataError, of values that no try will have stored.
_OF_DATABASE = re.compile(r"https://sqlalche\.me/e/\d+/(?!9h9h)")
_DATABASE = re.compile(r"\([\w.]*(?:Error|Exception|psycopg2\.errors\.\w+)\) (.+?) \[SQL: ")
_BUCKET = re.compile(r"Failed to upload .* to ([^/ ]+)/.*: An error occurred \((\w+)\) when")
_ADDRESS = re.compile(r'Could not connect to the endpoint URL: "(\w+://[^/"]+)')

# By the code that S3 answers with: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses
_MISSING = "there is no bucket {}; make it, or give the experiment another artifact location"
_REFUSED = "the bucket {} refuses permission to write; its policy must allow s3:PutObject"
_KEYS = "the bucket {} does not take these keys; see AWS_ACCESS_KEY_ID"
_WORDS = {
    "NoSuchBucket": _MISSING,
    "AccessDenied": _REFUSED,
    "AllAccessDisabled": _REFUSED,
    "403": _REFUSED,
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
}


def is_database_failing(words: str) -> bool:
    """Whether it is the database that could not do something now, and not the values at fault.

    MLflow answers BAD_REQUEST to both: also where the database is read-only for a while, has
    closed the connection, or has fewer connections than there are requests at once.

    Args:
        words: What the server answered.
    """
    return _OF_DATABASE.search(words) is not None


def translate_error(text: str) -> str:
    """Say what is wrong with a database or a bucket.

    Args:
        text: What MLflow said, in one line.

    Returns:
        Nothing where it is about neither.
    """
    if found := _BUCKET.search(text):
        bucket, code = found.groups()
        return _WORDS.get(code, f"the bucket {{}} answers with {code}").format(bucket)
    if found := _ADDRESS.search(text):
        return f"no bucket answers at {found[1]}; see MLFLOW_S3_ENDPOINT_URL"
    if "Unable to locate credentials" in text:
        return "there are no keys for the bucket; give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if found := _DATABASE.search(text):
        return f"its database says: {found[1]}"
    return ""
