"""Write the summary of a training command: results, where they are, and what to do next."""

import os
import sys
from collections.abc import Mapping

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pyclassify.data.loaders import ImageDataModule
from pyclassify.registry.register import RegisterModel
from pyclassify.tracking.logger import RunLogger, find_run_logger
from pyclassify.tracking.ui import (
    BEST_VIEW,
    RECIPE_VIEW,
    format_fast_ui_command,
    link_run,
    link_runs,
)
from pyclassify.training.prediction_writer import PredictionWriter


def write_summary(
    trainer: pl.Trainer, metric: str, value: Tensor | None, ckpt_path: str | None = None
) -> None:
    """Write the accuracy, the checkpoint, the model, the run and the next command to stdout.

    Args:
        trainer: The trainer that is done.
        metric: The name of the metric to show.
        value: Its value, float [], or None where it was not logged.
        ckpt_path: The checkpoint that was evaluated, as given; by default the best is shown.
    """
    lines = {}
    if value is not None:
        lines[metric] = f"{value:.4f}"
    best = getattr(trainer.checkpoint_callback, "best_model_path", None)
    if path := ckpt_path or best:
        # Absolute, as `mlflow run` may have been started from another folder than this process's.
        local = path == best and "://" not in path
        lines["checkpoint"] = os.path.abspath(path) if local else path
    callbacks: list[Callback] = getattr(trainer, "callbacks", [])
    for callback in callbacks:
        if isinstance(callback, RegisterModel) and callback.result:
            lines["model"] = callback.result
    logger = find_run_logger(trainer)
    links: dict[str, str] = {}
    if logger is not None and logger.run_id:
        run_lines, links = _describe_run(logger)
        lines |= run_lines
    _write_lines(lines)
    # Each link whole and on its own line, so that terminals recognize it.
    sys.stdout.write("".join(f"\n{title}:\n{link}\n" for title, link in links.items()))


def write_prediction_summary(table: PredictionWriter) -> None:
    """Write where the predictions are, and of how many images, to stdout."""
    lines = {"predictions": str(table.path.absolute()), "images": f"{table.count:,}"}
    if table.unreadable:
        lines["unreadable"] = f"{table.unreadable:,}, without a label"
    _write_lines(lines)


def write_data_summary(datamodule: ImageDataModule) -> None:
    """Write what the data hold, and where the report of them is, to stdout."""
    report = datamodule.make_report()
    if report is not None:
        lines = dict(report.lines)
        if datamodule.report_path is not None:
            lines["report"] = str(datamodule.report_path.absolute())
        _write_lines(lines)


def _describe_run(logger: RunLogger) -> tuple[dict[str, str], dict[str, str]]:
    """A run's lines of the summary, and its links, which need a server that has the run."""
    import mlflow

    run = logger.spooled_run
    lines = {"run": run.server_id}
    if run.is_offline():
        return lines | {"next": f"pyclassify sync {run.folder}"}, {}
    uri, experiment = mlflow.get_tracking_uri(), run.experiment_id
    links = {
        "This run": link_run(uri, experiment, run.server_id),
        "All runs, the best first": link_runs(uri, experiment, BEST_VIEW.key),
        "Recipes, each the mean of its runs": link_runs(uri, experiment, RECIPE_VIEW.key),
    }
    return lines | {"next": format_fast_ui_command(uri)}, links


def _write_lines(lines: Mapping[str, str]) -> None:
    sys.stdout.write("\n" + "".join(f"{key:14} {line}\n" for key, line in lines.items()))
