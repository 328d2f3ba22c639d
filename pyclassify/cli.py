"""The command line: where the parts are put together."""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from pyclassify.resume import stop_on_signals, stop_with_parent
from pyclassify.tracking import run

TRAINING_VERBS = ("train", "fit", "validate", "test", "predict", "prepare")

# What `mlflow run -P` takes in short, and the option of LightningCLI that it stands for.
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

log = logging.getLogger(__name__)


def main(args: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        args: The verb and its options; the process's own without it.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if args is None else args)
    if "MLFLOW_RUN_ID" in os.environ or not run.is_rank_zero():
        stop_with_parent()
    status = "FAILED"
    with stop_on_signals(on_stop=lambda: run.end("KILLED")):
        try:
            train(given)
            status = "FINISHED"
            return 0
        except KeyboardInterrupt as stop:
            status = "KILLED"
            return complain(f"stopped by {stop or 'SIGINT'}")
        except SystemExit as leaving:
            if isinstance(leaving.__context__, KeyboardInterrupt):  # Lightning's exit on a stop
                status = "KILLED"
                return complain(f"stopped by {leaving.__context__ or 'SIGINT'}")
            if leaving.code in (0, None):
                status = "FINISHED"
            raise
        except Exception as error:
            if speaks_for_itself(error):
                return complain(str(error))
            raise
        finally:
            run.end(status)


def train(given: list[str]) -> None:
    """Run one of the training verbs, which alone pay for importing torch."""
    warnings.filterwarnings("ignore", message=".*`.*configure_optimizers` will be overridden by.*")
    from pyclassify import training

    training.run(spell_out(given))


def spell_out(given: list[str]) -> list[str]:
    """Put LightningCLI's full options in place of the short ones."""
    spelled = []
    for argument in given:
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in SHORT_OPTIONS:
            argument = f"--{SHORT_OPTIONS[name]}{equals}{value}"
        elif argument.startswith("--") and name == "learning_rate":
            argument = f"--{learning_rate(given)}{equals}{value}"
        spelled.append(argument)
    return spelled


def learning_rate(given: list[str]) -> str:
    """Say whose learning rate is meant: the optimizer's where one is named, else the model's."""
    import yaml

    named = any(argument.startswith("--optimizer") for argument in given)
    for argument, following in zip(given, [*given[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c"):
            path = value if equals else following
            with open(path) as file:
                named = named or bool((yaml.safe_load(file) or {}).get("optimizer"))
    return "optimizer.lr" if named else "model.learning_rate"


def speaks_for_itself(error: Exception) -> bool:
    """Whether an error's words are all that its reader needs, without a stack trace."""
    name = type(error).__name__
    raised_by = traceback.extract_tb(error.__traceback__)[-1].filename
    ours = os.path.dirname(__file__)
    return name == "MisconfigurationException" or (
        isinstance(error, (ValueError, OSError)) and raised_by.startswith(ours)
    )


def complain(text: str) -> int:
    """Say in one line what went wrong.

    Returns:
        The exit code of a failure.
    """
    # A data worker's error arrives with its stack trace before it.
    line = " ".join(text.rsplit("MisconfigurationException: ", 1)[-1].split())
    if run.is_rank_zero():
        sys.stderr.write(f"pyclassify: error: {line}\n")
    return 1
