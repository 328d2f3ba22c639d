"""The commands and the other blocks of code in README.md and docs/."""

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [
    *(path for name in ("README.md", "CONTRIBUTING.md") if (path := ROOT / name).exists()),
    *sorted((ROOT / "docs").glob("*.md")),
]
SHELLS = ("bash", "sh", "shell", "console")
_BLOCK = re.compile(r"^( *)```([\w+-]*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"^<!-- (service:[\w-]+) -->$")
_HEREDOC = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?")
# As a shell's line begins, not as a program's output does (`pyclassify: error: ...`).
_COMMAND = re.compile(
    r"^(?:[A-Z_]+=\S+ )*(?:pyclassify|mlflow|python3?|pip|uv|pytest|srun|sbatch|git) [a-z.-]"
)


class Block(NamedTuple):
    """A fenced block of code.

    Args:
        page: The page's path in the repository.
        line: The line of its fence.
        language: What the fence names, or "".
        text: The code, without the block's indentation.
        marker: `service:NAME` of the comment above the block, or "".
    """

    page: str
    line: int
    language: str
    text: str
    marker: str


class Command(NamedTuple):
    """A command as it is typed, with its continuation lines joined and its comment removed."""

    text: str
    page: str
    line: int


def list_blocks():
    """List all fenced blocks of all pages."""
    return [block for page in PAGES for block in _read_blocks(page)]


def list_commands():
    """List the commands of all blocks of bash without a marker, one for each place of it."""
    return [
        Command(text, block.page, block.line)
        for block in list_blocks()
        if block.language in SHELLS and not block.marker
        for text in split_commands(block.text)
    ]


def list_markers():
    """List the markers of blocks that tests run whole."""
    return sorted(block.marker for block in list_blocks() if block.marker)


def list_unmarked_commands():
    """List lines that look like a command in blocks of no language, which nothing would check."""
    return [
        f"{block.page}:{block.line}: {line}"
        for block in list_blocks()
        if block.language == ""
        for line in block.text.splitlines()
        if _COMMAND.match(line)
    ]


def split_commands(text):
    """Split a block into commands.

    Lines that end with a backslash or a pipe continue, and so do those of a here-document. A line
    that ends with `&&` ends a command: its next line is a command too.
    """
    commands, current, end = [], "", None
    for raw in text.splitlines():
        if end is not None:
            current += f"\n{raw}"
            if raw.strip() == end:
                commands, current, end = [*commands, current], "", None
            continue
        line = _strip_comment(raw).strip()
        if not line:
            continue
        current = f"{current} {line}".strip()
        if heredoc := _HEREDOC.search(line.replace("<<<", "")):
            end = heredoc[1]
        elif current.endswith("\\"):
            current = current[:-1].rstrip()
        elif not current.endswith("|"):
            commands.append(current.removesuffix("&&").rstrip())
            current = ""
    return [*commands, current] if current else commands


def _strip_comment(line):
    """Remove a comment: a `#` outside quotes, at the start of the line or after a blank."""
    quote = None
    for index, character in enumerate(line):
        if quote:
            quote = None if character == quote and line[index - 1] != "\\" else quote
        elif character in "'\"" and line[index - 1 : index] != "\\":
            quote = character
        elif character == "#" and (index == 0 or line[index - 1].isspace()):
            return line[:index]
    return line


def _read_blocks(page):
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        before = text[: match.start()].rstrip("\n").rpartition("\n")[2].strip()
        marker = _MARKER.match(before)
        yield Block(
            str(page.relative_to(ROOT)),
            text[: match.start()].count("\n") + 1,
            match[2],
            textwrap.dedent(match[3]),
            marker[1] if marker else "",
        )
