"""What is looked at when a verb starts, in each process."""

import sys

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyclassify.data.loaders import ImageDataModule
from pyclassify.utils.signals import raise_on_stop


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
