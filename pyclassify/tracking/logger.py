"""The logger: one `mlflow run` is one run, whatever the number of processes."""

import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from pyclassify.tracking import run
from pyclassify.tracking.run import warn_on_error
from pyclassify.training import checkpoints
from pyclassify.utils import launcher

BEST_WEIGHTS_PATH = "weights/best.ckpt"


class RunLogger(MLFlowLogger):
    """Log to the run that `mlflow run` made, or else to a new one.

    Args:
        experiment_name: The experiment of a new run; MLflow's own choice without it.
        run_name: The run's name; without it, one made of network, data and seed.
        tracking_uri: The tracking server or database; MLflow's own choice without it:
            MLFLOW_TRACKING_URI, or mlflow.db in this folder.
        tags: Tags to set on the run.
        save_dir: The folder of the checkpoints, one folder a run in it.
        system_metrics: Whether to log, each 10 s, what this job takes of processors, memory and
            its own GPUs.
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
        self._folder, self._unwatched = save_dir, system_metrics
        if not launcher.is_rank_zero():
            # The other ranks neither import mlflow nor open its database.
            Logger.__init__(self)
            self._run_id = self._experiment_id = None
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
    def experiment(self) -> Any:
        """An `MlflowClient` that writes to the run's spool, with the run started."""
        if not self._initialized:
            self.written = run.start_run(
                self._experiment_name, self._run_name, self.tags, self._tracking_uri, self._folder
            )
            checkpoints.keep_first(self.written.keep)
            self._mlflow_client = self.written.client
            self._run_id = self.written.run_id
            self._experiment_id = self.written.experiment_id
            self._initialized = True
        return self._mlflow_client

    @property
    def save_dir(self) -> str:
        return self._folder

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Nothing: `RecordConfig` logs the resolved configuration, which holds them all."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics; those of the test at step 0, as the whole run's that they are.

        `mlflow ui` draws a metric as bars where all of its points are at step 0.
        """
        spelled = {
            name: _round_float32(value) if isinstance(value, float) else value
            for name, value in metrics.items()
        }
        tested = {name: value for name, value in spelled.items() if name.startswith("test_")}
        others = {name: value for name, value in spelled.items() if name not in tested}
        if tested:
            super().log_metrics(tested, 0)
        if others and not (tested and others.keys() == {"epoch"}):
            super().log_metrics(others, step)

    @rank_zero_only
    def watch(self, gpus: Sequence[int]) -> None:
        """Log system metrics from now to the run's end, unless that was done or not asked for.

        Args:
            gpus: This job's own, as torch counts them.
        """
        if self._unwatched:
            self._unwatched = False
            warn_on_error("system metrics", self._watch, gpus)

    def _watch(self, gpus: Sequence[int]) -> None:
        from pyclassify.tracking.system_metrics import JobMonitor

        monitor = JobMonitor(str(self.run_id), self.written.spool_uri, gpus)
        run.call_before_end(monitor.stop)
        monitor.start()

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        self._checkpoint_callback = checkpoint_callback

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Keep the best weights; Lightning calls this after each of fit, validate and test.

        A run that failed or was stopped ends here at once, since Lightning's launcher may kill
        this process a moment later. One that succeeds ends when all that was asked for is done.
        """
        if status == "failed":
            stopped = isinstance(sys.exc_info()[1], KeyboardInterrupt)
            run.end_run("KILLED" if stopped else "FAILED")
            return
        best = self._checkpoint_callback and self._checkpoint_callback.best_model_path
        if best:
            self._checkpoint_callback = None
            self._log_weights(best)

    def _log_weights(self, path: str) -> None:
        # Without the optimizer's state, a third of the size for Adam.
        kept = ("state_dict", "epoch", "global_step", "pytorch-lightning_version")
        try:
            # This process's own file, whatever callbacks put in.
            checkpoint = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
            with tempfile.TemporaryDirectory() as folder:
                weights = Path(folder, Path(BEST_WEIGHTS_PATH).name)
                data = checkpoints.find_data_state(checkpoint)
                torch.save({**{key: checkpoint[key] for key in kept}, **data}, weights)
                self.experiment.log_artifact(
                    self.run_id, str(weights), str(Path(BEST_WEIGHTS_PATH).parent)
                )
        except Exception as error:  # a trained network is worth more than its copy
            rank_zero_warn(f"the best weights are not in the run ({error}); they are in {path}")


def _round_float32(value: float) -> float:
    """Spell what torch has in 32 bits with as few digits as tell it from all others.

    As a float of Python's, 0.81 would be kept, and shown, as 0.8100000023841858.
    """
    with np.errstate(over="ignore"):
        narrow = np.float32(value)
    return float(str(narrow)) if float(narrow) == value else value


def find_run_logger(trainer: Trainer) -> RunLogger | None:
    """The trainer's `RunLogger`, which may be one of several loggers."""
    return next((each for each in trainer.loggers if isinstance(each, RunLogger)), None)
