"""The commands, and the help that needs neither torch nor MLflow.

`COMMANDS` names every command with its summary: the first page of help and the dispatch in
`cli.main` come from it. A training command has more than 200 options, most of them Lightning's;
`make_training_parser` describes the common ones, and `--help-all` shows them all.
"""

import re
from typing import NamedTuple

from pyclassify.utils.options import (
    HELP_FLAGS,
    TRAINING_COMMANDS,
    CommandParser,
    split_options,
)

_DESCRIPTION = "Train any network on any images as one MLflow run."
_EXAMPLES = (
    "pyclassify train --data CIFAR10DataModule --max_epochs 20",
    "pyclassify compare --experiment Default",
)
_EXIT_CODES = {
    "0": "The command succeeded.",
    "1": "The command failed, or a signal stopped it.",
    "2": "The command line is invalid: a usage error.",
    "75": "The training was interrupted near its time limit: start the command again.",
}
_FIRST_PAGE_OPTIONS = {
    "-h, --help": "Show this help and exit.",
    "--version": "Show the version and exit.",
}
_NAME_WIDTH = 12
TRAINING_USAGE = "pyclassify {} [--config FILE] [--OPTION VALUE ...]"


class Command(NamedTuple):
    """A command.

    Args:
        group: The heading that the help lists it under.
        summary: What it does, an imperative sentence.
        function: The function of the arguments after the command, as `module:name`, which is
            imported when the command runs; "" for a training command.
    """

    group: str
    summary: str
    function: str = ""


COMMANDS = {
    "train": Command("Train", "Train a network, then test its best checkpoint."),
    "fit": Command("Train", "Train a network without the test."),
    "validate": Command("Train", "Evaluate a checkpoint on the validation images."),
    "test": Command("Train", "Evaluate a checkpoint on the test images."),
    "predict": Command("Train", "Write a table with the predicted class of each image."),
    "prepare": Command("Train", "Download the data, or check every image file, before training."),
    "compare": Command(
        "Runs",
        "Compare runs: parameters, metrics and seed statistics.",
        "pyclassify.runs.compare:main",
    ),
    "resume": Command(
        "Runs",
        "Resume an interrupted run from its last checkpoint.",
        "pyclassify.runs.resume:resume",
    ),
    "rerun": Command(
        "Runs",
        "Repeat a run, and check that its result is reproducible.",
        "pyclassify.runs.rerun:rerun",
    ),
    "sync": Command(
        "Runs", "Upload what runs logged while their server was away.", "pyclassify.cli.main:sync"
    ),
    "clear": Command(
        "Runs",
        "Remove the local files of runs that the server has completely.",
        "pyclassify.runs.clear:main",
    ),
    "register": Command(
        "Models",
        "Register the model of a run, and compare it with the champion.",
        "pyclassify.registry.promote:register",
    ),
    "promote": Command(
        "Models",
        "Make a model version champion if it passes the promotion check.",
        "pyclassify.registry.promote:promote",
    ),
    "rollback": Command(
        "Models",
        "Make the previous champion of a model champion again.",
        "pyclassify.registry.promote:rollback",
    ),
    "follow": Command(
        "Models",
        "Deliver each new champion to a folder, and to the server of it.",
        "pyclassify.registry.follow:follow",
    ),
    "slurm": Command(
        "Cluster",
        "Render, check, show, cancel and resume SLURM jobs.",
        "pyclassify.slurm.cli:main",
    ),
}

_TRAIN = ("train", "fit")
_EVALUATE = ("validate", "test", "predict")
_ALL = TRAINING_COMMANDS
_RUN = (*_TRAIN, *_EVALUATE)  # all except `prepare`
_CONFIG_HELP = "Read settings from a YAML file. May be repeated; later files and options win."
_MODEL_HELP = "Use this network: an import path, such as torchvision.models.resnet18."
_DATA_HELP = "Load images with this data module, such as ImageFolderDataModule."
_DATA_PATH_HELP = "Read the data from this folder, or download it there (default: pyclassify in "
_DATA_PATH_HELP += "the user's cache folder)."
_LEARNING_RATE_HELP = "Set the learning rate of Adam, or of --optimizer."
_RESUMED_HELP = "Resume from this checkpoint file; for a run, use `pyclassify resume`."
_EVALUATED_HELP = "Evaluate this checkpoint: a file, or the ID of a run. Required."
_PREDICT_HELP = "Predict with this checkpoint file, run ID or models:/NAME@ALIAS. Required."
_OUTPUT_HELP = "Write the table to FILE, .parquet or .csv."
_LOG_MODEL_HELP = "Log the network as an MLflow model, to register and serve it."
_SEEDS_HELP = "Train N times, from --seed on, as child runs of one run."
_WEIGHTS_HELP = "Initialize the network with the weights of a file, a run (its ID) or a model "
_WEIGHTS_HELP += "(models:/NAME@ALIAS)."
# The common options by heading: name, value, help, default and commands. The defaults are those of
# the parser and of the default classes, which a test compares.
_OPTIONS = {
    "network and data": (
        ("--config", "FILE", _CONFIG_HELP, None, _ALL),
        ("--model.model", "CLASS", _MODEL_HELP, "pyclassify.model.AlexNet", _RUN),
        ("--data", "CLASS", _DATA_HELP, "CIFAR10DataModule", _ALL),
        ("--data_path", "DIR", _DATA_PATH_HELP, None, _ALL),
        ("--batch_size", "N", "Put N images in each batch of each process.", "64", _RUN),
        ("--weights", "SOURCE", _WEIGHTS_HELP, None, _TRAIN),
        ("--freeze", "NAME", "Do not train this part of the network.", None, _TRAIN),
    ),
    "training": (
        ("--max_epochs", "N", "Stop after N epochs.", "10", _TRAIN),
        ("--learning_rate", "LR", _LEARNING_RATE_HELP, "0.0001", _TRAIN),
        ("--optimizer", "CLASS", "Use this optimizer of torch.optim, not Adam.", None, _TRAIN),
        ("--seed", "N", "Seed weights, shuffling and augmentation.", "0", _TRAIN),
        ("--seeds", "N", _SEEDS_HELP, None, _TRAIN),
        ("--ckpt_path", "FILE", _RESUMED_HELP, None, _TRAIN),
        ("--register", "NAME", "Register the network as a version of this model.", None, _TRAIN),
        ("--log_model", "BOOL", _LOG_MODEL_HELP, "true", _TRAIN),
    ),
    "evaluation": (
        ("--ckpt_path", "CKPT", _EVALUATED_HELP, None, ("validate", "test")),
        ("--ckpt_path", "CKPT", _PREDICT_HELP, None, ("predict",)),
        ("--output", "FILE", _OUTPUT_HELP, "predictions.parquet", ("predict",)),
    ),
    "hardware and processes": (
        ("--accelerator", "NAME", "Run on cpu, gpu or another accelerator.", "auto", _RUN),
        ("--devices", "N", "Run N processes per node, one on each GPU.", "1", _RUN),
        ("--num_nodes", "N", "Run on N nodes.", "1", _RUN),
        ("--seed", "N", "Seed the random number generators.", "0", _EVALUATE),
        ("--precision", "P", "Compute in 32-true, bf16-mixed or 16-mixed.", "32-true", _RUN),
    ),
    "more help": (
        ("--help-all", "", "Show all options and exit.", None, _ALL),
        ("--model.help", "", "Show the options of the LightningModule and exit.", None, _RUN),
        ("--model.model.help", "", "Show the options of the network and exit.", None, _RUN),
        ("--data.help", "", "Show the options of the data module and exit.", None, _ALL),
        ("--print_config", "", "Print the configuration as YAML and exit.", None, _ALL),
    ),
}
_TRAINING_EXAMPLES = {
    "train": (
        "pyclassify train --config configs/synthetic.yaml --devices 2",
        "pyclassify train --data ImageFolderDataModule --data_path ~/photos",
    ),
    "fit": (
        "pyclassify fit --max_epochs 20 --optimizer SGD --learning_rate 0.01",
        "pyclassify fit --model.model torchvision.models.resnet18 --seeds 5",
    ),
    "validate": (
        "pyclassify validate --ckpt_path RUN_ID",
        "pyclassify validate --config config.yaml --ckpt_path best.ckpt",
    ),
    "test": (
        "pyclassify test --ckpt_path RUN_ID",
        "pyclassify test --config config.yaml --ckpt_path best.ckpt --devices 2",
    ),
    "predict": (
        "pyclassify predict --data ImageFolderDataModule --data_path ~/new --ckpt_path RUN_ID",
        "pyclassify predict --ckpt_path models:/alexnet@champion --output table.csv",
    ),
    "prepare": (
        "pyclassify prepare --data_path /shared/data",
        "pyclassify prepare --data ImageFolderDataModule --data_path ~/photos",
    ),
}


def format_help(argv: list[str]) -> str | None:
    """Format the help or the version that a command line asks for.

    Args:
        argv: The command line; without any word it asks for the first page.

    Returns:
        The text; None where it asks for neither, or for the help of another command.
    """
    if argv[:1] == ["--version"]:
        from importlib.metadata import version

        return f"pyclassify {version('pyclassify')}\n"
    options = [*split_options(argv)]
    if options and not any(option[0] in HELP_FLAGS for option in options):
        return None
    command = next((option[0] for option in options if not option[0].startswith("-")), None)
    if command is None:
        return _format_first_page()
    return make_training_parser(command).format_help() if command in TRAINING_COMMANDS else None


def make_training_parser(command: str) -> CommandParser:
    """Make a parser of the common options of a training command, for its help.

    LightningCLI parses the command line itself: any option of `--help-all` can be given.
    """
    parser = CommandParser(
        f"pyclassify {command}",
        usage=TRAINING_USAGE.format(command),
        description=COMMANDS[command].summary,
        examples=_TRAINING_EXAMPLES[command],
        add_help=False,
    )
    for heading, options in _OPTIONS.items():
        group = parser.add_argument_group(heading)
        if heading == "more help":
            group.add_argument(*HELP_FLAGS, action="store_true", help="Show this help and exit.")
        for name, metavar, text, default, commands in options:
            if command not in commands:
                continue
            if not metavar:
                group.add_argument(name, action="store_true", help=text)
                continue
            names = ("-c", name) if name == "--config" else (name,)
            group.add_argument(*names, metavar=metavar, help=text, default=default)
    return parser


def _format_first_page() -> str:
    lines = [_DESCRIPTION, "", "usage: pyclassify COMMAND [--OPTION VALUE ...]"]
    previous = ""
    for name, command in COMMANDS.items():
        if command.group != previous:
            lines += ["", f"{command.group}:"]
        lines.append(f"  {name:{_NAME_WIDTH}}{command.summary}")
        previous = command.group
    lines += ["", "options:"]
    lines += [f"  {name:{_NAME_WIDTH}}{text}" for name, text in _FIRST_PAGE_OPTIONS.items()]
    lines += ["", "examples:", *(f"  {example}" for example in _EXAMPLES)]
    lines += ["", "exit codes:"]
    lines += [f"  {code:{_NAME_WIDTH}}{text}" for code, text in _EXIT_CODES.items()]
    lines += ["", "Run `pyclassify COMMAND --help` to show the options of a command."]
    return "\n".join(lines) + "\n"


# Of Sphinx: :class:`~a.b.C`, :meth:`C.f`, ``code`` and directives such as `.. note::`.
_ROLE = re.compile(r":[\w:]+:`~?(?:[^`<]*<)?([^`>]*)>?`")
_DIRECTIVE = re.compile(r"\.\. (\w+)::\s*")
# The default of a docstring, where the parser shows the one that holds.
_DOCUMENTED_DEFAULT = re.compile(
    r"\s*\(?Defaults?(?: to)?:? ``?[^`]*``?\)?\.?(?=\s|$)", re.IGNORECASE
)


def clean_docstring(text: str) -> str:
    """Remove the markup of Sphinx from a docstring, and the defaults that it states."""
    text = _DOCUMENTED_DEFAULT.sub("", text)
    text = _ROLE.sub(lambda found: found[1].rpartition(".")[2] or found[1], text)
    text = _DIRECTIVE.sub(lambda found: f"{found[1].capitalize()}: ", text)
    return text.replace("``", "")
