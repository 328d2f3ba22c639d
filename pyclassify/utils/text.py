"""Short texts for messages: an error in one line, some of many names, a text cut to a length."""

from collections.abc import Sequence

from pyclassify.utils.masking import mask

_MAX_REASON = 500  # characters


def format_error(error: BaseException, max_length: int = 0) -> str:
    """Format an error's message in one line, without credentials.

    Args:
        error: The error; its class stands for a message that is empty.
        max_length: Characters; with 0 the message is not cut.
    """
    message = str(mask(join_lines(str(error)))) or type(error).__name__
    return shorten(message, max_length) if max_length else message


def format_reason(error: BaseException) -> str:
    """Format why an error ended a run in one line: its class and its message.

    Of a stop, which is a KeyboardInterrupt with the signal's name, it is that name.
    """
    name = type(error).__name__
    message = format_error(error, _MAX_REASON)
    if isinstance(error, KeyboardInterrupt) or message == name:
        return message
    return f"{name}: {message}"


def join_lines(text: str) -> str:
    """Join the lines of a text to one, with single spaces."""
    return " ".join(text.split())


def join_some(names: Sequence[str], max_names: int = 3, noun: str = "") -> str:
    """Join the first of some names: "a, b, c and 2 more".

    Args:
        names: The names.
        max_names: How many are named.
        noun: What follows "more", such as "files".
    """
    text = ", ".join(names[:max_names])
    if len(names) > max_names:
        text += f" and {len(names) - max_names} more {noun}".rstrip()
    return text


def shorten(text: str, length: int) -> str:
    """Cut a text to a length in characters; an ellipsis, one of them, stands for the rest."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
