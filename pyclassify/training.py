"""The training verbs: LightningCLI with the parts of this project as its defaults."""

import logging
import os
import pickle
import sys
import tempfile
import warnings
from argparse import ArgumentError
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

# Imported so that their bare names can be given to --model and --data.
from pyclassify import datamodule, module  # noqa: F401
from pyclassify.checks import check_devices, check_resumable, check_seed, find_checkpoint
from pyclassify.options import PLAIN_VERBS, SHORT_OPTIONS, VERBS, settings
from pyclassify.summary import summarise
from pyclassify.tracking.describe import DescribeRun
from pyclassify.tracking.metrics import RunMetrics
from pyclassify.tracking.predictions import KeepPredictions
from pyclassify.tracking.record import RecordConfig
from pyclassify.trainer import BestCheckpoint, LaunchCheck, Trainer
from pyclassify.wording import explain

DESCRIPTION = "Train any network on any images as one MLflow run."
EPILOG = "Short options: " + ", ".join(
    f"--{short} for --{full}" for short, full in SHORT_OPTIONS.items()
)
EPILOG += (
    "; --learning_rate is --optimizer.lr where an optimizer is named. "
    "--seeds N trains with N seeds, from --seed on, and one run above theirs has the means. "
    "--model.help and --data.help show the options that the network and the data have."
)
MORE_VERBS = "More verbs, for runs that there are: " + ", ".join(PLAIN_VERBS)

# The headings of the help, where the docstrings of Lightning and torch are for other readers.
TITLES = {
    "trainer": "How to train",
    "model": "What to train",
    "data": "What to train it on",
    "checkpoint": "Which weights to keep",
    "optimizer": "The optimizer, in place of the model's own",
    "lr_scheduler": "Its learning rate's schedule",
}

# What `prepare` runs with: a login node has none of the devices that the data is for.
ANYWHERE = {
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "plugins": None,
    "precision": None,
    "strategy": "auto",
}


class Cli(LightningCLI):
    """`pyclassify fit|validate|test|predict|train|prepare`.

    Args:
        downloads: A folder for the checkpoints of runs.
    """

    def __init__(self, downloads: str, *args: Any, **kwargs: Any) -> None:
        self.downloads = downloads
        super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {
            "train": {"model", "datamodule"},
            "prepare": {"model", "datamodule"},
            **LightningCLI.subcommands(),
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_optimizer_args()
        parser.add_lr_scheduler_args()
        parser.link_arguments(
            "data.num_classes", "model.init_args.num_classes", apply_on="instantiate"
        )
        for key, group in (parser.groups or {}).items():
            group.title = TITLES.get(key, group.title)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.given = dict(settings(args))
        self.scored: str | None = None
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            verb = self._subcommand_parsers.get(args[0], parser)
            raise MisconfigurationException(
                explain(str(error), list(verb.get_defaults().keys()))
            ) from None
        chosen = self.config[self.config.subcommand]
        for key in ("trainer", "checkpoint"):
            if not isinstance(chosen[key], Namespace):
                raise MisconfigurationException(
                    f"{key} is {chosen[key]!r}; it takes settings of its own, such as "
                    f"{key}.{'max_epochs' if key == 'trainer' else 'monitor'}"
                )
        if chosen.trainer.enable_checkpointing is False:
            self._subcommand_parsers[self.config.subcommand].callback_keys.remove("checkpoint")
        if self.config.subcommand == "prepare":
            for key, value in ANYWHERE.items():
                chosen.trainer[key] = value
        check_devices(chosen.trainer.devices, chosen.trainer.accelerator)
        check_seed(chosen.seed_everything)
        if self.config.subcommand in ("validate", "test", "predict"):
            self.scored = chosen.ckpt_path
            self.found = chosen.ckpt_path = find_checkpoint(
                chosen.ckpt_path, self.config.subcommand, self.downloads, _tracking_uri(chosen)
            )
        elif self.config.subcommand != "prepare":
            check_resumable(chosen.ckpt_path, self.config.subcommand)

    def _parse_ckpt_path(self) -> None:
        path = self.config[self.config.subcommand].get("ckpt_path")
        try:
            super()._parse_ckpt_path()
        except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
            raise MisconfigurationException(
                f"ckpt_path {path} is no checkpoint; give a file that a run saved, or a run's id"
            ) from error

    def before_instantiate_classes(self) -> None:
        if self.scored is not None:
            # The run records what was given: what was found may be gone after it.
            self.config[self.config.subcommand].ckpt_path = self.scored

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return kwargs if self.scored is None else {**kwargs, "ckpt_path": self.found}

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        try:
            return super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError) as error:  # how Lightning refuses a setting's value
            raise MisconfigurationException(f"the trainer can't be made: {error}") from error

    def after_instantiate_classes(self) -> None:
        given = self.given.get("model.num_classes")
        number = getattr(self.datamodule, "num_classes", given)
        if given is not None and str(given) != str(number):
            rank_zero_warn(
                f"the data have {number} classes; --model.num_classes {given} is ignored"
            )

    @rank_zero_only
    def after_fit(self) -> None:
        checkpoint = self.trainer.checkpoint_callback
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_score is not None:
            summarise(self.trainer, str(checkpoint.monitor), checkpoint.best_model_score)
        else:
            self.after_validate()

    @rank_zero_only
    def after_validate(self) -> None:
        self._summarise("val_accuracy")

    @rank_zero_only
    def after_test(self) -> None:
        self._summarise("test_accuracy")

    after_train = after_test

    @rank_zero_only
    def after_prepare(self) -> None:
        sys.stdout.write("The data is in place; next: pyclassify train\n")

    def _summarise(self, metric: str) -> None:
        summarise(self.trainer, metric, self.trainer.callback_metrics.get(metric), self.scored)


def _tracking_uri(chosen: Namespace) -> str | None:
    logger = chosen.trainer.logger
    return logger.get("init_args.tracking_uri") if isinstance(logger, Namespace) else None


def run(args: list[str], given: list[str] | None = None) -> None:
    """Run a training verb.

    Args:
        args: The verb and its options, spelled out.
        given: The same as they were given, for the record.
    """
    quieten()
    strict = {"exit_on_error": False, "allow_abbrev": False}
    with tempfile.TemporaryDirectory() as downloads:
        Cli(
            downloads,
            pl.LightningModule,
            pl.LightningDataModule,
            save_config_callback=RecordConfig,
            save_config_kwargs={"save_to_log_dir": False, "command": given or args},
            trainer_class=Trainer,
            trainer_defaults={
                "logger": {"class_path": "pyclassify.tracking.logger.RunLogger"},
                "callbacks": [LaunchCheck(), KeepPredictions(), RunMetrics(), DescribeRun()],
                "devices": 1,
                "max_epochs": 10,
                "log_every_n_steps": 10,
            },
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_kwargs={
                "prog": "pyclassify",
                "description": DESCRIPTION,
                "epilog": f"{MORE_VERBS}; each has a --help of its own.",
                **strict,
                **{
                    verb: {
                        "usage": f"pyclassify {verb} [--config FILE] [--OPTION VALUE ...]",
                        "epilog": EPILOG,
                        **strict,
                    }
                    for verb in VERBS
                },
            },
            args=args,
        )


def quieten() -> None:
    """Drop what says nothing to a user: advertisements, and notes to Lightning's developers."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    warnings.filterwarnings("ignore", module=r"lightning\.pytorch\.utilities\._pytree")
    warnings.filterwarnings("ignore", message=r".*configure_optimizers` will be overridden by")


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()
