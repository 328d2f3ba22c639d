"""Credentials in what is kept with the run: the configuration, the script, the parameters."""

import re
import shlex
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from pyclassify.utils.masking import MASK, mask


def check_kept(given: Mapping[str, Any]) -> None:
    """Refuse credentials in the configuration: the script and the JSON are kept with the run.

    Args:
        given: The configuration's keys that have lists of lines or options.

    Raises:
        ValueError: There is one; the name of its variable or option, and never its value.
    """
    for key, lines in given.items():
        for name in (name for line in lines for name in _credentials(_split(line))):
            raise ValueError(
                f"{key} gives {name} a value in the backend config, which looks like a credential, "
                f"and both the config and the script are kept with the run; {_advice(name)}"
            )


def check_parameters(given: Mapping[str, Any]) -> None:
    """Refuse credentials among a run's parameters: they would be in its script.

    Raises:
        ValueError: There is one.
    """
    for name, value in given.items():
        if mask(str(value), name) != str(value):
            raise ValueError(
                f"-P {name} looks like a credential, and parameters and the script are kept with "
                f"the run; have the project read it from a variable: {_advice(name)}"
            )


def _advice(name: str) -> str:
    variable = re.sub(r"\W", "_", name).strip("_").upper()
    return (
        f'export {variable} in this shell and give "exports": {{"{variable}": null}}, which takes '
        "it from the environment"
    )


def has_credentials(text: str) -> bool:
    """Whether a line of bash, or an option, gives a credential's name a value of its own."""
    return any(_credentials(_split(text)))


def _split(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:  # quotes that go on in the next line
        return line.split()


def _credentials(words: list[str]) -> Iterator[str]:
    """The names that look like a credential's, of `A_TOKEN=x`, `--token=x` and `--token x`."""
    named = [pair for word in words for part in word.split(",") for pair in _pairs(part)]
    named += [
        (option, value)
        for option, value in pairwise(words)
        if option.startswith("--") and "=" not in option and not value.startswith("-")
    ]
    for name, value in named:
        # What is read from elsewhere when the job runs is not written down.
        if mask(value, name.lstrip("-").replace("-", "_")) == MASK and not value.startswith(
            ("$", "`")
        ):
            yield name


def _pairs(part: str) -> Iterator[tuple[str, str]]:
    return pairwise(part.split("="))
