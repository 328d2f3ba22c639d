"""The options of training commands: short forms, default classes and the texts of --help-all."""

from typing import Any

from pyclassify.cli.help import COMMANDS, TRAINING_USAGE
from pyclassify.utils.options import (
    CLASS_OPTIONS,
    DEFAULT_CLASSES,
    SHORT_OPTIONS,
    TRAINING_COMMANDS,
    UNSET,
    UsageError,
    add_help_hint,
    list_settings,
    sort_options,
    split_options,
)
from pyclassify.utils.text import suggest

_EPILOG = "Short options: " + ", ".join(
    f"--{short} for --{full}" for short, full in SHORT_OPTIONS.items()
)
_EPILOG += (
    ". --learning_rate stands for --optimizer.lr if an optimizer is given. --seeds N trains with N "
    "seeds, from --seed on, as child runs of one run. --model.help, --model.model.help and "
    "--data.help show the options of the LightningModule, the network and the data module."
)
# The headings of --help-all, where Lightning has the first lines of docstrings.
HELP_TITLES = {
    "trainer": "Trainer",
    "model": "LightningModule and network",
    "data": "Data module",
    "checkpoint": "Checkpoint of the best weights",
    "resume": "Checkpoints to resume from",
    "register": "Model registry",
    "optimizer": "Optimizer (default: that of the LightningModule)",
    "lr_scheduler": "Learning rate schedule",
}


def get_parser_kwargs() -> dict[str, Any]:
    """Return the arguments of LightningCLI's parser and, by name, of each training command's."""
    strict = {"exit_on_error": False, "allow_abbrev": False}
    return {
        "prog": "pyclassify",
        **strict,
        **{
            command: {"usage": TRAINING_USAGE.format(command), "epilog": _EPILOG, **strict}
            for command in TRAINING_COMMANDS
        },
    }


def expand_options(argv: list[str]) -> list[str]:
    """Put the command first, expand short options, and add the default classes.

    Options may come in any order: configuration files are read first, so that options override
    them, and a class is set before its arguments.

    The default classes are added as options, not as defaults of the parser: a default's arguments
    (such as the size of CIFAR-10's validation set) would be passed to the class that a recipe
    names.

    Raises:
        UsageError: There is no such command, a configuration file is not a mapping in YAML, or a
            short option or an argument of a class has no value.
    """
    options = list(split_options(argv))
    command = _pop_command(options)
    settings = dict(list_settings(argv))
    _check_class_options(settings)
    learning_rate = "model.learning_rate"
    if settings.get("optimizer") not in UNSET:
        learning_rate = "optimizer.lr"
    full_names = {**SHORT_OPTIONS, "learning_rate": learning_rate}
    classes = {**DEFAULT_CLASSES, **settings}
    missing = sorted(DEFAULT_CLASSES.keys() - settings.keys())
    expanded = [command, *(f"--{key}={DEFAULT_CLASSES[key]}" for key in missing)]
    for name, *value in sort_options(options):
        key = name.removeprefix("--").removesuffix(".help")
        if name.endswith(".help") and not value and key in classes:
            value = [str(classes[key])]
        if name == "--help-all":
            name = "--help"
        head, equals, tail = name.partition("=")
        full = full_names.get(head.removeprefix("--")) if head.startswith("--") else None
        if not value and not equals and (full or _is_class_argument(head.removeprefix("--"))):
            raise UsageError(f"option {name} requires a value: {name} VALUE")
        expanded += [f"--{full}{equals}{tail}" if full else name, *value]
    return expanded


def _is_class_argument(name: str) -> bool:
    """Whether an option is an argument of a class; of these the parser names only the class."""
    key, dot, _ = name.partition(".")
    return bool(dot) and key in CLASS_OPTIONS and not name.endswith(".help")


def _check_class_options(settings: dict[str, Any]) -> None:
    """Refuse arguments of a class that is not named."""
    for key in CLASS_OPTIONS:
        argument = next((name for name in settings if name.startswith(f"{key}.")), f"{key}.help")
        if not (key in settings or key in DEFAULT_CLASSES or argument == f"{key}.help"):
            raise UsageError(f"--{argument} requires --{key}; give --{key} CLASS")
    if "optimizer" not in settings and settings.get("lr_scheduler") not in UNSET:
        raise UsageError("--lr_scheduler requires --optimizer; give --optimizer Adam, for example")


def _pop_command(options: list[list[str]]) -> str:
    """Remove the command from the options."""
    option = next((option for option in options if not option[0].startswith("-")), None)
    if option is None:
        given = options[0][0].partition("=")[0] if options else ""
        near = suggest(given, ("--help", "--help-all", "--version"))
        message = f"unknown option {given!r}{near}" if near else "missing command"
        raise UsageError(add_help_hint(message, "pyclassify --help"))
    command = option[0]
    if command not in TRAINING_COMMANDS:
        if command in COMMANDS:
            raise UsageError(f"give the options of {command} after it: pyclassify {command} ...")
        message = f"unknown command {command!r}{suggest(command, COMMANDS)}"
        raise UsageError(add_help_hint(message, "pyclassify --help"))
    options.remove(option)
    return command
