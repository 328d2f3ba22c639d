"""The training verbs: LightningCLI with the parts of this project as its defaults."""

import logging
import os
import re
import sys
import warnings
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

# Imported so that their bare names can be given to --model and --data.
from pyclassify import datamodule, module  # noqa: F401
from pyclassify.options import VERBS, explain, settings
from pyclassify.tracking.logger import WEIGHTS, RecordConfig
from pyclassify.trainer import BestCheckpoint, LaunchCheck, Trainer


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
        parser.link_arguments(
            "data.num_classes", "model.init_args.num_classes", apply_on="instantiate"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.given = dict(settings(args))
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            verb = self._subcommand_parsers.get(args[0] if args else "", parser)
            raise MisconfigurationException(
                explain(str(error), list(verb.get_defaults().keys()))
            ) from None
        verb = self.config[self.config.subcommand]
        check_devices(verb.trainer.devices, verb.trainer.accelerator)
        if self.config.subcommand in ("validate", "test", "predict"):
            verb.ckpt_path = find_checkpoint(verb.ckpt_path, self.config.subcommand)

    def after_instantiate_classes(self) -> None:
        given = self.given.get("model.num_classes")
        number = getattr(self.datamodule, "num_classes", given)
        if given is not None and str(given) != str(number):
            rank_zero_warn(
                f"the data have {number} classes; --model.num_classes {given} is ignored"
            )

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
        if logger is not None and logger.version:
            lines.append(f"{'run':14} {logger.version}")
        lines.append(f"{'next':14} mlflow ui")
        sys.stdout.write("\n" + "\n".join(lines) + "\n")


def run(args: list[str]) -> None:
    """Run a training verb.

    Args:
        args: The verb and its options, spelled out.
    """
    quieten()
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
            "log_every_n_steps": 10,
        },
        seed_everything_default=0,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_kwargs={verb: {"exit_on_error": False} for verb in VERBS} | {"exit_on_error": False},
        args=args,
    )


def quieten() -> None:
    """Drop what says nothing to a user: advertisements, and notes to Lightning's developers."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    warnings.filterwarnings("ignore", module=r"lightning\.pytorch\.utilities\._pytree")
    warnings.filterwarnings("ignore", message=r".*configure_optimizers` will be overridden by")


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()


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
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus)
    if on_gpu and int(devices) > gpus:
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
