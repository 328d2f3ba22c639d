"""What `--help` of the training verbs says beside the options themselves."""

from typing import Any

from pyclassify.utils.options import PLAIN_VERBS, SHORT_OPTIONS, VERBS

DESCRIPTION = "Train any network on any images as one MLflow run."
EPILOG = "Short options: " + ", ".join(
    f"--{short} for --{full}" for short, full in SHORT_OPTIONS.items()
)
EPILOG += (
    "; --learning_rate is --optimizer.lr where an optimizer is named. "
    "--seeds N trains with N seeds, from --seed on, and one run above theirs has the means. "
    "--model.help and --data.help show the options that the network and the data have."
)
MORE_VERBS = "More verbs, for runs that there are: " + ", ".join(PLAIN_VERBS)

# The headings of the help, where the docstrings of Lightning and torch are for other readers.
TITLES = {
    "trainer": "How to train",
    "model": "What to train",
    "data": "What to train it on",
    "checkpoint": "Which weights to keep",
    "resume": "How to go on after a stop",
    "register": "Which registered model gets a version",
    "optimizer": "The optimizer, in place of the model's own",
    "lr_scheduler": "Its learning rate's schedule",
}


def parser_options() -> dict[str, Any]:
    """How LightningCLI makes the parser of the whole and that of each verb, by their names."""
    strict = {"exit_on_error": False, "allow_abbrev": False}
    usage = "pyclassify {} [--config FILE] [--OPTION VALUE ...]"
    return {
        "prog": "pyclassify",
        "description": DESCRIPTION,
        "epilog": f"{MORE_VERBS}; each has a --help of its own.",
        **strict,
        **{verb: {"usage": usage.format(verb), "epilog": EPILOG, **strict} for verb in VERBS},
    }
