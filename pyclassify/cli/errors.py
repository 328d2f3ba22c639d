"""Translate errors of the parser and of constructors to usage errors in one line."""

import json
import re
from ast import literal_eval
from collections.abc import Iterator
from contextlib import contextmanager
from pkgutil import resolve_name
from traceback import walk_tb

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyclassify.utils.options import SHORT_OPTIONS, UsageError, add_help_hint
from pyclassify.utils.text import is_own_error, join_lines, suggest

_BASE_CLASSES = {
    "model": LightningModule,
    "data": LightningDataModule,
    "optimizer": Optimizer,
    "lr_scheduler": LRScheduler,
}
_NETWORK = "pyclassify.cli.network"  # which makes the network of the options
# What Lightning says of an accelerator that this machine lacks.
_MACHINE_ERROR = re.compile(
    "not available|your machine|backend found|installed|Requirement .* not met"
)


@contextmanager
def refuse_invalid_options() -> Iterator[None]:
    """Raise a UsageError instead of what constructors and checks raise about options.

    Errors that depend on files, installed packages or the machine stay as they are.
    """
    try:
        yield
    except (MisconfigurationException, ValueError, TypeError) as error:
        refusal = _find_refusal(error)
        if refusal is None:
            raise
        raise UsageError(join_lines(str(refusal))) from error


def _find_refusal(error: BaseException | None) -> BaseException | None:
    """Find the error of a constructor of this package or of Lightning that refused an argument."""
    chain: list[BaseException] = []
    while error is not None:
        chain.append(error)
        error = error.__cause__
    for index, candidate in enumerate(chain):
        if isinstance(candidate, MisconfigurationException) or is_own_error(candidate):
            rest = chain[index:]
            frames = [frame for each in rest for frame, _ in walk_tb(each.__traceback__)]
            is_of_constructor = any(
                frame.f_code.co_name == "__init__" or frame.f_globals.get("__name__") == _NETWORK
                for frame in frames
            )
            is_of_machine = any(isinstance(each, (OSError, ImportError)) for each in rest)
            is_of_machine = is_of_machine or bool(_MACHINE_ERROR.search(str(candidate)))
            return candidate if is_of_constructor and not is_of_machine else None
    return None


def format_parser_error(text: str, known: list[str], command: str = "train") -> str:
    """Format an error message of jsonargparse in one line.

    Args:
        text: The message; the lines of a kind not known here are joined.
        known: The dotted keys of all options.
        command: The training command, whose help is named.
    """
    return (
        _unknown_option(text, known, command)
        or _unknown_argument(text)
        or _missing_argument(text)
        or _missing_value(text)
        or _wrong_value(text)
        or join_lines(text)
    )


def _unknown_option(text: str, known: list[str], command: str) -> str | None:
    found = re.search(r"unrecognized arguments: ([^\s=]+)|accept option '([^']+)'", text)
    if not found:
        return None
    if found[1] and not found[1].startswith("-"):
        return f"unexpected argument {found[1]!r}; give options as --NAME VALUE"
    names = [*SHORT_OPTIONS, *_BASE_CLASSES, *known]
    if found[1]:
        kind, name, names = "option", found[1], [f"--{known}" for known in names]
    else:
        kind, name = "setting", found[2].removesuffix(".class_path")
    message = f"unknown {kind} {name!r}{suggest(name, names)}"
    return add_help_hint(message, f"pyclassify {command} --help-all")


def _unknown_argument(text: str) -> str | None:
    """Format the error of an option that is not an argument of its class."""
    found = re.search(r"Option '([^']+)' is not accepted", text)
    if not found:
        return None
    paths = re.findall(r"class_path '([^']+)'", text[: found.start()])
    paths += re.findall(r"^\. Got value: Namespace\(class_path='([^']+)'", text[found.end() :])
    if not paths:
        return None
    class_path = paths[-1]
    name = _option(text, found[1])
    group = name.removesuffix(f".{found[1]}")
    its_class = resolve_name(class_path)
    arguments = ArgumentParser().add_class_arguments(its_class, fail_untyped=False)
    return format_unknown_argument(
        class_path.rpartition(".")[2], name, [f"{group}.{argument}" for argument in arguments]
    )


def format_unknown_argument(class_name: str, option: str, known: list[str]) -> str:
    """Format the error of an option that its class does not have.

    Args:
        class_name: The class or function.
        option: The option, without dashes.
        known: The options that it has.
    """
    message = f"{class_name} has no option {option!r}{suggest(option, known)}"
    return add_help_hint(message, f"--{option.rpartition('.')[0]}.help")


def _missing_argument(text: str) -> str | None:
    found = re.search(r"class_path '([^']+)':\s+the following arguments are required: (\S+)", text)
    if not found:
        return None
    option = f"{_option(text)}.{found[2]}"
    names = [f"--{short}" for short, full in SHORT_OPTIONS.items() if full == option]
    name = names[0] if names else f"--{option}"
    return f"{found[1].rpartition('.')[2]} requires {found[2]}; give {name} VALUE"


def _missing_value(text: str) -> str | None:
    found = re.search(r"argument (\S+): expected (?:one|at least one) argument", text)
    return f"option {found[1]} requires a value: {found[1]} VALUE" if found else None


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
            return f"invalid {name}: {value} (expected strings; quote them: --{name}='{quoted}')"
        if expected == ["list"]:
            return f'invalid {name}: {value!r} (expected a list: --{name}=\'["a", "b"]\')'
        return f"invalid {name}: {value!r} (expected {' or '.join(expected)})"
    return format_import_error(name, value)


def format_import_error(option: str, path: str) -> str:
    """Format the error of an option whose value is not the path of a class or function."""
    if option == "model" and _is_network(path):
        message = f"invalid model: {path!r} is a network, not a LightningModule"
        return f"{message}; give --model.model {path}"
    return (
        f"invalid {option}: {path!r} can't be imported (expected the import path of a class or "
        f"function, package.module.Name){suggest(path, _importable(option, path))}"
    )


def _is_network(path: str) -> bool:
    """Whether a path is that of a function, which may make a network, or of a network's class."""
    try:
        found = resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return False
    if isinstance(found, type):
        return issubclass(found, nn.Module) and not issubclass(found, LightningModule)
    return callable(found)


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
    """Find the full name of the option that a message is about."""
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


def _importable(option: str, value: str) -> list[str]:
    """List candidates for a mistyped path: names in its module, or classes by bare name."""
    module = value.rpartition(".")[0]
    if module:
        try:
            return [f"{module}.{name}" for name in dir(resolve_name(module))]
        except (ImportError, AttributeError, ValueError):
            return []
    classes, names = [_BASE_CLASSES[option]] if option in _BASE_CLASSES else [], []
    while classes:
        candidate = classes.pop()
        names.append(candidate.__name__)
        classes += candidate.__subclasses__()
    return names
