"""Texts of messages and Markdown pages."""

import os
import re
from html import unescape

import markdown
import pytest

from pyclassify.utils.text import (
    escape_markdown,
    escape_path,
    format_code,
    format_duration,
    format_error,
    join_lines,
    join_some,
    shorten,
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("no\n  space"), "no space"),
        (ValueError("at http://me:secret@host/"), "at http://***@host/"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_format_error_is_one_line_without_credentials(error, message):
    assert format_error(error) == message


def test_format_error_with_a_limit_is_cut():
    assert format_error(OSError("no space"), max_length=5) == "no s…"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "under 1 s"), (59.6, "1 min"), (184, "3 min 4 s"), (3725, "1 h 2 min"), (7200, "2 h")],
)
def test_format_duration_has_the_two_largest_units(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("names", "text"), [("", ""), ("a", "a"), ("abc", "a, b, c"), ("abcde", "a, b, c and 2 more")]
)
def test_join_some_counts_the_names_that_are_not_listed(names, text):
    assert join_some(list(names)) == text


def test_join_some_with_a_noun_ends_with_it():
    assert join_some(["a", "b", "c"], 1, "files") == "a and 2 more files"


def test_join_lines_has_single_spaces():
    assert join_lines(" a\n\t b ") == "a b"


def test_shorten_leaves_a_text_that_fits():
    assert (shorten("cat", 3), shorten("cats", 3)) == ("cat", "ca…")


@pytest.mark.parametrize("write", [escape_markdown, format_code])
@pytest.mark.parametrize(
    "text",
    ["a|b", "*x*", "<script>alert(1)</script>", "_x_", "my_class", "`x`", "[x](y)", "&lt;", "#1"],
)
def test_escaped_text_is_rendered_unchanged(text, write):
    shown = markdown.markdown(f"Say {write(text)}")

    assert unescape(re.sub("</?(p|code)>", "", shown)) == f"Say {text}"


def test_escape_markdown_cuts_a_long_text():
    assert escape_markdown("one\ntwo three", max_length=8) == "one two…"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("été 1/a_b.jpg", "été 1/a_b.jpg"),
        ("a\nb\x1b[31m.jpg", r"a\nb\x1b[31m.jpg"),
        (os.fsdecode(b"a\xff.jpg"), r"a\xff.jpg"),
    ],
)
def test_escape_path_is_one_printable_line(path, text):
    assert escape_path(path) == text
