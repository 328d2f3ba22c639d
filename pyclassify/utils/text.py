"""Format texts for messages and pages: errors in one line, shortened lists, Markdown."""

import os
import re
import traceback
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from pyclassify.utils.masking import mask

_MAX_REASON = 500  # characters
_PACKAGE = Path(__file__).parents[1]
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Characters of Markdown's syntax; an underscore in a word and a colon before a space are not.
_MARKDOWN_SYNTAX = re.compile(r"""[\\`*{}\[\]<>#|~@&$!"¨]|:(?=\S)|(?<![^\W_])_|_(?![^\W_])""")
_CODE_TEXT = re.compile(r"""[\w ./:=,+@%'"\[\]{}()#*<>&!?^;-]+""")


def format_error(error: BaseException, max_length: int = 0) -> str:
    """Format an error's message in one line, without credentials.

    Args:
        error: The error; its class name is used if its message is empty.
        max_length: The maximum number of characters; 0 for no limit.
    """
    message = str(mask(join_lines(str(error)))) or type(error).__name__
    return shorten(message, max_length) if max_length else message


def format_reason(error: BaseException) -> str:
    """Format the reason why a run failed in one line: the error's class and message.

    For a stop signal, which is a KeyboardInterrupt with the signal's name, it is that name.
    """
    name = type(error).__name__
    message = format_error(error, _MAX_REASON)
    if isinstance(error, KeyboardInterrupt) or message == name:
        return message
    return f"{name}: {message}"


def is_own_error(error: BaseException) -> bool:
    """Whether this package raised an error itself, so that its message is meant for users."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(_PACKAGE)


def join_lines(text: str) -> str:
    """Join the lines of a text to one line, with single spaces."""
    return " ".join(text.split())


def join_some(names: Sequence[str], max_names: int = 3, noun: str = "") -> str:
    """Join the first of some names: "a, b, c and 2 more".

    Args:
        names: The names.
        max_names: The maximum number of names that are listed.
        noun: The noun after "more", such as "files".
    """
    text = ", ".join(names[:max_names])
    if len(names) > max_names:
        text += f" and {len(names) - max_names} more {noun}".rstrip()
    return text


def suggest(given: str, names: Iterable[str]) -> str:
    """Suggest the nearest of some names: ". Did you mean 'train'?", or "" if none is similar."""
    matches = get_close_matches(given, [*names], n=1)
    return f". Did you mean {matches[0]!r}?" if matches else ""


def format_duration(seconds: float) -> str:
    """Format a duration in its two largest units: "1 h 2 min", "3 min 4 s" or "5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = {"h": hours, "min": minutes, "s": rest if not hours else 0}
    return " ".join(f"{count} {unit}" for unit, count in parts.items() if count) or "under 1 s"


def shorten(text: str, length: int) -> str:
    """Shorten a text to a length in characters, including an ellipsis at its end."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def escape_path(path: str) -> str:
    """Escape line breaks, control characters and bytes that are not UTF-8 in a path."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escape_markdown(text: str, max_length: int = 100) -> str:
    """Escape text so that Markdown renders it unchanged.

    Args:
        text: Any text; line breaks become spaces.
        max_length: Longer text is cut to this number of characters.
    """
    shortened = shorten(join_lines(text), max_length)
    return _MARKDOWN_SYNTAX.sub(lambda found: f"&#{ord(found[0])};", shortened)


def format_code(text: str, max_length: int = 100) -> str:
    """Format text as Markdown code, or as escaped text if that is not possible."""
    shortened = shorten(join_lines(text), max_length)
    if _CODE_TEXT.fullmatch(shortened):
        return f"`{shortened}`"
    return escape_markdown(shortened, max_length)
