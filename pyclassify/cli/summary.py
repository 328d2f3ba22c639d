"""What a training verb says at its end."""

import os
import sys

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from pyclassify.registry.register import RegisterModel
from pyclassify.tracking.links import run_link, runs_link, start_quickly
from pyclassify.tracking.logger import find_run_logger
from pyclassify.tracking.ui import BEST, BY_RECIPE
from pyclassify.training.prediction_writer import WriteTable


def summarise(
    trainer: pl.Trainer, metric: str, value: torch.Tensor | None, scored: str | None = None
) -> None:
    """Write the accuracy, the checkpoint, the model, the run and what to type next to stdout.

    Args:
        trainer: What ran.
        metric: The name of the metric that counts.
        value: Its value, if it was logged.
        scored: The checkpoint as it was given, where one was scored; else the best is shown.
    """
    lines = {}
    if value is not None:
        lines[metric] = f"{value:.4f}"
    best = getattr(trainer.checkpoint_callback, "best_model_path", None)
    if path := scored or best:
        # Whole, as `mlflow run` may have been started from another folder than this process's.
        local = path == best and "://" not in path
        lines["checkpoint"] = os.path.abspath(path) if local else path
    callbacks: list[Callback] = getattr(trainer, "callbacks", [])
    for each in callbacks:
        if isinstance(each, RegisterModel) and each.told:
            lines["model"] = each.told
    logger = find_run_logger(trainer)
    links = {}
    if logger is not None and logger.run_id:
        import mlflow

        written = logger.written
        uri, experiment, run_id = (
            mlflow.get_tracking_uri(),
            written.experiment_id,
            written.server_id,
        )
        lines["run"] = run_id
        away = written.is_away()
        lines["next"] = f"pyclassify sync {written.folder}" if away else start_quickly(uri)
        links = (
            {}
            if away
            else {
                "This run": run_link(uri, experiment, run_id),
                "All runs, the best first": runs_link(uri, experiment, BEST.key),
                "Recipes, each the mean of its runs": runs_link(uri, experiment, BY_RECIPE.key),
            }
        )
    sys.stdout.write("\n" + "".join(f"{key:14} {line}\n" for key, line in lines.items()))
    # On lines of their own, whole: a terminal opens what it can tell apart.
    sys.stdout.write("".join(f"\n{what}:\n{link}\n" for what, link in links.items()))


def summarise_table(table: WriteTable) -> None:
    """Write where the predictions are, and of how many images, to standard output."""
    lines = {"predictions": str(table.path.absolute()), "images": f"{table.count:,}"}
    if table.unreadable:
        lines["unreadable"] = f"{table.unreadable:,}, without a label"
    sys.stdout.write("\n" + "".join(f"{key:14} {line}\n" for key, line in lines.items()))
