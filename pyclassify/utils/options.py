"""Read command lines and configurations of training without LightningCLI, and so without torch.

A setting has a dotted name, the one that its option has on the command line: `model.learning_rate`
is `init_args.learning_rate` of the class that `model` names in a configuration file, and `model`
itself is that class. `mlflow run -P batch_size=128` arrives as `--batch_size 128`, a short option.
"""

import argparse
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from pyclassify.utils.duplicate_keys import check_duplicate_keys, check_settings_file
from pyclassify.utils.text import suggest

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
# The settings that name a class, whose arguments are settings below them.
DEFAULT_CLASSES = {
    "model": "pyclassify.module.Classifier",
    "data": "pyclassify.datamodule.CIFAR10DataModule",
}
CLASS_OPTIONS = (*DEFAULT_CLASSES, "optimizer", "lr_scheduler")
# The settings that are paths; a relative one counts from where the command line was typed,
# in a SLURM job see slurm/topology.
PATH_OPTIONS = ("data.data_path", "ckpt_path", "model.weights")
# Those that may also be something else: a run's ID, or the name of weights.
MAYBE_PATH_OPTIONS = ("ckpt_path", "model.weights")
UNSET = (None, "null", "None")  # the spellings of no value, in a file and on the command line
HELP_FLAGS = ("-h", "--help")
FLAGS = (*HELP_FLAGS, "--help-all", "--print_config")  # options without a value
CONFIG_OPTIONS = ("--config", "-c")

USAGE_EXIT_CODE = 2  # of an invalid command line, as argparse, click and bash have it
_CONFIG_EXAMPLE = "a YAML file, such as configs/alexnet-cifar10.yaml"
# As argparse reports a word that is not among its choices.
_INVALID_CHOICE = re.compile(r"argument ([\w-]+): invalid choice: '(.*?)' \(choose from (.*)\)")


class UsageError(ValueError):
    """An invalid command line or option: exit code 2, where a failure has 1.

    It is for what is known to be wrong without a look at data, stores, files or the machine.

    Example:
        >>> raise UsageError("unknown option '--lats'. Did you mean '--last'?")
    """


class CommandParser(argparse.ArgumentParser):
    """Parse the command line of one command; raise a UsageError instead of exiting.

    Its help ends with examples, and each option that has a default shows it.

    Args:
        prog: The command as it is typed, such as "pyclassify sync".
        examples: Command lines that end the help, at least two for a command.
        **kwargs: Those of `argparse.ArgumentParser`.

    Raises:
        UsageError: From `parse_args`: the command line is invalid. The message names the option,
            what is expected or the nearest name, and the command that shows the help.

    Example:
        >>> parser = CommandParser("pyclassify sync", examples=["pyclassify sync runs/3f2a"])
        >>> parser.add_argument("--wait", type=float, default=60, help="seconds to wait")
        >>> parser.parse_args(["--wait", "5"]).wait
        5.0
    """

    def __init__(self, prog: str = "", *, examples: Iterable[str] = (), **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(prog or None, **kwargs)
        shown = "".join(f"\n  {example}" for example in examples)
        if shown:
            self.epilog = "\n\n".join([*filter(None, [self.epilog]), f"examples:{shown}"])
        self._commands: dict[str, CommandParser] = {}

    def add_subparsers(self, **kwargs: Any) -> Any:
        action = super().add_subparsers(**kwargs)
        self._commands = action.choices
        return action

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> Any:  # type: ignore[override]
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            command = next((word for word in args if word in self._commands), "")
            self._commands.get(command, self)._refuse(unknown)
        return parsed

    def _refuse(self, words: Sequence[str]) -> NoReturn:
        option = next((word for word in words if word.startswith("-")), None)
        name = (option or words[0]).partition("=")[0]
        if option is None:
            self.error(f"unexpected argument {name!r}")
        self.error(f"unknown option {name!r}{suggest(name, self._option_string_actions)}")

    def error(self, message: str) -> NoReturn:
        if found := _INVALID_CHOICE.match(message):
            name, given = found[1], found[2]
            choices = [choice.strip("'") for choice in found[3].split(", ")]
            message = f"invalid {name}: {given!r} (expected {' or '.join(choices)})"
            if self._commands and not name.startswith("-"):
                message = f"unknown command {given!r}{suggest(given, choices)}"
        raise UsageError(add_help_hint(message, f"{self.prog} --help"))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wrap paragraphs, keep the lines of examples, and show an option's default if it has one."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = (
            super(_HelpFormatter, self)._fill_text(paragraph, width, indent)
            if "\n" in paragraph
            else textwrap.fill(paragraph, width, initial_indent=indent, subsequent_indent=indent)
            for paragraph in text.split("\n\n")
        )
        return "\n\n".join(paragraphs)

    def _get_help_string(self, action: argparse.Action) -> str:
        """Format the help as a sentence."""
        text = (action.help or "").removesuffix(".")
        has_default = action.default not in (None, False, argparse.SUPPRESS, "")
        if has_default and action.option_strings and "default" not in text:
            text += " (default: %(default)s)"
        return f"{text[:1].upper()}{text[1:]}."

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = action.metavar or action.dest.upper()
        return f"{', '.join(action.option_strings)} {value}"


def add_help_hint(message: str, command: str) -> str:
    """Add the command that shows the help to an error message."""
    return f"{message}{' See' if message.endswith('?') else '; see'} `{command}`"


def split_options(argv: list[str]) -> Iterator[list[str]]:
    """Split a command line into options, each with its value, and other words one by one."""
    words = [*argv]
    while words:
        group = [words.pop(0)]
        takes_value = group[0].startswith("-") and "=" not in group[0] and group[0] not in FLAGS
        if takes_value and words and not words[0].startswith("--"):
            group.append(words.pop(0))
        yield group


def sort_options(options: Iterable[list[str]]) -> list[list[str]]:
    """Sort options so that LightningCLI can read them: files, classes, then their arguments.

    Two files, or one option given twice, keep their order.

    Args:
        options: As `split_options` yields them.
    """

    def depth(option: list[str]) -> int:
        name = option[0].partition("=")[0]
        if name in CONFIG_OPTIONS:
            return 0
        name = name.removeprefix("--")
        path = list(_drop_class_keys(SHORT_OPTIONS.get(name, name).split(".")))
        return len(path) if path[0] in CLASS_OPTIONS else 1

    return sorted(options, key=depth)


def list_settings(argv: list[str]) -> Iterator[tuple[str, Any]]:
    """List what configuration files and options set: dotted names and values; the last one wins.

    Raises:
        UsageError: A configuration file can't be read, is not a mapping in YAML, or gives a key
            twice.
    """
    for option in sort_options(split_options(argv)):
        name, equals, value = option[0].partition("=")
        if not equals:
            value = option[1] if len(option) > 1 else ""
        if name in CONFIG_OPTIONS:
            yield from flatten_config(load_config(value))
        elif name.startswith("--"):
            _check_once(check_settings_file, value, Path())
            yield ".".join(_drop_class_keys(name.removeprefix("--").split("."))), value


def load_config(path: str) -> dict[str, Any]:
    """Load a configuration file.

    Raises:
        UsageError: It can't be read, is not a mapping in YAML, or gives a key twice.
    """
    if not path:
        raise UsageError(f"option --config requires a value: {_CONFIG_EXAMPLE}")
    expected = f"expected {_CONFIG_EXAMPLE}"
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        config = yaml.safe_load(text)
    except OSError as error:
        raise UsageError(f"can't read --config {path}: {error.strerror} ({expected})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} is not YAML: {error} ({expected})") from error
    if not isinstance(config, dict):
        raise UsageError(
            f"invalid --config {path}: the file holds {_describe_type(config)} (expected settings, "
            "such as `trainer: {max_epochs: 5}`)"
        )
    _check_once(check_duplicate_keys, text, path)
    for _, setting in walk_config(config):
        _check_once(check_settings_file, setting, Path(path).parent)
    return config


def _check_once(check: Callable[..., None], *args: object) -> None:
    """Check for keys given twice: part of the command line, so a UsageError."""
    try:
        check(*args)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _describe_type(value: object) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def flatten_config(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Flatten a configuration to dotted names and values."""
    for path, value in walk_config(config):
        yield ".".join(_drop_class_keys(path)), value


def walk_config(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Walk through a configuration, to each value that is not a mapping.

    Args:
        config: The configuration, or a part of it.
        path: The keys that lead to that part.

    Yields:
        The keys that lead to a value, `class_path` and `init_args` among them, and the value.
    """
    if not isinstance(config, Mapping):
        yield path, config
        return
    for key, value in config.items():
        yield from walk_config(value, (*path, str(key)))


def _drop_class_keys(path: Iterable[str]) -> Iterator[str]:
    return (key for key in path if key not in ("class_path", "init_args"))


def format_options(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Format a configuration as options and their texts, except those of the logger."""
    for name, value in flatten_config(config):
        if (
            value is not None
            and name != "trainer.logger"
            and not name.startswith("trainer.logger.")
        ):
            yield name, value if isinstance(value, str) else json.dumps(value)


def has_seeds_option(argv: list[str]) -> bool:
    """Whether a command line has --seeds, with a valid value or not."""
    return any(word.partition("=")[0] == "--seeds" for word in argv)


def find_logger_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Find the settings of the run logger, which may be one of several loggers.

    Args:
        config: Dotted settings, as `list_settings` lists them.
    """
    prefix = "trainer.logger."
    single = {key.removeprefix(prefix): v for key, v in config.items() if key.startswith(prefix)}
    loggers = config.get("trainer.logger")
    for logger in loggers if isinstance(loggers, list) else ():
        if isinstance(logger, dict) and str(logger.get("class_path")).endswith("RunLogger"):
            return {**(logger.get("init_args") or {}), **single}
    return single


def only_shows(argv: list[str]) -> bool:
    """Whether a command line asks for help or the configuration, and so trains nothing."""
    names = [option[0].partition("=")[0] for option in split_options(argv)]
    return any(name in FLAGS or name.endswith(".help") for name in names)
