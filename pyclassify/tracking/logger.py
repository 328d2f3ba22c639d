"""The Lightning logger of MLflow runs: one `mlflow run` is one run for any number of processes."""

import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from pyclassify.tracking import run
from pyclassify.tracking.run import warn_on_error
from pyclassify.training import checkpoints
from pyclassify.utils import launch_check, launcher
from pyclassify.utils.text import format_reason

if TYPE_CHECKING:
    from mlflow import MlflowClient

BEST_WEIGHTS_PATH = "weights/best.ckpt"


class RunLogger(MLFlowLogger):
    """Log to the run that `mlflow run` made, or else to a new one.

    Args:
        experiment_name: The experiment of a new run; by default MLflow's own choice.
        run_name: The run's name; by default made of network, data and seed.
        tracking_uri: The tracking server or database; by default MLflow's own choice:
            MLFLOW_TRACKING_URI, or mlflow.db in this folder.
        tags: Tags to set on the run.
        save_dir: The folder of the checkpoints, one folder a run in it.
        system_metrics: Whether to log, each 10 s, what this job takes of processors, memory and
            its own GPUs.

    Attributes:
        spooled_run: The open run, once `experiment` was read.

    Example:
        >>> trainer = Trainer(logger=RunLogger(experiment_name="cifar10"))
    """

    def __init__(
        self,
        experiment_name: str | None = None,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
        save_dir: str = "runs",
        system_metrics: bool = True,
    ) -> None:
        self._save_dir = save_dir
        self._process = os.getpid()
        launch_check.drop_ranks_beside_srun()
        self._starts_system_metrics = system_metrics
        if not launcher.is_rank_zero():
            # The other ranks neither import mlflow nor open its database.
            Logger.__init__(self)
            self._run_id = self._experiment_id = None
            self._initialized, self._prefix = False, ""
            return
        import mlflow

        from pyclassify.spool.store import register_scheme

        register_scheme()  # MLFLOW_TRACKING_URI may name a spool
        super().__init__(
            experiment_name or "",
            run_name,
            tracking_uri or mlflow.get_tracking_uri(),
            tags,
        )

    @property
    @rank_zero_experiment
    def experiment(self) -> "MlflowClient":
        """The `MlflowClient` that writes to the run's spool; starts the run."""
        if self._process != os.getpid():
            raise MisconfigurationException(
                "RunLogger was handed to a copy of the process that made it, which would make a "
                "run too; train with strategy ddp in place of ddp_spawn, ddp_fork or ddp_notebook"
            )
        if not self._initialized:
            if not launcher.is_rank_zero():  # and the Trainer counts it as the first, or only, one
                raise MisconfigurationException(
                    "this process is not the first one by its environment variables (RANK, "
                    "LOCAL_RANK, NODE_RANK or SLURM_PROCID), and the Trainer trains in it alone; "
                    "unset them, or give the Trainer the number of devices that were started"
                )
            self.spooled_run = run.start_run(
                self._experiment_name,
                self._run_name,
                self.tags,
                self._tracking_uri,
                self._save_dir,
            )
            checkpoints.set_pre_save_hook(self.spooled_run.sync)
            self._mlflow_client = self.spooled_run.client
            self._run_id = self.spooled_run.run_id
            self._experiment_id = self.spooled_run.experiment_id
            self._initialized = True
        return self._mlflow_client

    @property
    def save_dir(self) -> str:
        return self._save_dir

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log nothing: `RunRecorder` logs the resolved configuration, which has them all."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics at their step, except those of the test, which are logged at step 0.

        `mlflow ui` draws a metric as a bar if its only point is at step 0.
        """
        rounded = {
            name: _round_float32(value) if isinstance(value, float) else value
            for name, value in metrics.items()
        }
        test_metrics = {n: value for n, value in rounded.items() if n.startswith("test_")}
        others = {name: value for name, value in rounded.items() if name not in test_metrics}
        if test_metrics:
            super().log_metrics(test_metrics, 0)
        if others and not (test_metrics and others.keys() == {"epoch"}):
            super().log_metrics(others, step)

    @rank_zero_only
    def start_system_metrics(self, gpus: Sequence[int]) -> None:
        """Log system metrics until the run's end, if `system_metrics` is set; once for a logger.

        Args:
            gpus: The indices of this job's GPUs in torch.
        """
        if self._starts_system_metrics:
            self._starts_system_metrics = False
            warn_on_error("start the system metrics", self._start_monitor, gpus)

    def _start_monitor(self, gpus: Sequence[int]) -> None:
        from pyclassify.tracking.system_metrics import JobMonitor

        monitor = JobMonitor(str(self.run_id), self.spooled_run.spool_uri, gpus)
        run.call_before_end(monitor.stop)
        monitor.start()

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        self._checkpoint_callback = checkpoint_callback

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Log the best weights; Lightning calls this after each of fit, validate and test.

        A run that failed or was stopped ends here, since Lightning's launcher may kill this process
        a moment later. A run that succeeds ends when the whole command is done.
        """
        if status == "failed":
            error = sys.exc_info()[1]
            reason = "" if error is None else format_reason(error)
            run.end_run("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", reason)
            return
        best = self._checkpoint_callback and self._checkpoint_callback.best_model_path
        if best:
            self._checkpoint_callback = None
            self._log_weights(best)

    def _log_weights(self, path: str) -> None:
        # Without the optimizer's state, which is two thirds of the size for Adam.
        keys = ("state_dict", "epoch", "global_step", "pytorch-lightning_version")
        try:
            # The file was written by this process, and callbacks may have put any object in it.
            checkpoint = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
            with tempfile.TemporaryDirectory() as folder:
                weights = Path(folder, Path(BEST_WEIGHTS_PATH).name)
                data = checkpoints.find_data_state(checkpoint)
                torch.save({**{key: checkpoint[key] for key in keys}, **data}, weights)
                self.experiment.log_artifact(
                    self.run_id, str(weights), str(Path(BEST_WEIGHTS_PATH).parent)
                )
        except Exception as error:  # a trained network is worth more than its copy
            run.fail_later(f"log the best weights, which are in {path}", error)


def _round_float32(value: float) -> float:
    """Round to the fewest digits that identify a float32, if the value is one.

    Python converts torch's 0.81 to 0.8100000023841858, which MLflow would show.
    """
    with np.errstate(over="ignore"):
        narrow = np.float32(value)
    return float(str(narrow)) if float(narrow) == value else value


def find_run_logger(trainer: Trainer) -> RunLogger | None:
    """Find the `RunLogger` among the trainer's loggers."""
    return next((logger for logger in trainer.loggers if isinstance(logger, RunLogger)), None)
