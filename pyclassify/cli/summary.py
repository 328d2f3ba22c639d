"""Write the summary of a training command: results, where they are, and the next commands."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TypeVar

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from pyclassify.data.loaders import ImageDataModule
from pyclassify.registry.register import RegisterModel
from pyclassify.registry.versions import format_serve_command
from pyclassify.tracking.description import format_interval
from pyclassify.tracking.local_files import is_in_folder
from pyclassify.tracking.logged_model import ModelLogger
from pyclassify.tracking.logger import RunLogger, find_run_logger
from pyclassify.tracking.predictions import PredictionLogger
from pyclassify.tracking.ui import (
    BEST_VIEW,
    RECIPE_VIEW,
    format_fast_ui_command,
    link_run,
    link_runs,
)
from pyclassify.training.prediction_writer import PredictionWriter
from pyclassify.utils.masking import mask_command
from pyclassify.utils.options import TRAINING_COMMANDS, split_options

_C = TypeVar("_C", bound=Callback)
_SHORT_ID = 8  # characters of a run's ID that commands accept
_TOLERANCE = 1e-4  # of an accuracy that is rounded


def write_summary(
    trainer: pl.Trainer,
    argv: Sequence[str],
    metric: str,
    value: Tensor | None,
    ckpt_path: str | None = None,
) -> None:
    """Write the accuracy, the checkpoint, the model, the run and the next commands to stdout.

    Args:
        trainer: The trainer that is done.
        argv: The command line as it was given, for the next command.
        metric: The name of the metric to show.
        value: Its value, float [], or None where it was not logged.
        ckpt_path: The checkpoint that was evaluated, as given; by default the best is shown.
    """
    results = {}
    if value is not None:
        results[metric] = _format_accuracy(trainer, metric, float(value))
    best = getattr(trainer.checkpoint_callback, "best_model_path", None)
    register = _find_callback(trainer, RegisterModel)
    logger = find_run_logger(trainer)
    path = ckpt_path or best
    if path and not _will_be_removed(path, logger):
        # Absolute, as `mlflow run` may have been started from another folder than this process's.
        local = path == best and "://" not in path
        results["checkpoint"] = os.path.abspath(path) if local else path
    if logger is None or not logger.run_id:
        _write_lines(results)
        return
    if register is not None and register.result:
        results["model"] = register.result
    model_id = _find_model_id(trainer)
    server_id = logger.spooled_run.get_server_model_id(model_id) if model_id else ""
    if server_id and "model" not in results:
        results["model"] = f"models:/{server_id}"
    results["run"] = logger.spooled_run.server_id
    _write_lines(results)
    _write_lines(_list_next_commands(trainer, logger, register, argv))


def write_prediction_summary(table: PredictionWriter) -> None:
    """Write where the predictions are, and of how many images, to stdout."""
    lines = {"predictions": str(table.path.absolute()), "images": f"{table.count:,}"}
    if table.unreadable:
        lines["unreadable"] = f"{table.unreadable:,}, without a label"
    _write_lines(lines)


def write_data_summary(datamodule: pl.LightningDataModule | None, argv: Sequence[str]) -> None:
    """Write what the data hold, where their report is, and the next command to stdout.

    Args:
        datamodule: The data module; of one that is not an `ImageDataModule` nothing is known.
        argv: The command line as it was given.
    """
    if isinstance(datamodule, ImageDataModule) and (report := datamodule.make_report()):
        lines = dict(report.lines)
        if datamodule.report_path is not None:
            lines["report"] = str(datamodule.report_path.absolute())
        _write_lines(lines)
    _write_lines({"train": _format_command("train", argv)})


def _format_accuracy(trainer: pl.Trainer, metric: str, value: float) -> str:
    """Format a metric; of a test's accuracy, with its interval."""
    callback = _find_callback(trainer, PredictionLogger)
    predictions = callback.predictions if callback else None
    text = f"{value:.4f}"
    if metric != "test_accuracy" or predictions is None:
        return text
    correct, total = int(predictions.correct.sum()), len(predictions.correct)
    # A module may log something else by this name.
    is_same = abs(correct / total - value) < _TOLERANCE
    return f"{text} ({format_interval(correct, total)})" if is_same else text


def _list_next_commands(
    trainer: pl.Trainer, logger: RunLogger, register: RegisterModel | None, argv: Sequence[str]
) -> dict[str, str]:
    """List the links of a run and the commands that use it, with a server that has the run."""
    import mlflow

    run = logger.spooled_run
    if run.is_offline():
        return {"sync": f"pyclassify sync {shlex.quote(str(run.folder))}"}
    uri, experiment = mlflow.get_tracking_uri(), run.experiment_id
    short_id = run.server_id[:_SHORT_ID]
    lines = {
        "look": format_fast_ui_command(uri),
        # Each link whole and in its own line, so that terminals recognize it.
        "this run": link_run(uri, experiment, run.server_id),
        "all runs": link_runs(uri, experiment, BEST_VIEW.key),
        "recipes": link_runs(uri, experiment, RECIPE_VIEW.key),
        "compare": f"pyclassify compare {short_id} OTHER_RUN_ID",
    }
    if trainer.state.fn == TrainerFn.FITTING:
        lines["test"] = _format_command("test", argv, "--ckpt_path", run.server_id)
    if register is not None and register.version is not None:
        lines["serve"] = format_serve_command(f"models:/{register.name}/{register.version}")
    elif (model_id := _find_model_id(trainer)) and run.get_server_model_id(model_id):
        lines["register"] = f"pyclassify register {short_id} NAME"
    return lines


def _format_command(command: str, argv: Sequence[str], *more: str) -> str:
    """Format another command with the options of a command line."""
    words = []
    for name, *value in split_options([*argv]):
        if name not in TRAINING_COMMANDS and name.partition("=")[0] != "--ckpt_path":
            words += [name, *value]
    return shlex.join(["pyclassify", command, *mask_command([*words, *more])])


def _will_be_removed(path: str, logger: RunLogger | None) -> bool:
    """Whether a checkpoint is removed when the run ends, as the run's model has its weights."""
    if logger is None or logger.model_id is None or logger.spooled_run.is_offline():
        return False
    if not logger.spooled_run.get_server_model_id(logger.model_id):
        return False
    return is_in_folder(path, logger)


def _find_model_id(trainer: pl.Trainer) -> str | None:
    """Find the ID of the model that was logged, in the run's spool; None without one."""
    callbacks: list[Callback] = getattr(trainer, "callbacks", [])
    loggers = (callback for callback in callbacks if isinstance(callback, ModelLogger))
    return next((logger.model_id for logger in loggers if logger.model_id), None)


def _find_callback(trainer: pl.Trainer, kind: type[_C]) -> _C | None:
    callbacks: list[Callback] = getattr(trainer, "callbacks", [])
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


def _write_lines(lines: Mapping[str, str]) -> None:
    if lines:
        sys.stdout.write("\n" + "".join(f"{key:14} {line}\n" for key, line in lines.items()))
