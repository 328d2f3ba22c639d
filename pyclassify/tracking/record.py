"""Record the provenance of a run when it starts, and its results when it ends.

When a run starts, its parameters, config.yaml, dataset inputs, capsule and description are logged,
and the views of its experiment in `mlflow ui`. The results go into its description when it ends.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from pyclassify.data.loaders import ImageDataModule
from pyclassify.data.report import REPORT_NAME
from pyclassify.tracking import capsule, description, parameters, run, ui
from pyclassify.tracking.capsule import DATA_WARNING_TAG, OVERRIDES_TAG, SOURCE_RUN_TAG
from pyclassify.tracking.description import ClassCounts
from pyclassify.tracking.logger import RunLogger, find_run_logger
from pyclassify.tracking.monitor import describe_end
from pyclassify.tracking.prediction_table import Predictions, list_class_names
from pyclassify.tracking.predictions import PredictionLogger
from pyclassify.tracking.run import warn_on_error
from pyclassify.training.finetuning import find_weights_file
from pyclassify.utils.files import is_disk_error
from pyclassify.utils.masking import mask
from pyclassify.utils.text import format_reason, shorten

if TYPE_CHECKING:
    from mlflow import MlflowClient

SKIPPED_TAG = "pyclassify.skipped_files"  # the number of files that can't be decoded

_PREVIEW_NAME = "confusion_matrix.png"
_PREVIEW_FOLDER = "description"
_LOST_SECONDS = 0.5  # for a process that has lost its connection to exit
# A wider preview pushes the right column of MLflow's page out of a window of 1280 pixels.
_MAX_PREVIEW_PIXELS = 600
_MAX_WARNING_LENGTH = 1000  # characters; MLflow's limit is 8,000 for runs and 5,000 for versions


class RunRecorder(SaveConfigCallback):
    """Log parameters, config.yaml, dataset inputs and capsule to a `RunLogger` at the start.

    Args:
        command: The command line as a list of words, without the program's name.

    Raises:
        ValueError: The run is a rerun, and a split has other images than in its source run.

    Example:
        >>> LightningCLI(save_config_callback=RunRecorder, save_config_kwargs={"command": ["fit"]})
    """

    def __init__(self, *args: Any, command: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.command = command

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        logger = find_run_logger(trainer)
        if logger is None:
            return
        config = mask(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))
        if (num_classes := getattr(pl_module, "num_classes", None)) is not None:
            # The data module may have set the number after the configuration was read.
            config["model"].setdefault("init_args", {})["num_classes"] = num_classes
        client, run_id = logger.experiment, str(logger.run_id)
        if logger.spooled_run.attempts > 1:  # a resumed run was recorded at its first start
            return
        weights = None
        if trainer.state.fn == TrainerFn.FITTING:
            describe = parameters.describe_weights
            weights = warn_on_error("digest the weights", describe, config, find_weights_file)
        params = {**self._flatten(config), **parameters.make_weights_parameters(weights)}
        log_parameters = parameters.log_parameters
        warn_on_error(
            "log the parameters", log_parameters, client, run_id, params, is_required=True
        )
        name = f"{parameters.name_network_and_data(params)}-seed{params['seed_everything']}"
        warn_on_error("name the run", run.name_run, name)
        text, file = yaml.safe_dump(config, sort_keys=False), self.config_filename
        warn_on_error(f"log {file}", client.log_text, run_id, text, file, is_required=True)
        self._record_sources(trainer, logger, config, weights)

    def _flatten(self, config: dict[str, Any]) -> dict[str, str]:
        # Skip the validation: the defaults have no values for required options.
        dumped = self.parser.dump(self.parser.get_defaults(), skip_none=False, skip_validation=True)
        return parameters.flatten_parameters(config, yaml.safe_load(dumped))

    def _record_sources(
        self,
        trainer: Trainer,
        logger: RunLogger,
        config: dict[str, Any],
        weights: dict[str, str] | None,
    ) -> None:
        """Log the dataset inputs, the capsule, the description and the views of `mlflow ui`."""
        client, run_id = logger.experiment, str(logger.run_id)
        datamodule, data = getattr(trainer, "datamodule", None), None
        warnings = getattr(datamodule, "data_warnings", ())
        if warnings and trainer.state.fn == TrainerFn.FITTING:
            text = shorten("; ".join(warnings), _MAX_WARNING_LENGTH)
            client.set_tag(run_id, DATA_WARNING_TAG, text)
        try:
            data = describe_data(datamodule)
            if data is not None:
                _log_datasets(client, run_id, data)
                data |= warn_on_error("log the data report", _log_report, logger, datamodule) or {}
        except Exception as error:  # of a custom data module, or of the server
            if is_disk_error(error):
                run.fail_later("log the digests of the data", error)
            else:
                capsule.warn_masked(
                    f"could not log the digests of the data ({error}); the run does not show "
                    "whether its images are those of another run"
                )
        facts = {
            "tracking_uri": logger.spooled_run.tracking_uri or logger.spooled_run.spool_uri,
            "subcommand": _name_command(trainer),
            "command": ["pyclassify", *self.command],
            "hardware": _describe_hardware(trainer),
            "data": data,
            "weights": weights,
        }
        facts = capsule.log_capsule(client, run_id, config, facts, [logger.save_dir])
        warn_on_error(
            "write the description", description.describe_start, client, run_id, config, facts
        )
        warn_on_error("save the views for `mlflow ui`", ui.log_views, logger, config, data, weights)
        check_data(logger.spooled_run.get_server_client(), run_id, data)


def _name_command(trainer: Trainer) -> str:
    command = str(trainer.state.fn and trainer.state.fn.value)
    return "train" if command == "fit" and getattr(trainer, "tests_after_fit", False) else command


def _describe_hardware(trainer: Trainer) -> dict[str, Any]:
    """Describe the hardware and threads of the run, on which the rounding of floats depends."""
    return {
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "accelerator": type(trainer.accelerator).__name__.removesuffix("Accelerator").lower(),
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
    }


def describe_data(datamodule: Any) -> dict[str, Any] | None:
    """Describe the splits that a data module has set up.

    Args:
        datamodule: A data module. Its splits are described if it has a method `digest` that
            returns the digest of each split by its attribute's name (train, val, test).

    Returns:
        `name`, `classes` (the number of classes), and in `splits` the number of `images` and the
        `digest` of each split; None without a data module.
    """
    if datamodule is None:
        return None
    name = type(datamodule).__name__.removesuffix("DataModule")
    digests = datamodule.digest() if hasattr(datamodule, "digest") else {}
    return {
        "name": getattr(datamodule, "dataset_name", name),
        "classes": getattr(datamodule, "num_classes", None),
        "splits": {
            split: {"images": len(getattr(datamodule, split)), "digest": digest}
            for split, digest in digests.items()
        },
    }


def _log_datasets(client: "MlflowClient", run_id: str, data: dict[str, Any]) -> None:
    """Log each split as a dataset input of the run, with the split's name as the context.

    Args:
        client: The client of the run's store.
        run_id: The run.
        data: The result of `describe_data`.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for split, facts in data["splits"].items():
        profile = {"num_rows": facts["images"], "num_classes": data["classes"]}
        source = json.dumps({"tags": {"split": split}})
        dataset = Dataset(
            data["name"], facts["digest"], "code", source, profile=json.dumps(profile)
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split)]))
    client.log_inputs(run_id, inputs)


def _log_report(logger: RunLogger, datamodule: Any) -> dict[str, Any]:
    """Log the data report, and a tag with the number of skipped files.

    Returns:
        `report`, the artifact's name, and `skipped`, that number; empty without a report.
    """
    if not isinstance(datamodule, ImageDataModule):
        return {}
    report = datamodule.make_report()
    if report is None:
        return {}
    client, run_id = logger.experiment, str(logger.run_id)
    client.log_text(run_id, report.text, REPORT_NAME)
    if report.skipped:
        client.set_tag(run_id, SKIPPED_TAG, str(report.skipped))
    return {"report": REPORT_NAME, "skipped": report.skipped}


def check_data(client: "MlflowClient", run_id: str, data: dict[str, Any] | None) -> None:
    """Check that a rerun has the images of its source run.

    Other runs are not checked, and neither is a rerun whose options select other images.

    Args:
        client: The client of the run's store.
        run_id: The run.
        data: The result of `describe_data` for the run.

    Raises:
        ValueError: The digest of a split differs from that of the source run.
    """
    try:
        tags = client.get_run(run_id).data.tags
        source = tags.get(SOURCE_RUN_TAG)
        if source is None or parameters.may_change_images(tags.get(OVERRIDES_TAG, "")):
            return
        expected = (capsule.read_facts(client, source)["data"] or {}).get("splits", {})
    except Exception as error:  # of any kind of store
        capsule.warn_masked(f"could not compare the data with those of the source run ({error})")
        return
    actual = (data or {}).get("splits", {})
    for split in expected.keys() & actual.keys():
        before, now = expected[split], actual[split]
        if before["digest"] != now["digest"]:
            raise ValueError(
                f"the {split} images differ from those of run {source}: found digest "
                f"{now['digest']} ({now['images']} images), expected {before['digest']} "
                f"({before['images']} images); restore the images, or give their folder by "
                "--data_path"
            )


class DescriptionUpdater(Callback):
    """Write a run's results into its description when it ends, or the error that ended it.

    Place this callback after `PredictionLogger`, whose results it describes.

    Example:
        >>> Trainer(logger=RunLogger(), callbacks=[PredictionLogger(), DescriptionUpdater()])
    """

    def __init__(self) -> None:
        self._logger: RunLogger | None = None
        self._epochs = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._logger = find_run_logger(trainer) if trainer.is_global_zero else None
        run.handle_crashes()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epochs = trainer.current_epoch
        if not getattr(trainer, "tests_after_fit", False):
            self._write_results(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._write_results(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_results(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_results(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # A stopped run has no error, and no time left for a description.
        if self._logger is not None and isinstance(exception, Exception):
            reason = _find_lost_process(trainer) or format_reason(exception)
            self._write(description.describe_failure, reason)  # before the upload stops
            run.set_final_status("FAILED", reason)

    def _write_results(self, trainer: Trainer) -> None:
        if self._logger is None:
            return
        counts, preview = None, None
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, PredictionLogger) and callback.predictions is not None:
                data = getattr(trainer, "datamodule", None)
                predictions = callback.predictions
                counts = warn_on_error(
                    "count the results by class", _count_by_class, predictions, data
                )
                if png := callback.figures.get(_PREVIEW_NAME):
                    preview = warn_on_error(
                        "log the preview figure", _log_preview, self._logger, png
                    )
        self._write(description.describe_results, counts, self._epochs, preview or "")

    def _write(self, write: Callable[..., None], *args: Any) -> None:
        if self._logger is not None:
            client, run_id = self._logger.experiment, str(self._logger.run_id)
            warn_on_error("write the description", write, client, run_id, *args)


def _find_lost_process(trainer: Trainer) -> str:
    """Find how another process of the run has ended, which made this one fail; empty if none."""
    launcher: Any = trainer.strategy.launcher
    deadline = time.monotonic() + _LOST_SECONDS
    while processes := getattr(launcher, "procs", []):
        for rank, process in enumerate(processes, 1):
            if exit_code := process.poll():
                return f"rank {rank} ended with {describe_end(exit_code)[1]}"
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return ""


def _log_preview(logger: RunLogger, png: bytes) -> str:
    """Log a smaller copy of a figure for the description; return the artifact's path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, _PREVIEW_NAME)
        image = Image.open(BytesIO(png)).convert("RGB")
        image.thumbnail((_MAX_PREVIEW_PIXELS, _MAX_PREVIEW_PIXELS), Image.Resampling.LANCZOS)
        image.save(path)
        logger.experiment.log_artifact(logger.run_id, str(path), _PREVIEW_FOLDER)
    return f"{_PREVIEW_FOLDER}/{_PREVIEW_NAME}"


def _count_by_class(predictions: Predictions, datamodule: Any) -> ClassCounts:
    names = list_class_names(datamodule, predictions.num_classes)
    total = np.bincount(predictions.labels, minlength=len(names))
    correct = np.bincount(predictions.labels[predictions.correct], minlength=len(names))
    return ClassCounts(names, total.tolist(), correct.tolist())
