"""Markdown that shows text as it is, whatever is in it, where `mlflow ui` renders it.

MLflow 3.17 renders by showdown with GitHub's flavour and drops most HTML: `@name` becomes a link,
`:smile:` a picture, and a pipe ends a table's cell.
"""

import re
from collections.abc import Mapping

# An underscore within a word is one, and so is a colon before a blank.
_SPECIAL = re.compile(r"""[\\`*{}\[\]<>#|~@&$!"¨]|:(?=\S)|(?<![^\W_])_|_(?![^\W_])""")
_PLAIN_CODE = re.compile(r"""[\w ./:=,+@%'"\[\]{}()#*<>&!?^;-]+""")


def plain(text: str, most: int = 100) -> str:
    """Write text so that it reads the same when rendered.

    Args:
        text: Any text; a line break in it becomes a blank.
        most: How many of its characters are shown.
    """
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", _shorten(text, most))


def code(text: str, most: int = 100) -> str:
    """Write text in a typewriter's letters, if that can be done."""
    short = _shorten(text, most)
    return f"`{short}`" if _PLAIN_CODE.fullmatch(short) else plain(short, most)


def table(rows: Mapping[str, str]) -> str:
    """A table of two columns, names and what belongs to them, both Markdown already."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {row} |" for name, row in rows.items())])


def _shorten(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
