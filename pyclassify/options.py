"""The short options, and what they and the defaults mean to LightningCLI.

`mlflow run -P batch_size=128` arrives here as `--batch_size 128`.
"""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

import yaml

VERBS = ("train", "fit", "validate", "test", "predict", "prepare")

SHORT_OPTIONS = {
    "accelerator": "trainer.accelerator",
    "batch_size": "data.batch_size",
    "data_path": "data.data_path",
    "devices": "trainer.devices",
    "max_epochs": "trainer.max_epochs",
    "num_nodes": "trainer.num_nodes",
    "precision": "trainer.precision",
    "seed": "seed_everything",
}

DEFAULT_PARTS = {
    "model": "pyclassify.module.Classifier",
    "data": "pyclassify.datamodule.CIFAR10DataModule",
}


def spell_out(given: list[str]) -> list[str]:
    """Put LightningCLI's full options in place of the short ones, and what trains by default.

    The defaults are options, not defaults of the parser: those would leave their arguments (the
    size of CIFAR-10's validation set) to whichever class a recipe names in their place.
    """
    keys = {key for key, _ in settings(given)}
    rate = "optimizer.lr" if "optimizer" in keys else "model.learning_rate"
    short = {**SHORT_OPTIONS, "learning_rate": rate}
    spelled = []
    for argument in given:
        name, equals, value = argument.partition("=")
        full = short.get(name.removeprefix("--")) if name.startswith("--") else None
        spelled.append(f"--{full}{equals}{value}" if full else argument)
    verb = next((place for place, argument in enumerate(given) if argument in VERBS), None)
    if verb is not None:
        missing = [f"--{part}={path}" for part, path in DEFAULT_PARTS.items() if part not in keys]
        spelled[verb + 1 : verb + 1] = missing
    return spelled


def settings(given: list[str]) -> Iterator[tuple[str, Any]]:
    """List what options and configuration files set, in order: dotted keys and values.

    A part's class has the part's own name (`optimizer`), its arguments follow it directly
    (`optimizer.lr`).

    Raises:
        OSError: A configuration file can't be read.
        ValueError: One is not YAML.
    """
    for argument, following in pairwise([*given, ""]):
        name, equals, value = argument.partition("=")
        if not equals:
            value = following
        if name in ("--config", "-c"):
            yield from _flatten(_read(value))
        elif name.startswith("--"):
            yield ".".join(_shorten(name.removeprefix("--").split("."))), value


def _read(path: str) -> Any:
    with open(path) as file:
        try:
            return yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML file: {error}") from error


def _flatten(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if not isinstance(config, dict):
        yield ".".join(_shorten(path)), config
        return
    for key, value in config.items():
        yield from _flatten(value, (*path, str(key)))


def _shorten(path: Iterable[str]) -> Iterator[str]:
    return (key for key in path if key not in ("class_path", "init_args"))


def explain(text: str, known: list[str]) -> str:
    """Shorten to one line what jsonargparse says of an option, and say what it takes.

    Args:
        text: The message, of several lines.
        known: The dotted keys that there are.
    """
    unknown = re.search(r"unrecognized arguments: -*([^\s=]+)|accept option '([^']+)'", text)
    if unknown:
        name = unknown[1] or unknown[2]
        near = get_close_matches(name, [*known, *SHORT_OPTIONS], n=3)
        hint = f"nearest: {', '.join(near)}; " if near else ""
        return f"there is no option {name!r}; {hint}--print_config shows all of them"
    key = re.search(r'Parser key "([^"]+)"', text)
    given = re.search(r"Given value: (.*)", text)
    expected = re.findall(r"Expected an? (?:<class ')?([^'\n>]+)", text)
    if key and given and expected:
        return f"{key[1]} is {given[1]!r}; expected {' or '.join(expected)}"
    return " ".join(text.split())
