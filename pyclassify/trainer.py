"""Lightning's Trainer with the verbs and callbacks of this project."""

import sys
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from pyclassify.loading import ImageDataModule
from pyclassify.resume import raise_on_stop


class Trainer(pl.Trainer):
    """Lightning's Trainer and two more verbs; a verb's docstring is its help."""

    tests_after_fit = False

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
        super().fit(*args, **kwargs)

    def validate(self, *args: Any, **kwargs: Any) -> Any:
        """Score a trained network on the validation images."""
        return super().validate(*args, **kwargs)

    def test(self, *args: Any, **kwargs: Any) -> Any:
        """Score a trained network on the test images."""
        return super().test(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Classify the test images, for a callback such as a BasePredictionWriter to keep."""
        return super().predict(*args, **kwargs)

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
        super().__init__(monitor=monitor, mode=mode, filename=filename, **kwargs)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_monitor(trainer)
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.enable_validation:  # else a later validation may log it
            self._check_monitor(trainer)
        super().on_train_epoch_end(trainer, pl_module)

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
