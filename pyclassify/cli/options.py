"""The commands, and the options of those that train: short forms, defaults and help texts."""

from difflib import get_close_matches
from typing import Any

from pyclassify.utils.options import (
    CLASS_OPTIONS,
    DEFAULT_CLASSES,
    SHORT_OPTIONS,
    TRAINING_COMMANDS,
    UNSET,
    list_settings,
    sort_options,
    split_options,
)

_DESCRIPTION = "Train any network on any images as one MLflow run."
_EPILOG = "Short options: " + ", ".join(
    f"--{short} for --{full}" for short, full in SHORT_OPTIONS.items()
)
_EPILOG += (
    "; --learning_rate is --optimizer.lr where an optimizer is named. "
    "--seeds N trains with N seeds, from --seed on, and one run above theirs has the means. "
    "--model.help and --data.help show the options that the network and the data have."
)
# The commands that train nothing: functions of the arguments after the command, imported when run.
COMMANDS = {
    "compare": "pyclassify.runs.compare:main",
    "promote": "pyclassify.registry.promote:promote",
    "rerun": "pyclassify.runs.rerun:rerun",
    "resume": "pyclassify.runs.resume:resume",
    "rollback": "pyclassify.registry.promote:rollback",
    "slurm": "pyclassify.slurm.cli:main",
    "sync": "pyclassify.cli.main:sync",
}
_MORE_COMMANDS = "More commands, for runs that there are: " + ", ".join(COMMANDS)
# The headings of the help, in place of docstrings of Lightning and torch.
HELP_TITLES = {
    "trainer": "How to train",
    "model": "What to train",
    "data": "What to train it on",
    "checkpoint": "Which weights to keep",
    "resume": "How to go on after a stop",
    "register": "Which registered model gets a version",
    "optimizer": "The optimizer, in place of the model's own",
    "lr_scheduler": "Its learning rate's schedule",
}


def get_parser_kwargs() -> dict[str, Any]:
    """The arguments of LightningCLI's parser and, by name, of each training command's."""
    strict = {"exit_on_error": False, "allow_abbrev": False}
    usage = "pyclassify {} [--config FILE] [--OPTION VALUE ...]"
    return {
        "prog": "pyclassify",
        "description": _DESCRIPTION,
        "epilog": f"{_MORE_COMMANDS}; each has a --help of its own.",
        **strict,
        **{
            command: {"usage": usage.format(command), "epilog": _EPILOG, **strict}
            for command in TRAINING_COMMANDS
        },
    }


def expand_options(argv: list[str]) -> list[str]:
    """Put the command first, short options in full, and add the default classes.

    Options may stand in any order: configuration files are read first, so that an option wins over
    them, and a class is set before its arguments.

    The defaults are options, not defaults of the parser: those would leave their arguments (the
    size of CIFAR-10's validation set) to whichever class a recipe names in their place.

    Raises:
        OSError: A configuration file can't be read.
        ValueError: There is no command, or a configuration file is not a mapping in YAML.
    """
    options = list(split_options(argv))
    command = _pop_command(options)
    if command is None:
        return argv
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
        head, equals, tail = name.partition("=")
        full = full_names.get(head.removeprefix("--")) if head.startswith("--") else None
        expanded += [f"--{full}{equals}{tail}" if full else name, *value]
    return expanded


def _check_class_options(settings: dict[str, Any]) -> None:
    """Refuse arguments of a class that is not named."""
    for key in CLASS_OPTIONS:
        argument = next((name for name in settings if name.startswith(f"{key}.")), f"{key}.help")
        if not (key in settings or key in DEFAULT_CLASSES or argument == f"{key}.help"):
            raise ValueError(f"{argument} is given and no {key}; name its class by --{key}")
    if "optimizer" not in settings and settings.get("lr_scheduler") not in UNSET:
        raise ValueError(
            f"lr_scheduler {settings['lr_scheduler']} is given and no optimizer, whose learning "
            "rate it would change; name one by --optimizer, such as Adam"
        )


def _pop_command(options: list[list[str]]) -> str | None:
    """Remove the command from the options; None where only help is asked for."""
    commands = (*TRAINING_COMMANDS, *COMMANDS)
    expected = f"give one of {', '.join(commands)}"
    option = next((option for option in options if not option[0].startswith("-")), None)
    if option is None:
        if any(option[0] in ("-h", "--help") for option in options):
            return None
        raise ValueError(f"no command was given; {expected}")
    command = option[0]
    if command not in TRAINING_COMMANDS:
        if command in COMMANDS:
            raise ValueError(f"{command} stands before its options: pyclassify {command} ...")
        matches = get_close_matches(command, commands, n=1)
        hint = f" (nearest: {matches[0]})" if matches else ""
        raise ValueError(f"there is no command {command!r}{hint}; {expected}")
    options.remove(option)
    return command
