"""Run the training commands: LightningCLI with this project's classes as its defaults."""

import logging
import os
import pickle
import re
import tempfile
import warnings
from argparse import ArgumentError
from functools import partial
from pkgutil import resolve_name
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn
from torch import Tensor
from yaml import YAMLError

import pyclassify

# Imported so that their bare names can be given to --model and --data.
from pyclassify import datamodule  # noqa: F401
from pyclassify.cli.ckpt_path import (
    apply_data_state,
    check_resume_path,
    find_initial_weights,
    resolve_weights,
)
from pyclassify.cli.errors import format_parser_error, refuse_invalid_options
from pyclassify.cli.help import clean_docstring
from pyclassify.cli.network import merge_network_options, register_network_type
from pyclassify.cli.options import HELP_TITLES, get_parser_kwargs
from pyclassify.cli.summary import write_data_summary, write_prediction_summary, write_summary
from pyclassify.module import Classifier
from pyclassify.registry.register import RegisterModel
from pyclassify.registry.source import read_model_config
from pyclassify.tracking.local_files import CheckpointCleaner
from pyclassify.tracking.logged_model import ModelLogger
from pyclassify.tracking.logger import RunLogger
from pyclassify.tracking.metrics import RunMetrics
from pyclassify.tracking.predictions import PredictionLogger
from pyclassify.tracking.record import DescriptionUpdater, RunRecorder
from pyclassify.training.checkpoints import BestCheckpoint, read_data_state
from pyclassify.training.distributed import destroy_process_group_on_exit
from pyclassify.training.exact_resume import Resume
from pyclassify.training.finetuning import set_weights_finder, trainable_parameters
from pyclassify.training.forward import check_network
from pyclassify.training.optim import WarmupCosine, count_steps, exclude_from_weight_decay
from pyclassify.training.prediction_writer import PredictionWriter, check_output
from pyclassify.training.trainer import LaunchCheck, Trainer, check_processes
from pyclassify.utils.duplicate_keys import check_duplicate_keys
from pyclassify.utils.mlflow_settings import configure_mlflow
from pyclassify.utils.options import UNSET, UsageError, list_settings
from pyclassify.utils.text import format_error, join_lines, shorten

# A setting of each group, to name in errors.
_EXAMPLES = {
    "trainer": "max_epochs",
    "checkpoint": "monitor",
    "resume": "every_minutes",
    "register": "name",
}
_LOG_MODEL_HELP = (
    "Log the trained network as an MLflow model, which can be registered and served. With "
    "`register`, a model is logged in any case."
)
_MAX_SHOWN = 60
# Lines of Lightning that tell a user nothing: another line names the checkpoint that was loaded.
_SILENCED = ("Tip:", "TPU available: False", "Restoring states from the checkpoint path")
_load_yaml = get_loader("yaml")  # jsonargparse's own
_RUN_LOGGER = "pyclassify.tracking.logger.RunLogger"
_EXPORTED = "pyclassify.serving.export.ExportedClassifier"
# The trainer of `prepare`: a login node has none of the devices that the configuration names.
_PREPARE_TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "plugins": None,
    "precision": None,
    "strategy": "auto",
}


class TrainingCli(LightningCLI):
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
            "predict": {"model", "dataloaders", "datamodule", "return_predictions"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Resume, "resume")
        parser.add_lightning_class_args(RegisterModel, "register")
        parser.add_argument("--log_model", type=bool, default=True, help=_LOG_MODEL_HELP)
        parser.add_optimizer_args()
        parser.add_lr_scheduler_args()
        parser.link_arguments(
            "data.num_classes", "model.init_args.num_classes", apply_on="instantiate"
        )
        for key, group in (parser.groups or {}).items():
            group.title = HELP_TITLES.get(key, group.title)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.given_settings = dict(list_settings(args))
        self.given_ckpt_path: str | None = None
        self.resolved_ckpt_path: str | None = None
        register_network_type()
        if "--help" in args:
            for action in self._subcommand_parsers[args[0]]._actions:
                action.help = clean_docstring(action.help or "")
        try:
            self.config = parser.parse_args(merge_network_options(args))
        except ArgumentError as error:
            raise self._translate_error(error, parser, args[0]) from None
        except MisconfigurationException as error:
            raise UsageError(join_lines(str(error))) from error
        chosen = self.config[self.config.subcommand]
        for key in _EXAMPLES:
            if not isinstance(chosen[key], Namespace):
                raise UsageError(
                    f"invalid {key}: {chosen[key]!r} (expected settings, such as "
                    f"{key}.{_EXAMPLES[key]})"
                )
        if chosen.trainer.enable_checkpointing is False:
            self._subcommand_parsers[self.config.subcommand].callback_keys[:] = ["register"]
        if self.config.subcommand == "prepare":
            for key, value in _PREPARE_TRAINER.items():
                chosen.trainer[key] = value
        uri = _tracking_uri(chosen)
        set_weights_finder(partial(find_initial_weights, self.downloads, uri))
        _check_devices(chosen.trainer.devices, chosen.trainer.accelerator)
        _check_seed(chosen.seed_everything)
        if self.config.subcommand in ("validate", "test", "predict"):
            self._resolve_ckpt_path(parser, self.config.subcommand, chosen)
        elif self.config.subcommand != "prepare":
            check_resume_path(chosen.ckpt_path, self.config.subcommand)

    def _translate_error(
        self, error: ArgumentError, parser: LightningArgumentParser, command: str
    ) -> UsageError:
        keys = self._subcommand_parsers.get(command, parser).get_defaults().keys()
        return UsageError(format_parser_error(str(error), list(keys), command))

    def _resolve_ckpt_path(
        self, parser: LightningArgumentParser, command: str, chosen: Namespace
    ) -> None:
        """Resolve the checkpoint or registered model to evaluate, and its network."""
        if command == "predict" and chosen.output is not None:
            check_output(chosen.output)
        self.given_ckpt_path, uri = chosen.ckpt_path, _tracking_uri(chosen)
        weights = resolve_weights(self.given_ckpt_path, command, self.downloads, uri)
        network: dict[str, Any] = {}
        if weights.is_program:
            network = {"class_path": _EXPORTED, "init_args": {"program": weights.path}}
        else:
            self.resolved_ckpt_path = weights.path
            if command == "predict" and weights.run is not None and not self._is_model_given():
                network = read_model_config(weights.run.info.run_id, self.downloads, uri)
        chosen.ckpt_path = self.resolved_ckpt_path
        if network:
            try:
                self.config = parser.parse_object({command: {"model": network}}, self.config)
            except ArgumentError as error:
                raise self._translate_error(error, parser, command) from None

    def _is_model_given(self) -> bool:
        settings = list_settings(self.save_config_kwargs["command"])
        return any(name.partition(".")[0] == "model" for name, _ in settings)

    def _parse_ckpt_path(self) -> None:
        path = self.config[self.config.subcommand].get("ckpt_path")
        try:
            super()._parse_ckpt_path()
        except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
            raise MisconfigurationException(
                f"{path} is not a checkpoint; give --ckpt_path a checkpoint file or a run's ID"
            ) from error
        if self.config.subcommand == "predict":
            chosen = self.config.predict
            if path is not None:
                apply_data_state(chosen, read_data_state(path), self.given_settings)
            if "MLFLOW_RUN_ID" not in os.environ and _is_run_logger(chosen.trainer.logger):
                chosen.trainer.logger = False  # to score images makes no run

    def before_instantiate_classes(self) -> None:
        if self.given_ckpt_path is not None:
            # The run records the given path: the downloaded file is removed at the end.
            self.config[self.config.subcommand].ckpt_path = self.given_ckpt_path

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if self.given_ckpt_path is None:
            return kwargs
        return {**kwargs, "ckpt_path": self.resolved_ckpt_path}

    @staticmethod
    def configure_optimizers(
        lightning_module: pl.LightningModule, optimizer: Any, lr_scheduler: Any = None
    ) -> Any:
        """Restrict a named optimizer to the trainable parameters: LightningCLI gives it all."""
        for group in optimizer.param_groups:
            group["params"][:] = trainable_parameters(group["params"])
        if not getattr(lightning_module, "decay_bias_and_norm", True):
            exclude_from_weight_decay(optimizer, lr_scheduler)
        if isinstance(lr_scheduler, WarmupCosine):
            return lr_scheduler.configure(count_steps(lightning_module.trainer))
        return LightningCLI.configure_optimizers(lightning_module, optimizer, lr_scheduler)

    def instantiate_classes(self) -> None:
        with refuse_invalid_options():
            super().instantiate_classes()

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        try:  # which makes the optimizer and the schedule
            super()._add_configure_optimizers_method_to_model(subcommand)
        except (TypeError, ValueError) as error:
            raise UsageError(f"invalid optimizer or lr_scheduler: {format_error(error)}") from error

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        try:
            trainer = super().instantiate_trainer(**kwargs)
        # How Lightning refuses a setting's value, or one that needs a package to be installed.
        except (TypeError, ValueError, RuntimeError, ImportError) as error:
            raise MisconfigurationException(
                f"invalid trainer settings: {format_error(error)}"
            ) from error
        chosen = self.config[self.config.subcommand]
        if self.config.subcommand != "prepare":
            check_processes(trainer, chosen.trainer.devices, chosen.trainer.num_nodes)
        # `train --register` logs the model itself, and requires it.
        is_registered = self.config.subcommand == "train" and chosen.register.name is not None
        if chosen.log_model and not is_registered:
            trainer.callbacks.insert(0, ModelLogger())  # type: ignore[attr-defined]
        trainer.callbacks.append(CheckpointCleaner())  # type: ignore[attr-defined]
        return trainer

    def after_instantiate_classes(self) -> None:
        if self.given_settings.get("model.freeze") not in UNSET:  # of what is frozen on purpose
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
        given = self.given_settings.get("model.num_classes")
        number = getattr(self.datamodule, "num_classes", given)
        if given is not None and str(given) != str(number):
            rank_zero_warn(f"--model.num_classes {given} is ignored: the data has {number} classes")
        is_checked = self.config.subcommand not in ("prepare", "predict")
        if is_checked and isinstance(self.model, Classifier):
            size = getattr(getattr(self.datamodule, "preprocess", None), "crop", None)
            if isinstance(size, int):
                try:
                    check_network(self.model.model, self.model.num_classes, size)
                except MisconfigurationException as error:
                    raise UsageError(str(error)) from error

    @rank_zero_only
    def after_fit(self) -> None:
        checkpoint = self.trainer.checkpoint_callback
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_score is not None:
            self._write_summary(str(checkpoint.monitor), checkpoint.best_model_score)
        else:
            self.after_validate()

    @rank_zero_only
    def after_validate(self) -> None:
        self._write_summary("val_accuracy", self.trainer.callback_metrics.get("val_accuracy"))

    @rank_zero_only
    def after_test(self) -> None:
        self._write_summary("test_accuracy", self.trainer.callback_metrics.get("test_accuracy"))

    after_train = after_test

    @rank_zero_only
    def after_predict(self) -> None:
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, PredictionWriter) and callback.count:
                write_prediction_summary(callback)

    @rank_zero_only
    def after_prepare(self) -> None:
        write_data_summary(self.datamodule, self.save_config_kwargs["command"])

    def _write_summary(self, metric: str, value: Tensor | None) -> None:
        argv = self.save_config_kwargs["command"]
        write_summary(self.trainer, argv, metric, value, self.given_ckpt_path)


def _tracking_uri(chosen: Namespace) -> str | None:
    logger = chosen.trainer.logger
    return logger.get("init_args.tracking_uri") if isinstance(logger, Namespace) else None


def _is_run_logger(logger: Any) -> bool:
    return isinstance(logger, Namespace) and resolve_name(logger.class_path) is RunLogger


def run_training_command(args: list[str], given: list[str] | None = None) -> None:
    """Run a training command.

    Args:
        args: The command and its expanded options, as `expand_options` returns them.
        given: The command line as it was typed, to record with the run; `args` by default.
    """
    _silence_advertisements()
    _record_defining_modules()
    set_loader("yaml", _load_without_duplicates, (YAMLError,))
    with destroy_process_group_on_exit(), tempfile.TemporaryDirectory() as downloads:
        TrainingCli(
            downloads,
            pl.LightningModule,
            pl.LightningDataModule,
            save_config_callback=RunRecorder,
            save_config_kwargs={"save_to_log_dir": False, "command": given or args},
            trainer_class=Trainer,
            trainer_defaults={
                "logger": {"class_path": _RUN_LOGGER},
                "callbacks": [
                    LaunchCheck(os.environ.get("MLFLOW_RUN_ID")),
                    PredictionLogger(),
                    RunMetrics(),
                    DescriptionUpdater(),
                ],
                "devices": 1,
                "max_epochs": 10,
                "log_every_n_steps": 10,
            },
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_kwargs=get_parser_kwargs(),
            args=args,
        )


def _load_without_duplicates(text: str, path: str = "") -> Any:
    """Load settings as jsonargparse does, and refuse a key that is given twice.

    Args:
        text: A file of settings, or an option's value.
        path: The file, where jsonargparse gives it.
    """
    value = _load_yaml(text)
    if isinstance(value, dict | list):
        try:
            check_duplicate_keys(text, path or repr(shorten(join_lines(text), _MAX_SHOWN)))
        except ValueError as error:
            raise MisconfigurationException(str(error)) from None
    return value


def _record_defining_modules() -> None:
    """Have configurations name a class by its module, not by the package's shorter export.

    Otherwise a run's parameters would depend on whether the class was given by path or bare name.
    Releases of jsonargparse without this private name give the shorter one in either case.
    """
    try:
        from jsonargparse._util import resolved_import_paths
    except ImportError:
        return
    for name in pyclassify.__all__:
        exported = getattr(pyclassify, name)
        resolved_import_paths.add(exported, f"{exported.__module__}.{name}")


def _silence_advertisements() -> None:
    """Silence advertisements, and notes to Lightning's developers."""
    configure_mlflow()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_useful)
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.pytorch\.utilities\._pytree")
    # As in each run that resumes.
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=r".*configure_optimizers` will be overridden by")
    # `Classifier` has this hook, and no data module of this package.
    warnings.filterwarnings(
        "ignore", message=r"You have overridden `on_before_batch_transfer` in `L"
    )
    if "SLURM_JOB_ID" not in os.environ:  # on a login node: in a job `LaunchCheck` looks at it
        warnings.filterwarnings("ignore", message=r"The `srun` command is available")


def _is_useful(record: logging.LogRecord) -> bool:
    return not any(start in record.getMessage() for start in _SILENCED)


def _check_devices(devices: Any, accelerator: str) -> None:
    """Refuse a number of devices that is invalid, or that this machine does not have.

    Raises:
        UsageError: The number is below 1, or the accelerator has no such devices.
        MisconfigurationException: This machine has fewer devices.
    """
    if devices == "auto":
        return
    kinds = [kind for kind in (CUDAAccelerator, MPSAccelerator) if kind.is_available()]
    gpus = kinds[0].auto_device_count() if kinds else 0
    on_gpu = accelerator in ("gpu", "cuda", "mps") or (accelerator == "auto" and gpus > 0)
    kind_of_error = UsageError if accelerator == "cpu" else MisconfigurationException
    if re.search(r"[\[,]", str(devices)):
        if not on_gpu:
            raise kind_of_error(
                f"invalid devices: {devices}, a list of GPUs, on the CPU (expected 1 or more)"
            )
        return  # Lightning checks that they exist
    count = int(devices) if re.fullmatch(r"-?\d+", str(devices)) else 0
    if count < -1 or count == 0:
        raise UsageError(
            f"invalid devices: {devices} (expected 1 or more, a list of GPU indices, or auto)"
        )
    if count == -1 and not on_gpu:
        raise kind_of_error("invalid devices: -1, all GPUs, on the CPU (expected 1 or more)")
    if on_gpu and count > gpus:
        raise MisconfigurationException(
            f"devices is {devices}, and this machine has {gpus} GPUs; reduce --devices, or give "
            "--accelerator cpu"
        )


def _check_seed(seed: int | bool) -> None:
    """Refuse a seed that a random number generator does not accept.

    Raises:
        UsageError: It is not in NumPy's range.
    """
    if not 0 <= seed < 2**32:
        raise UsageError(f"invalid seed: {seed} (expected a whole number from 0 to 2^32 - 1)")
