"""What a training verb says at its end."""

import os
import sys

import torch
from lightning.pytorch import Trainer

from pyclassify.tracking.links import show_runs
from pyclassify.tracking.logger import find_run_logger


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
    if logger is not None and logger.run_id:
        import mlflow

        lines["run"] = logger.run_id
        lines["next"] = show_runs(mlflow.get_tracking_uri())
    sys.stdout.write("\n" + "".join(f"{key:14} {line}\n" for key, line in lines.items()))
