"""Lightning's Trainer with the verbs and callbacks of this project."""

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from pyclassify.loading import ImageDataModule
from pyclassify.resume import WRITE_SECONDS
from pyclassify.scoring import WriteTable
from pyclassify.signals import busy, raise_on_stop
from pyclassify.steps import StepLoop


class Trainer(pl.Trainer):
    """Lightning's Trainer and two more verbs; a verb's docstring is its help."""

    tests_after_fit = False
    reads_weights_only: bool | None = None
    starts_from: str | None = None  # the checkpoint that `fit` was given

    def train(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Fit, then test with the best checkpoint.

        Args:
            ckpt_path: A checkpoint to go on from.
            weights_only: Whether to read nothing but tensors and plain values out of checkpoints.
        """
        self.tests_after_fit = True
        self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=weights_only)
        best = "best" if getattr(self.checkpoint_callback, "best_model_path", "") else None
        self.test(model, datamodule=datamodule, ckpt_path=best, weights_only=weights_only)

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Train, and keep the best checkpoint."""
        self.reads_weights_only = kwargs.get("weights_only")
        self.starts_from = kwargs.get("ckpt_path")
        before = self.fit_loop.epoch_loop
        if not isinstance(before, StepLoop):
            self.fit_loop.epoch_loop = StepLoop(self, before.min_steps, before.max_steps)
        if isinstance(self.strategy, DDPStrategy):
            # Gradients are where they are sent from, and not copied there at each step.
            self.strategy._ddp_kwargs.setdefault("gradient_as_bucket_view", True)
        super().fit(*args, **kwargs)

    def validate(self, *args: Any, **kwargs: Any) -> Any:
        """Score a trained network on the validation images."""
        return super().validate(*args, **kwargs)

    def test(self, *args: Any, **kwargs: Any) -> Any:
        """Score a trained network on the test images."""
        return super().test(*args, **kwargs)

    def predict(  # type: ignore[override]
        self,
        model: pl.LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        return_predictions: bool | None = False,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        output: str | None = "predictions.parquet",
    ) -> Any:
        """Classify the images of a folder, or the test images, and write a table of the answers.

        Args:
            ckpt_path: A checkpoint file, the id of a run that kept its best weights, or a
                registered model: models:/NAME@ALIAS or models:/NAME/VERSION.
            weights_only: Whether to read nothing but tensors and plain values out of a checkpoint.
            output: The table, a file that ends in .parquet or .csv, with a row an image: file,
                label, probability; null for none.
        """
        if output is not None:
            self.callbacks.append(WriteTable(output))  # type: ignore[attr-defined]
        return super().predict(
            model, dataloaders, datamodule, return_predictions, ckpt_path, weights_only
        )

    def prepare(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Download the data, or check that it is there, and train nothing.

        Args:
            ckpt_path: Not used, as the next; here so that one configuration serves every verb.
            weights_only: Not used.
        """
        if datamodule is not None:
            datamodule.prepare_data()
            for stage in ("fit", "test"):
                datamodule.setup(stage)


# Lightning means `int | float`, but typing may hand out a `float | int` that some other library has
# made before, and `--trainer.limit_val_batches=1` would be 1.0: all batches instead of one.
for _limited in ("train", "val", "test", "predict"):
    pl.Trainer.__init__.__annotations__[f"limit_{_limited}_batches"] = int | float | None


class BestCheckpoint(ModelCheckpoint):
    """Keep the best checkpoint, or the last where nothing called `monitor` is logged.

    Args:
        monitor: The metric that says which is best.
        mode: Whether its max or its min is best.
        filename: The checkpoint's name, which may have metrics in it.
    """

    def __init__(
        self,
        monitor: str | None = "val_accuracy",
        mode: str = "max",
        filename: str | None = "best",
        **kwargs: Any,
    ) -> None:
        # In a run's own folder a file that is there was written by this run, before it was killed.
        own = kwargs.get("dirpath") is None and kwargs.get("save_top_k", 1) == 1
        counts = kwargs.pop("enable_version_counter", not own)
        super().__init__(
            monitor=monitor, mode=mode, filename=filename, enable_version_counter=counts, **kwargs
        )

    @property
    def state_key(self) -> str:
        return type(self).__qualname__  # whatever becomes of `monitor`

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(self._rebase(state_dict))
        self.monitor = state_dict["monitor"]

    def _rebase(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Call the files of this run by the names that they have from where it goes on."""
        before, now = str(state_dict.get("dirpath")), str(self.dirpath)
        if before == now or Path(before).parts[-3:] != Path(now).parts[-3:]:
            return state_dict  # another run's, which Lightning forgets
        text = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: state_dict[name].replace(before, now, 1) for name in text}
        best = {
            path.replace(before, now, 1): score
            for path, score in state_dict["best_k_models"].items()
        }
        return {**state_dict, **moved, "best_k_models": best, "dirpath": now}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_monitor(trainer)
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.enable_validation:  # else a later validation may log it
            self._check_monitor(trainer)
        super().on_train_epoch_end(trainer, pl_module)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        with busy(WRITE_SECONDS):  # here and not where it is written, as all processes wait for it
            super()._save_checkpoint(trainer, filepath)

    def _check_monitor(self, trainer: pl.Trainer) -> None:
        logged = sorted(trainer.callback_metrics)
        if self.monitor is not None and self.monitor not in logged and not trainer.sanity_checking:
            rank_zero_warn(
                f"no metric is called {self.monitor!r}, so the last checkpoint is kept instead of "
                f"the best; --checkpoint.monitor takes one of {', '.join(logged) or 'none'}"
            )
            self.monitor = None


class LaunchCheck(Callback):
    """Refuse at the start what would fail later, and keep stop signals ours."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        connector = trainer._accelerator_connector
        found = connector.cluster_environment
        if isinstance(found, SLURMEnvironment) and connector._cluster_environment_flag is None:
            # Lightning's would save in mid-step, and any later job in this folder go on from that.
            found.auto_requeue = False
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if world != trainer.num_devices * trainer.num_nodes:
            raise MisconfigurationException(
                f"{world} of {trainer.num_devices} x {trainer.num_nodes} processes (devices x "
                "num_nodes) were launched; in a SLURM job ask for one task a device and start "
                "them by srun, else give --devices and --num_nodes as they are"
            )
        if stage == "fit" and getattr(trainer, "tests_after_fit", False):
            data = getattr(trainer, "datamodule", None)
            # That test images are missing is better known now than after the last epoch; a data
            # module of another's may hold but one stage's data.
            if isinstance(data, ImageDataModule):
                data.setup("test")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """End the progress bar's line, so that the error has one of its own."""
        if trainer.is_global_zero and trainer.progress_bar_callback is not None:
            sys.stdout.write("\n")

    # Lightning sets a SIGTERM handler that broadcasts: in two processes it can wait for ever.
    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise_on_stop()

    on_train_start = on_validation_start = on_test_start = on_sanity_check_start
    on_predict_start = on_sanity_check_start
