"""The Lightning logger of MLflow runs: one run for any number of processes.

The logger writes to the run that `mlflow run` created, or else creates a run.
"""

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
    """Log metrics, checkpoints and artifacts to one MLflow run.

    The run is the one of MLFLOW_RUN_ID, which `mlflow run` sets, or a new one. It starts when the
    first value is logged. Only rank 0 logs. Values are first written to a write-ahead log (the
    spool, in `save_dir`), and a thread uploads them every two seconds. So the training neither
    waits for the tracking server nor fails with it.

    Args:
        experiment_name: The experiment of a new run; by default MLFLOW_EXPERIMENT_NAME, or MLflow's
            default experiment.
        run_name: The run's name; by default a name that MLflow generates, which `RunRecorder`
            replaces by network, data and seed.
        tracking_uri: The tracking server or database; by default MLFLOW_TRACKING_URI, or
            `sqlite:///mlflow.db`.
        tags: Tags to set on the run; by default none.
        save_dir: The folder of checkpoints and of the spool, `runs` by default. Checkpoints are in
            the subfolder `EXPERIMENT/RUN_ID`.
        system_metrics: Whether to log CPU utilization, memory and the metrics of this job's GPUs
            every 10 seconds; True by default.

    Attributes:
        spooled_run: The open run; set when `experiment` is first read.
        has_trained: Whether this process has trained in the run.
        awaits_model: Whether a callback will log a model, which has the best weights.
        model_id: The ID of that model in the spool; None before it is logged, and if that failed.

    Raises:
        MisconfigurationException: When `experiment` is read in a forked process, or in a process
            whose environment variables give it another rank than 0.

    Example:
        >>> from pyclassify import RunLogger, Trainer
        >>> from pyclassify.tracking.run import end_run
        >>> logger = RunLogger(run_name="first", system_metrics=False)
        >>> trainer = Trainer(logger=logger, max_epochs=1)
        >>> logger.log_metrics({"val_accuracy": 0.61}, step=100)
        >>> end_run("FINISHED")  # in a script, the end of Python ends the run
    """

    awaits_model = False
    has_trained = False
    model_id: str | None = None

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
            # The other ranks neither import MLflow nor open its database.
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
        """The `MlflowClient` that writes to the run's spool; reading it starts the run."""
        if self._process != os.getpid():
            raise MisconfigurationException(
                "RunLogger can't be used in a forked or spawned process, which would create "
                "another run; give the Trainer strategy ddp instead of ddp_spawn, ddp_fork or "
                "ddp_notebook"
            )
        if not self._initialized:
            if not launcher.is_rank_zero():  # but Lightning has called this on its rank 0
                raise MisconfigurationException(
                    "this process is rank 0 for the Trainer, but its environment variables (RANK, "
                    "LOCAL_RANK, NODE_RANK or SLURM_PROCID) give it another rank; unset them, or "
                    "give the Trainer the number of devices that the launcher started"
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
        """Log nothing: `RunRecorder` logs the resolved configuration, which includes them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics at their step; those that begin with `test_` are logged at step 0.

        `mlflow ui` draws a metric as a bar if its only point is at step 0.

        Args:
            metrics: Values by name.
            step: The training step of the values.
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
        """Log system metrics until the end of the run, if `system_metrics` is set.

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
        """Log the best weights; Lightning calls this after each fit, validate and test.

        They are not logged a second time beside a model that has them.

        A run that failed or was stopped ends here, since Lightning's launcher may kill this process
        right afterwards. A run that succeeds ends with the command.
        """
        if status == "failed":
            error = sys.exc_info()[1]
            reason = "" if error is None else format_reason(error)
            run.end_run("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", reason)
            return
        best = self._checkpoint_callback and self._checkpoint_callback.best_model_path
        if best and not self.awaits_model and self.model_id is None:
            self._checkpoint_callback = None
            self._log_weights(best)

    def _log_weights(self, path: str) -> None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                weights = Path(folder, Path(BEST_WEIGHTS_PATH).name)
                torch.save(checkpoints.extract_weights(path), weights)
                self.experiment.log_artifact(
                    self.run_id, str(weights), str(Path(BEST_WEIGHTS_PATH).parent)
                )
        except Exception as error:  # the training must not fail: the file has the weights
            run.fail_later(f"log the best weights, which are in {path}", error)


def _round_float32(value: float) -> float:
    """Round to the fewest digits that identify a float32, if the value is one.

    A float32 of 0.81 is 0.8100000023841858 in Python, and MLflow would show all digits.
    """
    with np.errstate(over="ignore"):
        narrow = np.float32(value)
    return float(str(narrow)) if float(narrow) == value else value


def find_run_logger(trainer: Trainer) -> RunLogger | None:
    """Find the `RunLogger` among the trainer's loggers; None without one."""
    return next((logger for logger in trainer.loggers if isinstance(logger, RunLogger)), None)
