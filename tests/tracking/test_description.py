"""The description of a run: what its page says."""

import re
from html import unescape
from pathlib import Path

import markdown
import pytest

from pyclassify.tracking.description import (
    ClassCounts,
    escape_markdown,
    format_code,
    format_results,
    format_run,
)
from tests.support.phrases import mentions
from tests.support.runs import CONFIG, FACTS, PAGE, TAGS

DESCRIBED = Path(__file__).with_name("described.md")
METRICS = {
    "test_accuracy": 81 / 263,
    "best_val_accuracy": 0.5,
    "val_accuracy": 0.25,
    "test_loss": 1.5,
    "test_ece": 0.03125,
    "parameters": 57044810,
    "wall_seconds": 723.4,
}
SCORES = ClassCounts(["*one*", "two"], total=[200, 63], correct=[60, 21])


def test_description_says_what_came_out_and_what_was_run():
    parts = (format_results(METRICS, SCORES, epochs=10), format_run(CONFIG, FACTS, TAGS, PAGE))

    assert "\n\n".join(parts) + "\n" == DESCRIBED.read_text()


@pytest.mark.parametrize(
    ("metrics", "first"),
    [
        ({"best_val_accuracy": 0.5, "val_accuracy": 0.25}, "**Best validation accuracy 0.5000**"),
        ({"val_accuracy": 0.25, "val_loss": 2}, "**Validation accuracy 0.2500**"),
        ({"its_own": 1}, "**Finished**"),
    ],
)
def test_run_without_a_test_says_what_it_has(metrics, first):
    assert format_results(metrics, None, 0).split("\n\n")[0] == first


def test_accuracy_with_mirror_images_is_told_apart():
    told = format_results({"test_flip_accuracy": 0.93, "test_accuracy": 0.92}, None, epochs=0)

    first, rest = told.split("\n\n")
    assert first == "**Test accuracy 0.9200**"
    assert mentions(rest, "Test accuracy", "0.9300")


def test_best_and_worst_of_many_classes_are_named():
    scores = ClassCounts(list("abcdefgh"), total=[10] * 7 + [0], correct=[3, 9, 5, 1, 7, 2, 4, 0])

    told = format_results({}, scores, epochs=0)

    assert mentions(told, "b 0.90, e 0.70, c 0.50; ", "d 0.10, f 0.20, a 0.30.")


@pytest.mark.parametrize("write", [escape_markdown, format_code])
@pytest.mark.parametrize(
    "text",
    ["a|b", "*x*", "<script>alert(1)</script>", "_x_", "my_class", "`x`", "[x](y)", "&lt;", "#1"],
)
def test_text_reads_the_same_when_it_is_rendered(text, write):
    shown = markdown.markdown(f"Say {write(text)}")

    assert unescape(re.sub("</?(p|code)>", "", shown)) == f"Say {text}"


def test_long_text_is_cut():
    assert escape_markdown("one\ntwo three", max_length=8) == "one two…"
