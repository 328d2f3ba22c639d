"""What `--help` of the training verbs says beside the options themselves."""

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
# Verbs that train nothing and have no run of their own: functions of the arguments after the verb,
# imported only when asked for.
COMMANDS = {
    "compare": "pyclassify.runs.compare:main",
    "promote": "pyclassify.registry.promote:promote",
    "rerun": "pyclassify.runs.rerun:rerun",
    "resume": "pyclassify.runs.resume:resume",
    "rollback": "pyclassify.registry.promote:rollback",
    "slurm": "pyclassify.slurm.cli:main",
    "sync": "pyclassify.cli.main:sync",
}
_MORE_COMMANDS = "More verbs, for runs that there are: " + ", ".join(COMMANDS)
# The headings of the help, where the docstrings of Lightning and torch are for other readers.
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
    """How LightningCLI makes the parser of the whole and that of each verb, by their names."""
    strict = {"exit_on_error": False, "allow_abbrev": False}
    usage = "pyclassify {} [--config FILE] [--OPTION VALUE ...]"
    return {
        "prog": "pyclassify",
        "description": _DESCRIPTION,
        "epilog": f"{_MORE_COMMANDS}; each has a --help of its own.",
        **strict,
        **{
            verb: {"usage": usage.format(verb), "epilog": _EPILOG, **strict}
            for verb in TRAINING_COMMANDS
        },
    }


def expand_options(given: list[str]) -> list[str]:
    """Put the verb first, full options in place of short ones, and what trains by default.

    Options may stand in any order: configuration files are read first, so that an option wins over
    them, and a part's class is set before its arguments.

    The defaults are options, not defaults of the parser: those would leave their arguments (the
    size of CIFAR-10's validation set) to whichever class a recipe names in their place.

    Raises:
        OSError: A configuration file can't be read.
        ValueError: There is no verb, or a configuration file is no mapping in YAML.
    """
    options = list(split_options(given))
    verb = _pop_command(options)
    if verb is None:
        return given
    chosen = dict(list_settings(given))
    classes = {**DEFAULT_CLASSES, **chosen}
    for part in CLASS_OPTIONS:
        argument = next((key for key in chosen if key.startswith(f"{part}.")), f"{part}.help")
        if not (part in chosen or part in DEFAULT_CLASSES or argument == f"{part}.help"):
            raise ValueError(f"{argument} is given and no {part}; name its class by --{part}")
    if "optimizer" not in chosen and chosen.get("lr_scheduler") not in UNSET:
        raise ValueError(
            f"lr_scheduler {chosen['lr_scheduler']} is given and no optimizer, whose learning rate "
            "it would change; name one by --optimizer, such as Adam"
        )
    rate = "model.learning_rate" if chosen.get("optimizer") in UNSET else "optimizer.lr"
    short = {**SHORT_OPTIONS, "learning_rate": rate}
    missing = DEFAULT_CLASSES.keys() - chosen.keys()
    spelled = [verb, *(f"--{part}={DEFAULT_CLASSES[part]}" for part in sorted(missing))]
    for name, *value in sort_options(options):
        part = name.removeprefix("--").removesuffix(".help")
        if name.endswith(".help") and not value and part in classes:
            value = [str(classes[part])]
        head, equals, tail = name.partition("=")
        full = short.get(head.removeprefix("--")) if head.startswith("--") else None
        spelled += [f"--{full}{equals}{tail}" if full else name, *value]
    return spelled


def _pop_command(options: list[list[str]]) -> str | None:
    """Take the verb out of a command line; there is none where only help is asked for."""
    takes = f"give one of {', '.join((*TRAINING_COMMANDS, *COMMANDS))}"
    verb = next((option for option in options if not option[0].startswith("-")), None)
    if verb is None:
        if any(option[0] in ("-h", "--help") for option in options):
            return None
        raise ValueError(f"no verb was given; {takes}")
    if verb[0] not in TRAINING_COMMANDS:
        if verb[0] in COMMANDS:
            raise ValueError(f"{verb[0]} stands before its options: pyclassify {verb[0]} ...")
        near = get_close_matches(verb[0], (*TRAINING_COMMANDS, *COMMANDS), n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise ValueError(f"there is no verb {verb[0]!r}{hint}; {takes}")
    options.remove(verb)
    return verb[0]
