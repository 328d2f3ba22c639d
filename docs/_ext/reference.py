"""Write the reference of the commands from their parsers, and that of the classes.

A page says where by a comment: `<!-- site: commands -->`, `<!-- site: classes AlexNet Trainer -->`.
The lines that follow it are what GitHub shows in place of the reference.
"""

import argparse
import re
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pkgutil import resolve_name
from unittest.mock import patch

from docutils import nodes
from sphinx.application import Sphinx

from pyclassify.cli.help import COMMANDS, make_training_parser
from pyclassify.utils.options import TRAINING_COMMANDS, CommandParser

_COMMENT = re.compile(r"<!-- site: (\w+)(.*) -->\n(?:.+\n)*")


def get_parser(command: str) -> CommandParser:
    """Get the parser whose help a command prints."""
    if command in TRAINING_COMMANDS:
        return make_training_parser(command)
    parsers: list[CommandParser] = []
    with (
        patch.object(CommandParser, "print_help", lambda parser, file=None: parsers.append(parser)),
        suppress(SystemExit),
    ):
        resolve_name(COMMANDS[command].function)(["--help"])
    return parsers[0]


def write_commands(_: str = "") -> str:
    """Write the reference of all commands in Markdown."""
    lines = []
    group = ""
    for name, command in COMMANDS.items():
        if command.group != group:
            group = command.group
            lines += [f"## {group}", ""]
        parser = get_parser(name)
        lines += [*_describe(parser, "###")]
        for subparser in parser._commands.values():
            lines += [*_describe(subparser, "####")]
    return "\n".join(lines)


def _describe(parser: CommandParser, heading: str) -> Iterator[str]:
    """Describe a command: what it does, its usage, options and examples."""
    paragraphs = [text for text in (parser.description or "").split("\n\n") if "\n  " not in text]
    yield from (f"{heading} {parser.prog}", "", *_separate(paragraphs))
    yield from ("```text", _wrap_usage(parser), "```", "")
    yield from (f"```{{program}} {parser.prog}", "```", "")
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        if actions:
            yield from (f"**{(group.title or '').capitalize()}**", "")
            yield from _separate([group.description] if group.description else [])
        for action in actions:
            yield from _describe_option(parser, action)
    *epilog, examples = (parser.epilog or "").split("examples:")
    yield from _separate(epilog)
    yield from ("**Examples**", "", "```bash", *examples.split("\n  ")[1:], "```", "")


def _wrap_usage(parser: CommandParser) -> str:
    """Wrap the usage, whatever the width of the terminal, and never within an option."""
    usage = " ".join(parser.format_usage().split()).removeprefix("usage: ")
    usage = re.sub(r"\[[^]]*\]", lambda option: option[0].replace(" ", "\0"), usage)
    lines = textwrap.wrap(usage, 100, subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def _describe_option(parser: CommandParser, action: argparse.Action) -> Iterator[str]:
    formatter = parser._get_formatter()
    names = formatter._format_action_invocation(action)
    text = formatter._expand_help(action)
    yield from (f"```{{option}} {names}", text.replace("<", "&lt;"), "```", "")


def _separate(paragraphs: list[str]) -> list[str]:
    return [line for text in paragraphs if text.strip() for line in (text.strip(), "")]


def write_classes(names: str) -> str:
    """Write the reference of public classes: directives that read their docstrings."""
    return _write_directives("autoclass", names)


def write_functions(names: str) -> str:
    """Write the reference of public functions in the same way."""
    return _write_directives("autofunction", names)


def _write_directives(kind: str, names: str) -> str:
    directives = [f".. {kind}:: pyclassify.{name}\n" for name in names.split()]
    return "\n".join(["```{eval-rst}", *directives, "```"])


_WRITERS = {"commands": write_commands, "classes": write_classes, "functions": write_functions}


def read_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Write what the comments of a page ask for."""
    source[0] = _COMMENT.sub(lambda comment: _WRITERS[comment[1]](comment[2]) + "\n", source[0])


def separate_arguments(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Separate an argument from its description by a colon, where Sphinx writes two hyphens."""
    for text in [*doctree.findall(nodes.Text)]:
        if text == " -- ":
            text.parent.replace(text, nodes.Text(": "))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", read_page)
    app.connect("doctree-resolved", separate_arguments)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
