"""What a training verb says at its end."""

import os
import sys

import torch
from lightning.pytorch import Trainer

from pyclassify.tracking.links import run_link, runs_link, start_quickly
from pyclassify.tracking.logger import find_run_logger
from pyclassify.tracking.views import BEST, BY_RECIPE


def summarise(
    trainer: Trainer, metric: str, value: torch.Tensor | None, scored: str | None = None
) -> None:
    """Write the accuracy, the checkpoint, the run and what to type next to standard output.

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
    logger = find_run_logger(trainer)
    links = {}
    if logger is not None and logger.run_id:
        import mlflow

        uri, experiment = mlflow.get_tracking_uri(), str(logger.experiment_id)
        lines["run"] = logger.run_id
        lines["next"] = start_quickly(uri)
        links = {
            "This run": run_link(uri, experiment, logger.run_id),
            "All runs, the best first": runs_link(uri, experiment, BEST.key),
            "Recipes, each the mean of its runs": runs_link(uri, experiment, BY_RECIPE.key),
        }
    sys.stdout.write("\n" + "".join(f"{key:14} {line}\n" for key, line in lines.items()))
    # On lines of their own, whole: a terminal opens what it can tell apart.
    sys.stdout.write("".join(f"\n{what}:\n{link}\n" for what, link in links.items()))
