"""Keep credentials out of a job's configuration, parameters and script: others can read these.

The configuration and the script are stored with the run. A job reads its credentials from variables
of the environment, which the key "exports" takes with null.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from pyclassify.utils.masking import MASK, holds_credentials, mask


def check_text(key: str, text: str) -> None:
    """Refuse a credential in the value of a key, such as a URI's password.

    Raises:
        ValueError: There is one; the message does not repeat it.
    """
    if holds_credentials("backend_config.json", text.encode()):
        raise ValueError(
            f"{key} has a credential in it in the backend config, and both the config and the "
            "script are kept with the run; have the job read it from a variable, which "
            '"exports" takes with null'
        )


def check_lines(key: str, lines: Sequence[str]) -> None:
    """Refuse lines of bash, or options, that give a credential's name a value.

    Raises:
        ValueError: One does; the message has the name, and never the value.
    """
    for name in (name for line in lines for name in _find_names(line)):
        raise ValueError(
            f"{key} gives {name} a value in the backend config, which looks like a credential, "
            f"and both the config and the script are kept with the run; {_format_remedy(name)}"
        )


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse credentials among a run's parameters: they would be in its script.

    Raises:
        ValueError: A parameter looks like a credential.
    """
    for name, value in parameters.items():
        if mask(str(value), name) != str(value):
            raise ValueError(
                f"-P {name} looks like a credential, and parameters and the script are kept with "
                f"the run; have the project read it from a variable: {_format_remedy(name)}"
            )


def is_credential(name: str, value: str) -> bool:
    """Whether a variable looks like a credential by its name or its value."""
    return mask(value, name) != value or any(_find_names(value))


def _format_remedy(name: str) -> str:
    variable = re.sub(r"\W", "_", name).strip("_").upper()
    return (
        f'export {variable} in this shell and give "exports": {{"{variable}": null}}, which takes '
        "it from the environment"
    )


def _find_names(line: str) -> Iterator[str]:
    """The names that look like a credential's, of `A_TOKEN=x`, `--token=x` and `--token x`."""
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
        # What is read from elsewhere when the job runs is not written down.
        read_in_job = value.startswith(("$", "`"))
        if mask(value, name.lstrip("-").replace("-", "_")) == MASK and not read_in_job:
            yield name


def _split(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:  # quotes that go on in the next line
        return line.split()
