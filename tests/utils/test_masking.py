"""Credentials are masked, and nothing else is."""

import pytest

from pyclassify.utils.masking import holds_credentials, mask, mask_command


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://me:secret@host:5000/x", "https://***@host:5000/x"),
        ("https://tokenalone@host/x", "https://***@host/x"),
        ("mysql+pymysql://me:se/cr@et@db/runs", "mysql+pymysql://***@db/runs"),
        ("https://me:s@e/cret@host/x", "https://***@host/x"),
        ("s3://key:secret@bucket/a and https://a:b@c", "s3://***@bucket/a and https://***@c"),
        ("https://h/x?access_token=abc&page=2", "https://h/x?access_token=***&page=2"),
        ("https://h/x?X-Amz-Signature=abc", "https://h/x?X-Amz-Signature=***"),
        ("http://host:5000/people@home", "http://host:5000/people@home"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("someone@example.org", "someone@example.org"),
    ],
)
def test_credentials_in_addresses_are_masked_and_nothing_else(text, masked):
    assert mask(text) == masked


def test_settings_are_masked_by_their_names():
    config = {"token": "abc", "db": {"api_key": "abc", "tokens": 3, "password": None}}
    config |= {"passwords": ["shown"], "token_size": "shown", "monkey": "shown"}

    masked = {"token": "***", "db": {"api_key": "***", "tokens": 3, "password": None}}
    assert mask(config) == {**config, **masked}


@pytest.mark.parametrize(
    ("given", "masked"),
    [
        (["--data.token", "abc", "x"], ["--data.token", "***", "x"]),
        (["--data.token=abc", "x"], ["--data.token=***", "x"]),
        (["--url", "http://a:b@c"], ["--url", "http://***@c"]),
        (["--max_epochs=3"], ["--max_epochs=3"]),
    ],
)
def test_command_lines_are_masked(given, masked):
    assert [*mask_command(given)] == masked


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a/.env", b"", True),
        ("server.pem", b"", True),
        ("a.py", b'connect("redis://:secret@host")', True),
        ("a.txt", b"-----BEGIN RSA PRIVATE KEY-----", True),
        ("a.txt", b"id AKIA" + b"ABCDEFGHIJKLMNOP", True),
        ("a.py", b'f"https://{user}:{password}@host"', False),
        ("a.txt", b"git+ssh://git@github.com/x", False),
        ("environment.py", b"http://host:5000/a", False),
    ],
)
def test_files_with_credentials_are_found(name, content, found):
    assert holds_credentials(name, content) == found
