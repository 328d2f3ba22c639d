"""Mask credentials in what is stored or shown, and find files that hold some."""

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

MASK = "***"

# The user and password of a URI. A password may have slashes and @ in it, as SQLAlchemy reads it:
# rather too much is masked than too little. A port is not a password.
_USER = re.compile(r"""(?<=://)(?:[^\s/:@"]*:(?!\d+(?:/|$))[^\s"]*|[^\s/"]+)@""")
_SECRET_NAMES = (
    r"(?:pass(?:word|wd)?|pwd|secret|token|signature|credentials?|(?:api|access|account)_?key)"
)
_QUERY = re.compile(rf"""([?&;][\w.-]*{_SECRET_NAMES}[\w.-]*=)[^&;\s"'#]+""", re.IGNORECASE)
_NAMED = re.compile(rf"(?:^|[._-]){_SECRET_NAMES}$", re.IGNORECASE)

# In files the names of variables (`{user}:{password}@`) are no credentials, nor is what is masked.
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
    """Mask the credentials in a setting's value, and in all that it holds.

    Args:
        value: Text, or lists and mappings of it; other values are returned as they are.
        name: The setting's name: text named `token` or `password` is masked whole.
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
    """Mask the credentials in a command line, `--token=abc` and `--token abc` too."""
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
    """Whether a file holds credentials, by its name or by its content."""
    base_name = name.rsplit("/", 1)[-1]
    return any(fnmatch(base_name, pattern) for pattern in _FILE_PATTERNS) or bool(
        _CONTENT_PATTERN.search(content)
    )
