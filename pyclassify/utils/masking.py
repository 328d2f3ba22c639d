"""Mask credentials in texts that are stored or shown, and find files with credentials."""

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

MASK = "***"

# The user and password of a URI. A password may contain slashes and @, as SQLAlchemy reads it; when
# in doubt, too much is masked. A port is not a password.
_USER = re.compile(r"""(?<=://)(?:[^\s/:@"]*:(?!\d+(?:/|$))[^\s"]*|[^\s/"]+)@""")
_SECRET_NAMES = (
    r"(?:pass(?:word|wd)?|pwd|secret|token|signature|credentials?|(?:api|access|account)_?key)"
)
_QUERY = re.compile(rf"""([?&;][\w.-]*{_SECRET_NAMES}[\w.-]*=)[^&;\s"'#]+""", re.IGNORECASE)
_NAMED = re.compile(rf"(?:^|[._-]){_SECRET_NAMES}$", re.IGNORECASE)

# In files, names of variables (`{user}:{password}@`) and masked values are not credentials.
_CONTENT_PATTERN = re.compile(
    rb"""://[^\s/:@"'{}$<>*]*:[^\s/@"'{}$<>*]+@|://\w{16,}@"""
    rb"""|-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bgh[opsu]_\w{36}|\bhf_\w{30}"""
)
_FILE_PATTERNS = (
    ".env",
    ".env.*",
    ".netrc",
    ".pypirc",
    ".git-credentials",
    "*.pem",
    "*.key",
    "id_rsa*",
)


def mask(value: Any, name: str = "") -> Any:
    """Mask the credentials in a setting's value, and in nested lists and mappings.

    Args:
        value: Text, or lists and mappings of it; other values are returned as they are.
        name: The setting's name: the whole value of `token` or `password` is masked.
    """
    if isinstance(value, dict):
        return {key: mask(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [mask(item, name) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if _NAMED.search(name):
        return MASK
    return _QUERY.sub(rf"\1{MASK}", _USER.sub(f"{MASK}@", value))


def mask_command(argv: Sequence[str]) -> Iterator[str]:
    """Mask the credentials in a command line, also in `--token=abc` and `--token abc`."""
    option = ""
    for word in argv:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            option = "" if equals else name
            yield f"{name}={mask(value, name)}" if equals else word
        else:
            yield mask(word, option)
            option = ""


def holds_credentials(name: str, content: bytes) -> bool:
    """Whether a file contains credentials, by its name or its content."""
    base_name = name.rsplit("/", 1)[-1]
    return any(fnmatch(base_name, pattern) for pattern in _FILE_PATTERNS) or bool(
        _CONTENT_PATTERN.search(content)
    )
