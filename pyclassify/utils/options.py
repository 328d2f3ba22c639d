"""The command line before LightningCLI reads it: verbs, short options and defaults.

`mlflow run -P batch_size=128` arrives here as `--batch_size 128`.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import yaml

TRAINING_COMMANDS = ("train", "fit", "validate", "test", "predict", "prepare")
SHORT_OPTIONS = {
    "accelerator": "trainer.accelerator",
    "batch_size": "data.batch_size",
    "data_path": "data.data_path",
    "devices": "trainer.devices",
    "freeze": "model.freeze",
    "learning_rate": "model.learning_rate",
    "max_epochs": "trainer.max_epochs",
    "num_nodes": "trainer.num_nodes",
    "precision": "trainer.precision",
    "register": "register.name",
    "seed": "seed_everything",
    "weights": "model.weights",
}
DEFAULT_CLASSES = {
    "model": "pyclassify.module.Classifier",
    "data": "pyclassify.datamodule.CIFAR10DataModule",
}
CLASS_OPTIONS = (*DEFAULT_CLASSES, "optimizer", "lr_scheduler")
# How a value says that there is none, in a file and on the command line.
UNSET = (None, "null", "None")
# The options that may stand without a value.
FLAGS = ("-h", "--help", "--print_config")


class CommandParser(argparse.ArgumentParser):
    """The parser of a plain verb, whose mistakes are told as those of all others are."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` shows what there is")


def split_options(given: list[str]) -> Iterator[list[str]]:
    """Cut a command line into options, each with its value, and other words one by one."""
    left = [*given]
    while left:
        group = [left.pop(0)]
        takes_value = group[0].startswith("-") and "=" not in group[0] and group[0] not in FLAGS
        if takes_value and left and not left[0].startswith("--"):
            group.append(left.pop(0))
        yield group


def _turn(option: list[str]) -> int:
    """When an option's turn comes: files, then classes, their arguments, and those' in turn.

    Of two files, or of one option given twice, the later one wins, as sorting is stable.
    """
    name = option[0].partition("=")[0]
    if name in ("--config", "-c"):
        return 0
    name = name.removeprefix("--")
    path = list(_shorten(SHORT_OPTIONS.get(name, name).split(".")))
    return len(path) if path[0] in CLASS_OPTIONS else 1


def list_settings(given: list[str]) -> Iterator[tuple[str, Any]]:
    """List what configuration files and options set: dotted keys and values, the last one holds.

    A part's class has the part's own name (`optimizer`), its arguments follow it directly
    (`optimizer.lr`).

    Raises:
        OSError: A configuration file can't be read.
        ValueError: One is no mapping in YAML.
    """
    for option in sorted(split_options(given), key=_turn):
        name, equals, value = option[0].partition("=")
        if not equals:
            value = option[1] if len(option) > 1 else ""
        if name in ("--config", "-c"):
            yield from _flatten(_read(value))
        elif name.startswith("--"):
            yield ".".join(_shorten(name.removeprefix("--").split("."))), value


def _read(path: str) -> dict[str, Any]:
    takes = "--config takes a YAML file, such as configs/alexnet-cifar10.yaml"
    if not path:
        raise ValueError(f"--config was given no file; {takes}")
    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.safe_load(file)
    except OSError as error:
        raise OSError(f"{path} can't be read ({error.strerror}); {takes}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file ({error}); {takes}") from error
    if not isinstance(config, dict):
        raise ValueError(
            f"{path} holds {type(config).__name__} where settings are expected, `trainer:` and "
            f"others; {takes}"
        )
    return config


def _flatten(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if not isinstance(config, dict):
        yield ".".join(_shorten(path)), config
        return
    for key, value in config.items():
        yield from _flatten(value, (*path, str(key)))


def _shorten(path: Iterable[str]) -> Iterator[str]:
    return (key for key in path if key not in ("class_path", "init_args"))


def flatten_config(config: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Spell a configuration as options, `model.learning_rate`, without those of the logger."""
    for key, value in config.items():
        name = ".".join(filter(None, (path, "" if key in ("class_path", "init_args") else key)))
        if name == "trainer.logger":
            continue
        if isinstance(value, dict):
            yield from flatten_config(value, name)
        elif value is not None:
            yield name, value if isinstance(value, str) else json.dumps(value)


def has_seeds_option(given: list[str]) -> bool:
    """Whether a command line has --seeds in it, be it right or wrong."""
    return any(word.partition("=")[0] == "--seeds" for word in given)
