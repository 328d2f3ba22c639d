"""Format the parser's errors in one line that names the remedy."""

import json
import re
from ast import literal_eval
from collections.abc import Iterator
from difflib import get_close_matches
from pkgutil import resolve_name

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyclassify.utils.options import SHORT_OPTIONS
from pyclassify.utils.text import join_lines

_BASE_CLASSES = {
    "model": LightningModule,
    "data": LightningDataModule,
    "optimizer": Optimizer,
    "lr_scheduler": LRScheduler,
}


def format_parser_error(text: str, known: list[str]) -> str:
    """Format an error message of jsonargparse in one line.

    Args:
        text: The message; the lines of a kind not known here are joined.
        known: The dotted keys of all options.
    """
    return (
        _unknown_option(text, known)
        or _unknown_argument(text)
        or _missing_argument(text)
        or _missing_value(text)
        or _wrong_value(text)
        or join_lines(text)
    )


def _unknown_option(text: str, known: list[str]) -> str | None:
    found = re.search(r"unrecognized arguments: ([^\s=]+)|accept option '([^']+)'", text)
    if not found:
        return None
    if found[1] and not found[1].startswith("-"):
        return f"{found[1]!r} is no option's value; options are given as --name value"
    name = (found[1] or found[2]).lstrip("-").removesuffix(".class_path")
    return (
        f"there is no option {name!r}; {_nearest(name, [*SHORT_OPTIONS, *_BASE_CLASSES, *known])}"
    )


def _unknown_argument(text: str) -> str | None:
    """An option that is not an argument of its class."""
    found = re.search(r"Option '([^']+)' is not accepted", text)
    if not found:
        return None
    paths = re.findall(r"class_path '([^']+)'", text[: found.start()])
    paths += re.findall(r"^\. Got value: Namespace\(class_path='([^']+)'", text[found.end() :])
    if not paths:
        return None
    class_path = paths[-1]
    name = _option(text, found[1])
    part = name.removesuffix(f".{found[1]}")
    its_class = resolve_name(class_path)
    arguments = ArgumentParser().add_class_arguments(its_class, fail_untyped=False)
    takes = _nearest(name, [f"{part}.{argument}" for argument in arguments])
    return f"{class_path.rpartition('.')[2]} has no option {name!r}; {takes}"


def _missing_argument(text: str) -> str | None:
    found = re.search(r"class_path '([^']+)':\s+the following arguments are required: (\S+)", text)
    if not found:
        return None
    option = f"{_option(text)}.{found[2]}"
    short = next((f" (or --{name})" for name, full in SHORT_OPTIONS.items() if full == option), "")
    return f"{found[1].rpartition('.')[2]} needs {found[2]}; give --{option}{short}"


def _missing_value(text: str) -> str | None:
    found = re.search(r"argument (\S+): expected (?:one|at least one) argument", text)
    return f"{found[1]} was given no value; give it as {found[1]}=VALUE" if found else None


def _wrong_value(text: str) -> str | None:
    innermost = text[text.rfind("Parser key") :]
    given = (
        re.search(r"Given value: NestedArg\(key='[^']+', val='?(.*?)'?\)$", text, re.MULTILINE)
        or re.search(r"Got value: (.*)", innermost)
        or re.search(r"Given value: (.*)", innermost)
    )
    if not text.startswith("Parser key") or not given:
        return None
    name, value = _option(text), given[1].strip()
    if expected := list(_types(innermost)):
        if "str" in expected and (quoted := _quote_items(value)):
            return f"{name} is {value}, and its items are texts; quote them: --{name}='{quoted}'"
        if expected == ["list"]:
            return f'{name} is {value!r}; it takes a list: --{name}=\'["a", "b"]\''
        return f"{name} is {value!r}; it takes {' or '.join(expected)}"
    return format_import_error(name, value)


def format_import_error(option: str, path: str) -> str:
    """Format the error of an option whose value is not the path of a class or function."""
    near = get_close_matches(path, _importable(option, path))
    return (
        f"{option} is {path!r}, which can't be imported; it takes the import path of a class or "
        f"function, package.module.name{_list(' (nearest: ', near, ')')}"
    )


def _quote_items(value: str) -> str | None:
    """Quote the items of a list; None for any other value."""
    try:
        items = literal_eval(value)
    except (SyntaxError, ValueError):
        return None
    if not isinstance(items, list):
        return None
    return json.dumps([item if isinstance(item, str) else json.dumps(item) for item in items])


def _option(text: str, unknown: str | None = None) -> str:
    """The full name of the option that a message is about."""
    outer, *inner = re.findall(r'Parser key "([^"]+)"', text)
    if nested := re.search(r"NestedArg\(key='([^']+)'", text):
        return f"{outer}.{nested[1]}"
    return ".".join([outer, *inner, *([unknown] if unknown else [])])


def _types(text: str) -> Iterator[str]:
    for expected in re.findall(r"Expected an? (?!path |dot import )(.+)", text):
        name = expected.split(". Got value")[0]
        name = re.sub(r"<class '(.+)'>|typing\.Literal\[(.+)\]", r"\1\2", name)
        name = re.sub(r"member of <enum '.+'>: {(.+)}", r"\1", name)
        if name != "NoneType":
            yield re.sub(r",\s*", " or ", name)


def _importable(part: str, value: str) -> list[str]:
    """Candidates for a mistyped path: names in its module, or classes by bare name."""
    module = value.rpartition(".")[0]
    if module:
        try:
            return [f"{module}.{name}" for name in dir(resolve_name(module))]
        except (ImportError, AttributeError, ValueError):
            return []
    classes, names = [_BASE_CLASSES[part]] if part in _BASE_CLASSES else [], []
    while classes:
        candidate = classes.pop()
        names.append(candidate.__name__)
        classes += candidate.__subclasses__()
    return names


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name, set(known))
    return _list("nearest: ", near, "; ") + "--print_config shows what there is"


def _list(before: str, names: list[str], after: str) -> str:
    return f"{before}{', '.join(names)}{after}" if names else ""
