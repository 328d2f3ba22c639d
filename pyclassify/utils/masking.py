"""Credentials stay out of what is kept for others to read."""

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

MASK = "***"

# What stands before a URI's host. A password may have slashes and @ in it, as SQLAlchemy reads it:
# rather too much is masked than too little. A port is no password.
_USER = re.compile(r"""(?<=://)(?:[^\s/:@"]*:(?!\d+(?:/|$))[^\s"]*|[^\s/"]+)@""")
_WORDS = r"(?:pass(?:word|wd)?|pwd|secret|token|signature|credentials?|(?:api|access|account)_?key)"
_QUERY = re.compile(rf"""([?&;][\w.-]*{_WORDS}[\w.-]*=)[^&;\s"'#]+""", re.IGNORECASE)
_NAMED = re.compile(rf"(?:^|[._-]){_WORDS}$", re.IGNORECASE)

# In files the names of variables (`{user}:{password}@`) are none, nor is what is masked.
_IN_FILES = re.compile(
    rb"""://[^\s/:@"'{}$<>*]*:[^\s/@"'{}$<>*]+@|://\w{16,}@"""
    rb"""|-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bgh[opsu]_\w{36}|\bhf_\w{30}"""
)
_FILES = (".env", ".env.*", ".netrc", ".pypirc", ".git-credentials", "*.pem", "*.key", "id_rsa*")


def mask(value: Any, name: str = "") -> Any:
    """Mask the credentials in a setting's value, and in all that it holds.

    Args:
        value: Text, or lists and mappings of it; other values come back as they are.
        name: What it is called: text called `token` or `password` is masked whole.
    """
    if isinstance(value, dict):
        return {key: mask(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [mask(inner, name) for inner in value]
    if not isinstance(value, str) or not value:
        return value
    if _NAMED.search(name):
        return MASK
    return _QUERY.sub(rf"\1{MASK}", _USER.sub(f"{MASK}@", value))


def mask_command(words: Sequence[str]) -> Iterator[str]:
    """Mask the credentials in a command line's words, `--token=abc` and `--token abc` too."""
    option = ""
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            option = "" if equals else name
            yield f"{name}={mask(value, name)}" if equals else word
        else:
            yield mask(word, option)
            option = ""


def holds_credentials(name: str, content: bytes) -> bool:
    """Whether a file is one of credentials by its name, or has some in it."""
    plain = name.rsplit("/", 1)[-1]
    return any(fnmatch(plain, each) for each in _FILES) or bool(_IN_FILES.search(content))
