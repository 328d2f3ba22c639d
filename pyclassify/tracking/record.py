"""What a run is, recorded when it starts: parameters, configuration, data, capsule, description."""

import json
import shlex
import tempfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from pyclassify.tracking import capsule, description, parameters, run, ui
from pyclassify.tracking.capsule import OVERRIDDEN, SOURCE_RUN
from pyclassify.tracking.description import Scores
from pyclassify.tracking.logger import RunLogger, find_run_logger
from pyclassify.tracking.prediction_table import Predictions, list_class_names
from pyclassify.tracking.predictions import PredictionLogger
from pyclassify.tracking.run import attempt
from pyclassify.utils.masking import mask

# Options of the data that change how images are fed, or where they lie, but not which they are.
_SAME_IMAGES = (
    *("batch_size", "data_path", "num_workers", "exact", "cache"),
    *("resize", "crop", "pad", "flip", "erase", "color", "mean", "std"),
)
MATRIX = "confusion_matrix.png"
FOLDER = "description"
MOST_PIXELS = 600  # wider, it pushes the page's right column out of a window of 1280


class RecordConfig(SaveConfigCallback):
    """Log the resolved configuration: as parameters, and whole as the artifact config.yaml.

    Beside it the run's capsule, and its data as dataset inputs.

    Args:
        command: The command line, as it was given.
    """

    def __init__(self, *args: Any, command: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.command = command

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        logger = find_run_logger(trainer)
        if logger is None:
            return
        config = mask(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))
        if (given := getattr(pl_module, "num_classes", None)) is not None:
            # The data say how many, after the configuration was read, or it was an option.
            config["model"].setdefault("init_args", {})["num_classes"] = given
        client, run_id = logger.experiment, str(logger.run_id)
        if logger.written.attempts > 1:  # what the run is was recorded when it was started first
            return
        fits = trainer.state.fn == TrainerFn.FITTING
        start = attempt("the digest of the weights", parameters.describe, config) if fits else None
        params = {**self._flatten(config), **parameters.of_weights(start)}
        attempt("the parameters", parameters.log, client, run_id, params)
        name = f"{parameters.name_parts(params)}-seed{params['seed_everything']}"
        attempt("the run's name", run.name, name)
        text = yaml.safe_dump(config, sort_keys=False)
        attempt(self.config_filename, client.log_text, run_id, text, self.config_filename)
        self._keep_capsule(trainer, logger, config, start)

    def _flatten(self, config: dict[str, Any]) -> dict[str, str]:
        usual = self.parser.get_defaults()  # without what must be given, so not valid
        usual = self.parser.dump(usual, skip_none=False, skip_validation=True)
        return parameters.flatten(config, yaml.safe_load(usual))

    def _keep_capsule(
        self,
        trainer: Trainer,
        logger: RunLogger,
        config: dict[str, Any],
        start: dict[str, str] | None,
    ) -> None:
        client, run_id = logger.experiment, str(logger.run_id)
        data = None
        try:
            data = describe(getattr(trainer, "datamodule", None))
            if data is not None:
                log(client, run_id, data)
        except Exception as error:  # of a data module that is not ours, or of the server
            capsule.warn(f"the run does not tell its data by their content ({error})")
        fitted = "train" if getattr(trainer, "tests_after_fit", False) else "fit"
        verb = str(trainer.state.fn and trainer.state.fn.value)
        facts = {
            "tracking_uri": logger.written.tracking_uri or logger.written.spool_uri,
            "verb": fitted if verb == "fit" else verb,
            "command": ["pyclassify", *self.command],
            "hardware": describe_torch(trainer),
            "data": data,
            "weights": start,
        }
        facts = capsule.keep(client, run_id, config, facts, [logger.save_dir])
        attempt("the description", description.begin, client, run_id, config, facts)
        attempt("the views of `mlflow ui`", ui.keep, logger, config, data, start)
        check(logger.written.server(), run_id, data)


def describe_torch(trainer: Trainer) -> dict[str, Any]:
    """Describe what the run computes with, as far as it decides how floats are rounded."""
    return {
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "accelerator": type(trainer.accelerator).__name__.removesuffix("Accelerator").lower(),
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
    }


def describe(datamodule: Any) -> dict[str, Any] | None:
    """Describe what a data module has set up.

    Args:
        datamodule: Any with `digest() -> dict[str, str]`, which digests its sets by their
            attributes' names (train, val, test); others are described by their name alone.

    Returns:
        name, classes (how many), and for each set its number of images and digest; nothing where
        there is no data module.
    """
    if datamodule is None:
        return None
    name = type(datamodule).__name__.removesuffix("DataModule")
    digests = datamodule.digest() if hasattr(datamodule, "digest") else {}
    return {
        "name": getattr(datamodule, "set_name", name),
        "classes": getattr(datamodule, "num_classes", None),
        "sets": {
            part: {"images": len(getattr(datamodule, part)), "digest": digest}
            for part, digest in digests.items()
        },
    }


def log(client: Any, run_id: str, data: dict[str, Any]) -> None:
    """Log each set as a dataset input of the run, with what it is for as its context."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for part, each in data["sets"].items():
        profile = {"num_rows": each["images"], "num_classes": data["classes"]}
        source = json.dumps({"tags": {"set": part}})
        entity = Dataset(data["name"], each["digest"], "code", source, profile=json.dumps(profile))
        inputs.append(DatasetInput(entity, [InputTag("mlflow.data.context", part)]))
    client.log_inputs(run_id, inputs)


def check(client: Any, run_id: str, data: dict[str, Any] | None) -> None:
    """Refuse to make a run again on other images than its source had.

    Nothing is refused in a run of its own, nor where the data were asked to be others.

    Args:
        client: An `MlflowClient`.
        run_id: The run.
        data: What `describe` says of its data.

    Raises:
        ValueError: The data differ; the digests of both.
    """
    try:
        tags = client.get_run(run_id).data.tags
        source = tags.get(SOURCE_RUN)
        if source is None or asks_for_other_images(tags.get(OVERRIDDEN, "")):
            return
        before = (capsule.read_facts(client, source)["data"] or {}).get("sets", {})
    except Exception as error:  # whatever the server has to say
        capsule.warn(f"the data can't be checked against those of another run ({error})")
        return
    now = (data or {}).get("sets", {})
    for part in before.keys() & now.keys():
        then, here = before[part], now[part]
        if then["digest"] != here["digest"]:
            raise ValueError(
                f"the {part} images are not those of run {source}: their digest was "
                f"{then['digest']} ({then['images']} images) and is {here['digest']} "
                f"({here['images']} images); restore them, or name the folder that has them by "
                "--data_path"
            )


def asks_for_other_images(options: str) -> bool:
    """Whether a command line's options (`--data.val_size 10`) may change which images there are."""
    words = [word for word in shlex.split(options) if word.startswith("--")]
    names = [word.partition("=")[0].removeprefix("--").removesuffix("+") for word in words]
    return any(
        name.split(".")[0] == "data" and name.rsplit(".", 1)[-1] not in _SAME_IMAGES
        for name in names
    )


class DescribeRun(Callback):
    """Put the results into the run's description when it ends, or the error that ended it.

    To be called after those callbacks that have results to tell.
    """

    def __init__(self) -> None:
        self._logger: RunLogger | None = None
        self._epochs = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._logger = find_run_logger(trainer) if trainer.is_global_zero else None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epochs = trainer.current_epoch
        if not getattr(trainer, "tests_after_fit", False):
            self._finish(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._finish(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # A run that was stopped has no time left, and no error.
        if self._logger is not None and isinstance(exception, Exception):
            self._write(description.fail, exception)  # first, as its status ends the delivery
            run.mark("FAILED")

    def _finish(self, trainer: Trainer) -> None:
        if self._logger is None:
            return
        scores, picture = None, None
        for each in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(each, PredictionLogger) and each.predictions is not None:
                data = getattr(trainer, "datamodule", None)
                scores = attempt("the accuracy by class", count_by_class, each.predictions, data)
                if whole := each.figures.get(MATRIX):
                    picture = attempt("a preview", _log_preview, self._logger, whole)
        self._write(description.finish, scores, self._epochs, picture or "")

    def _write(self, write: Callable[..., None], *args: Any) -> None:
        if self._logger is not None:
            client, run_id = self._logger.experiment, str(self._logger.run_id)
            attempt("the description", write, client, run_id, *args)


def _log_preview(logger: RunLogger, picture: bytes) -> str:
    """Log a PNG once more, as small as the description needs it, and tell where it is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, MATRIX)
        small = Image.open(BytesIO(picture)).convert("RGB")
        small.thumbnail((MOST_PIXELS, MOST_PIXELS), Image.Resampling.LANCZOS)
        small.save(path)
        logger.experiment.log_artifact(logger.run_id, str(path), FOLDER)
    return f"{FOLDER}/{MATRIX}"


def count_by_class(predictions: Predictions, datamodule: Any) -> Scores:
    """Count the images of each class of a data module, and those that are recognised."""
    names = list_class_names(datamodule, predictions.num_classes)
    labels, correct = predictions.labels, predictions.labels[predictions.correct]
    total, right = (np.bincount(each, minlength=len(names)) for each in (labels, correct))
    return Scores(names, total.tolist(), right.tolist())
