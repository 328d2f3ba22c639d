"""Duplicate keys raise an error; PyYAML and json silently use the last value."""

import json

import pytest
import yaml

from pyclassify.utils.duplicate_keys import check_duplicate_keys
from pyclassify.utils.options import load_config
from tests.support.phrases import mentions

TWICE = {
    "top": ("trainer: 1\ndata: 2\ntrainer: 3\n", "trainer", 1, 3),
    "nested": ("data:\n  init_args:\n    size: 1\n    size: 2\n", "data.init_args.size", 3, 4),
    "in a list": ("a:\n- b: 1\n- b: 1\n  c: 2\n  b: 3\n", "a.1.b", 3, 5),
    "flow": ("a: {b: 1,\n  b: 2}\n", "a.b", 1, 2),
    "quoted": ("'a': 1\n\"a\": 2\n", "a", 1, 2),
    "beside a merge": ("x: &x {b: 1}\na:\n  <<: *x\n  c: 1\n  c: 2\n", "a.c", 4, 5),
    "JSON with tabs": ('{\n\t"a": 1,\n\t"a": 2\n}', "a", 2, 3),
    "null": ("a: {~: 1,\n  ~: 2}", "a.~", 1, 2),
}
ONCE = [
    "base: &base\n  a: 1\nother:\n  <<: *base\n  a: 2\nthird:\n  <<: [*base, *base]\n",
    "one: &same {a: 1}\ntwo: *same\nthree: *same\n",
    "- a: 1\n- a: 2\n",
    "1: a\n'1': b\n",
    "a: b: c",  # not YAML
    "",
]


@pytest.mark.parametrize("name", TWICE)
def test_check_duplicate_keys_names_the_file_the_key_and_both_lines(name):
    text, key, first, second = TWICE[name]

    with pytest.raises(ValueError, match="recipe") as error:
        check_duplicate_keys(text, "recipe.yaml")

    assert mentions(str(error.value), "recipe.yaml", f"duplicate key {key!r}", first, second)


@pytest.mark.parametrize("text", ONCE)
def test_check_duplicate_keys_accepts_anchors_merges_and_invalid_yaml(text):
    check_duplicate_keys(text, "recipe.yaml")


def test_check_duplicate_keys_accepts_a_recursive_text():
    check_duplicate_keys("&a\nb: *a\n", "recipe.yaml")


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_load_config_raises_for_a_duplicate_key_in_a_file_that_it_names(suffix, tmp_path):
    (tmp_path / f"data.{suffix}").write_text('{"class_path": "A",\n"class_path": "B"}')
    (tmp_path / "recipe.yaml").write_text(f"data: data.{suffix}\n")

    with pytest.raises(ValueError, match=f"{tmp_path}/data.{suffix}"):
        load_config(str(tmp_path / "recipe.yaml"))


def test_load_config_applies_merge_keys(tmp_path):
    (tmp_path / "recipe.yaml").write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n")

    assert load_config(str(tmp_path / "recipe.yaml"))["b"] == {"x": 3, "y": 2}


def test_readers_silently_use_the_last_value():
    assert yaml.safe_load("a: 1\na: 2") == json.loads('{"a": 1, "a": 2}') == {"a": 2}
