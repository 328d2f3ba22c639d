"""Refuse a mapping in YAML or JSON that gives a key twice, of which readers take the last one."""

from collections.abc import Iterator
from pathlib import Path

import yaml

# Written in C where PyYAML was built so.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE_TAG = "tag:yaml.org,2002:merge"  # of the key `<<`, which may stand twice: nothing is lost
_MAX_NAME = 40
_SUFFIXES = (".yaml", ".yml", ".json")
_MAX_BYTES = 1 << 20  # of a file of settings; a larger one holds data


def check_duplicate_keys(text: str, source: str) -> None:
    """Refuse a text in YAML or JSON in which a mapping, at whatever level, has a key twice.

    Args:
        text: The text; one that is neither is left to its reader.
        source: What the text is, for the message, such as the file's path.

    Raises:
        ValueError: A key is given twice.
    """
    if ":" not in text:
        return
    try:
        # JSON is YAML but for tabs, which indent there and are not in its strings.
        root = yaml.compose(text.replace("\t", " "), Loader=_Loader)
    except yaml.YAMLError:
        return
    for path, first, second in _find_duplicates(root, (), set()):
        raise ValueError(
            f"{source} gives the key {'.'.join(path)} twice, on line {first} and on line {second}, "
            "and the second would replace the first; make one of the two"
        )


def check_settings_file(value: object, folder: Path) -> None:
    """Refuse a file of settings that an option names, `--data data.yaml`, and that has a key twice.

    Args:
        value: The option's value, which may be anything else.
        folder: The folder that a relative path is relative to.

    Raises:
        ValueError: A key is given twice.
    """
    if not isinstance(value, str) or not value.endswith(_SUFFIXES):
        return
    path = folder / value
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size < _MAX_BYTES else ""
    except (OSError, ValueError):  # which its reader refuses
        return
    check_duplicate_keys(text, str(path))


def _find_duplicates(
    node: yaml.Node | None, path: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """Find keys that are given twice, with the lines of both, from 1 on."""
    if id(node) in seen:  # an alias of what was looked through
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _find_duplicates(item, (*path, str(number)), seen)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        name = str(key.value)[:_MAX_NAME]
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE_TAG:
            line, identity = key.start_mark.line + 1, (key.tag, key.value)
            if identity in lines:
                yield (*path, name), lines[identity], line
            lines[identity] = line
        yield from _find_duplicates(value, (*path, name), seen)
