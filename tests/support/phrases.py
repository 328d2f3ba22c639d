"""What a message has to say, whatever its sentences are."""


def mentions(text, *facts):
    """Whether a text names each of some facts: an option, a value, a file, a command.

    Example:
        >>> assert mentions("invalid alpha: 0 (expected 0 < alpha < 1)", "alpha", 0)
    """
    missing = [str(fact) for fact in facts if str(fact) not in text]
    assert not missing, f"{missing} not in: {text}"
    return True
