"""Keep credentials out of a job's configuration, parameters and script: others can read these.

The configuration and the script are stored with the run. A job reads its credentials from
environment variables, which the key "exports" passes on where their value is null.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from pyclassify.utils.masking import MASK, holds_credentials, mask
from pyclassify.utils.options import UsageError


def check_text(key: str, text: str) -> None:
    """Refuse a credential in the value of a key, such as a URI's password.

    Raises:
        ValueError: The text contains one; the message does not repeat it.
    """
    if holds_credentials("backend_config.json", text.encode()):
        raise ValueError(
            f"{key} in the backend config contains a credential, but the config and the script are "
            "stored with the run; read it from an environment variable in the job, and name that "
            'variable in "exports" with null'
        )


def check_lines(key: str, lines: Sequence[str]) -> None:
    """Refuse lines of bash, or options, that set a variable or option with a credential.

    Raises:
        ValueError: One does; the message has its name, and never the value.
    """
    for name in (name for line in lines for name in _find_names(line)):
        raise ValueError(
            f"{key} in the backend config sets {name}, which looks like a credential, but the "
            f"config and the script are stored with the run; {_format_remedy(name)}"
        )


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse credentials among a run's parameters, as the script contains the parameters.

    Raises:
        UsageError: A parameter looks like a credential.
    """
    for name, value in parameters.items():
        if mask(str(value), name) != str(value):
            raise UsageError(
                f"-P {name} looks like a credential, but parameters and the script are stored with "
                "the run; read it from an environment variable in the project: "
                f"{_format_remedy(name)}"
            )


def is_credential(name: str, value: str) -> bool:
    """Whether a variable looks like a credential by its name or its value."""
    return mask(value, name) != value or any(_find_names(value))


def _format_remedy(name: str) -> str:
    variable = re.sub(r"\W", "_", name).strip("_").upper()
    return (
        f'export {variable} in this shell, and give "exports": {{"{variable}": null}}, which '
        "passes it on without storing it"
    )


def _find_names(line: str) -> Iterator[str]:
    """Find names of credentials in `A_TOKEN=x`, `--token=x` and `--token x`."""
    words = _split(line)
    named = [
        pair for word in words for part in word.split(",") for pair in pairwise(part.split("="))
    ]
    named += [
        (option, value)
        for option, value in pairwise(words)
        if option.startswith("--") and "=" not in option and not value.startswith("-")
    ]
    for name, value in named:
        # A value that the job reads when it runs is not in the script.
        read_in_job = value.startswith(("$", "`"))
        if mask(value, name.lstrip("-").replace("-", "_")) == MASK and not read_in_job:
            yield name


def _split(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:  # a quoted text ends in a later line
        return line.split()
