"""The training verbs: LightningCLI with the parts of this project as its defaults."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

# Imported so that their bare names can be given to --model and --data.
from pyclassify import datamodule, module  # noqa: F401
from pyclassify.resume import raise_on_stop
from pyclassify.tracking.logger import WEIGHTS, RecordConfig


class Trainer(pl.Trainer):
    """Lightning's Trainer and two more verbs."""

    def train(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Fit, then test with the best checkpoint.

        Args:
            ckpt_path: A checkpoint to go on from.
        """
        self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        checkpoint = self.checkpoint_callback
        best = "best" if checkpoint is not None and checkpoint.best_model_path else None
        self.test(model, datamodule=datamodule, ckpt_path=best)

    def prepare(
        self, model: pl.LightningModule, datamodule: pl.LightningDataModule | None = None
    ) -> None:
        """Download the data, or check that it is there, and train nothing."""
        if datamodule is not None:
            datamodule.prepare_data()
            for stage in ("fit", "test"):
                datamodule.setup(stage)


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
    """Refuse a launch of another size than asked for, and keep stop signals ours."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if world != trainer.num_devices * trainer.num_nodes:
            raise MisconfigurationException(
                f"{world} of {trainer.num_devices} x {trainer.num_nodes} processes (devices x "
                "num_nodes) were launched; in a SLURM job ask for one task a device and start "
                "them by srun, else give --devices and --num_nodes as they are"
            )

    # Lightning sets a SIGTERM handler that broadcasts: in two processes it can wait for ever.
    def on_sanity_check_start(self, *_: Any) -> None:
        raise_on_stop()

    on_train_start = on_validation_start = on_test_start = on_sanity_check_start
    on_predict_start = on_sanity_check_start


class Cli(LightningCLI):
    """`pyclassify fit|validate|test|predict|train|prepare`."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {
            "train": {"model", "datamodule"},
            "prepare": {"model", "datamodule"},
            **LightningCLI.subcommands(),
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "model": {"class_path": "pyclassify.module.Classifier"},
                "data": {"class_path": "pyclassify.datamodule.CIFAR10DataModule"},
            }
        )
        parser.link_arguments(
            "data.num_classes", "model.init_args.num_classes", apply_on="instantiate"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)
        verb = self.config[self.config.subcommand]
        check_devices(verb.trainer.devices, verb.trainer.accelerator)
        if self.config.subcommand in ("validate", "test", "predict"):
            verb.ckpt_path = find_checkpoint(verb.ckpt_path, self.config.subcommand)

    @rank_zero_only
    def after_fit(self) -> None:
        self._summarise("val_accuracy")

    @rank_zero_only
    def after_train(self) -> None:
        self._summarise("test_accuracy")

    after_test = after_train
    after_validate = after_fit

    @rank_zero_only
    def after_prepare(self) -> None:
        sys.stdout.write("The data is in place; next: pyclassify train\n")

    def _summarise(self, metric: str) -> None:
        logger, lines = self.trainer.logger, []
        if metric in self.trainer.callback_metrics:
            lines.append(f"{metric:14} {self.trainer.callback_metrics[metric]:.4f}")
        if best := getattr(self.trainer.checkpoint_callback, "best_model_path", ""):
            lines.append(f"{'checkpoint':14} {os.path.relpath(best)}")
        if logger is not None:
            lines.append(f"{'run':14} {logger.version}")
        lines.append(f"{'next':14} mlflow ui")
        sys.stdout.write("\n" + "\n".join(lines) + "\n")


def run(args: list[str] | None) -> None:
    """Run a training verb.

    Args:
        args: The verb and its options; the process's own without it.
    """
    Cli(
        pl.LightningModule,
        pl.LightningDataModule,
        save_config_callback=RecordConfig,
        save_config_kwargs={"save_to_log_dir": False},
        trainer_class=Trainer,
        trainer_defaults={
            "logger": {"class_path": "pyclassify.tracking.logger.RunLogger"},
            "callbacks": [LaunchCheck()],
            "max_epochs": 10,
        },
        seed_everything_default=0,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=args,
    )


def check_devices(devices: Any, accelerator: str) -> None:
    """Refuse a number of devices that this machine can't give.

    Raises:
        MisconfigurationException: There are fewer, or none was asked for.
    """
    if not re.fullmatch(r"\d+", str(devices)):
        return  # "auto" and lists of indices are Lightning's to judge
    gpus = torch.cuda.device_count()
    if int(devices) < 1:
        raise MisconfigurationException(
            f"devices is {devices}; give 1 or more, a list of GPU indices, or auto"
        )
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus):
        if int(devices) > gpus:
            raise MisconfigurationException(
                f"devices is {devices} and this machine has {gpus} GPUs; give at most as many, or "
                "--accelerator cpu"
            )


def find_checkpoint(given: str | None, verb: str) -> str:
    """Turn a checkpoint's path or a run's id into a path.

    Raises:
        MisconfigurationException: None was given, or there is none.
    """
    if given is None:
        raise MisconfigurationException(
            f"{verb} scores a trained network; give --ckpt_path, a checkpoint file or a run's id"
        )
    if Path(given).is_file():
        return given
    if not re.fullmatch(r"[0-9a-f]{32}", given):
        raise MisconfigurationException(
            f"ckpt_path {given} is neither a file nor a run's id (32 hexadecimal digits)"
        )
    import mlflow

    try:
        return str(mlflow.artifacts.download_artifacts(run_id=given, artifact_path=WEIGHTS))
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise MisconfigurationException(
            f"run {given} has no {WEIGHTS} at {mlflow.get_tracking_uri()} ({error}); `mlflow ui` "
            "lists the runs there, MLFLOW_TRACKING_URI names another place"
        ) from error
