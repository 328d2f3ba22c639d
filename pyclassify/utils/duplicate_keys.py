"""Check YAML and JSON for duplicate keys: their readers silently use the last value."""

from collections.abc import Iterator
from pathlib import Path

import yaml

# The loader in C, if PyYAML was built with it.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE_TAG = "tag:yaml.org,2002:merge"  # of the key `<<`, which may be given twice
_MAX_NAME = 40
_SUFFIXES = (".yaml", ".yml", ".json")
_MAX_BYTES = 1 << 20  # of a file of settings; a larger file holds data


def check_duplicate_keys(text: str, source: str) -> None:
    """Check that no mapping in a text of YAML or JSON, at any level, has a key twice.

    Args:
        text: The text; invalid YAML is not checked, as its reader reports it.
        source: The name of the text in the message, such as the file's path.

    Raises:
        ValueError: A key is given twice.
    """
    if ":" not in text:
        return
    try:
        # JSON is YAML except for tabs, which may indent it and can't be in its strings.
        root = yaml.compose(text.replace("\t", " "), Loader=_Loader)
    except yaml.YAMLError:
        return
    for path, first, second in _find_duplicates(root, (), set()):
        raise ValueError(
            f"duplicate key {'.'.join(path)!r} in {source}: given twice, on line {first} and on "
            f"line {second}; remove one of them"
        )


def check_settings_file(value: object, folder: Path) -> None:
    """Check a file of settings that an option names, `--data data.yaml`, for duplicate keys.

    Args:
        value: The option's value; a value that is not such a file is ignored.
        folder: The folder for a relative path.

    Raises:
        ValueError: A key is given twice.
    """
    if not isinstance(value, str) or not value.endswith(_SUFFIXES):
        return
    path = folder / value
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size < _MAX_BYTES else ""
    except (OSError, ValueError):  # its reader reports it
        return
    check_duplicate_keys(text, str(path))


def _find_duplicates(
    node: yaml.Node | None, path: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """Find duplicate keys, with the lines of both, counted from 1."""
    if id(node) in seen:  # an alias of a node that was searched
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
