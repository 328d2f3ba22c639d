"""What a message has to say, whatever its sentences are."""

import re


def mentions(text, *facts):
    """Whether a text names each of some facts: an option, a value, a file, a command.

    Example:
        >>> assert mentions("invalid alpha: 0 (expected 0 < alpha < 1)", "alpha", 0)
    """
    missing = [str(fact) for fact in facts if not _has(text, str(fact))]
    assert not missing, f"{missing} not in: {text}"
    return True


def _has(text, fact):
    if re.fullmatch(r"-?\d+(\.\d+)?", fact):  # 5 is neither in 0.05 nor in 15
        return re.search(rf"(?<![\d.]){re.escape(fact)}(?!\.?\d)", text) is not None
    return fact in text
