"""Register the trained and tested network as a version of a registered model.

The model is logged to the run first, so that it is not lost if the registry does not answer. The
version is then registered by the process that uploads the run's log: the training itself, or a
later `pyclassify sync`.
"""

import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from pyclassify.registry.champion import promote_if_better, register_and_promote
from pyclassify.registry.decision import check_bounds
from pyclassify.registry.source import download_program
from pyclassify.registry.versions import NAME_RULE, find_version, is_valid_name
from pyclassify.serving.export import MAX_BATCH_PIXELS, load_program
from pyclassify.tracking.logged_model import ModelLogger, is_last_stage, log_model
from pyclassify.tracking.logger import RunLogger, find_run_logger
from pyclassify.tracking.prediction_table import PredictionsByIndex
from pyclassify.tracking.predictions import PredictionLogger
from pyclassify.tracking.run import fail_later, warn_on_error

if TYPE_CHECKING:
    from mlflow import MlflowClient

# To wait for the upload of the model's files; if it takes longer, `pyclassify sync` registers it.
_UPLOAD_TIMEOUT_SECONDS = 60.0
_BATCH_SIZE = 128  # images of one size that are classified together


class RegisterModel(ModelLogger):
    """Log the trained and tested network as an MLflow model, and register it as a version.

    After the test of `Trainer.train`, the callback logs the model, as `ModelLogger` does, and
    registers it as a version of the registered model `name`. The version is compared with the
    version that has the alias `champion`: it gets this alias if it is significantly better, and
    `challenger` otherwise.

    The trainer needs a `RunLogger`, and the data module or the LightningModule a `preprocess`.
    After `fit` or `test` alone, the callback does nothing.

    Args:
        name: The registered model, which is created if it is missing. Default: None, the network
            is not registered.
        min_accuracy: The test accuracy that the first version needs to become champion, in [0, 1].
            Default: 0.
        alpha: The significance level, in (0, 1): a later version becomes champion if it predicts
            more of the same images correctly, and McNemar's exact test has a p-value below alpha.
            Default: 0.05.
        compare_on: The images that champion and challenger are compared on: `test`, or `val` to
            evaluate both on the validation images. Default: `test`.

    Raises:
        MisconfigurationException: The name is not valid in MLflow, alpha is not in (0, 1), or
            min_accuracy is not in [0, 1].

    Attributes:
        model_id: The model's ID in the run's spool; None if none is logged.
        version: The version of the last model; None if it is not registered yet.
        result: The version and the decision about it in one line; empty without a version.

    Example:
        >>> from pyclassify import RegisterModel, RunLogger, Trainer
        >>> callback = RegisterModel("alexnet", min_accuracy=0.8, alpha=0.01)
        >>> trainer = Trainer(max_epochs=1, logger=RunLogger(), callbacks=[callback])
        >>> callback.name
        'alexnet'
    """

    version: str | None = None
    result = ""

    def __init__(
        self,
        name: str | None = None,
        min_accuracy: float = 0.0,
        alpha: float = 0.05,
        compare_on: Literal["test", "val"] = "test",
    ) -> None:
        if name is not None and not is_valid_name(name):
            raise MisconfigurationException(
                f"invalid name of the registered model: {name!r} ({NAME_RULE})"
            )
        try:
            check_bounds(alpha, min_accuracy)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        self.name, self.min_accuracy, self.alpha = name, min_accuracy, alpha
        self.compare_on = compare_on

    def will_log(self, trainer: Trainer) -> bool:
        """Whether the training ends with a test, and the model has a name."""
        return self.name is not None and getattr(trainer, "tests_after_fit", False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log the model and register it, after all callbacks have logged the test."""
        logger = find_run_logger(trainer)
        is_due = self.will_log(trainer) and is_last_stage(trainer, stage)
        if self.name is None or logger is None or not is_due or not trainer.is_global_zero:
            return
        self.version, self.result, logger.awaits_model = None, "", False
        self.model_id = warn_on_error(
            "log the model", log_model, logger, trainer, pl_module, is_required=True
        )
        if self.model_id is not None:
            action = f"register a version of {self.name!r}"
            warn_on_error(
                action, self._register, logger, self.name, self.model_id, is_required=True
            )
        if self.version is not None:
            warn_on_error("run the promotion check", self._promote, logger, self.name, trainer)

    def _register(self, logger: RunLogger, name: str, model_id: str) -> None:
        """Request the version, and wait for it; warn if it is not registered in time."""
        run, thread = logger.spooled_run, logger.spooled_run.upload_thread
        bounds = {"min_accuracy": self.min_accuracy, "alpha": self.alpha}
        record = {"kind": "version", "name": name, "compare_on": self.compare_on, **bounds}
        if thread is not None:
            thread.make_version = register_and_promote
        run.append({**record, "model": model_id})
        if thread is None or not thread.wait_until_uploaded(_UPLOAD_TIMEOUT_SECONDS):
            reason = (thread and thread.last_error) or "the upload of its files is not finished"
            rank_zero_warn(
                f"the model is logged to the run, and not yet registered as {name!r} ({reason}); "
                f"it will be after the upload, at the latest by `pyclassify sync {run.folder}`"
            )
            return
        if run.get_server_model_id(model_id):
            model = run.get_server_model(model_id)
            self.version = find_version(run.get_server_client(), model, name)
        if self.version is not None:
            self.result = f"{name} version {self.version}"
            return
        # The upload has warned with the registry's message.
        command = f"pyclassify register {run.server_id} {name}"
        reason = f"the registry refused it; fix the cause, then run `{command}`"
        fail_later(f"register a version of {name!r}", reason)

    def _promote(self, logger: RunLogger, name: str, trainer: Trainer) -> None:
        """Compare the version with the champion; evaluate it here if predictions are missing."""
        client = logger.spooled_run.get_server_client()
        data: Any = getattr(trainer, "datamodule", None)
        indices = _find_tested_indices(trainer) if self.compare_on == "test" else None

        def evaluate(version: str) -> PredictionsByIndex:
            dataset = getattr(data, self.compare_on)
            return predict_version(client, name, version, dataset, data.classes, indices)

        decision = promote_if_better(
            client,
            name,
            str(self.version),
            evaluate=evaluate,
            reevaluate=self.compare_on != "test",
            alpha=self.alpha,
            min_accuracy=self.min_accuracy,
        )
        self.result = decision.text


def predict_version(
    client: "MlflowClient",
    name: str,
    version: str,
    dataset: Dataset[Any],
    classes: Sequence[str],
    indices: Collection[int] | None = None,
) -> PredictionsByIndex:
    """Classify images by a version of a registered model, on the CPU.

    Args:
        client: The registry.
        name: The registered model.
        version: Its version.
        dataset: A set of (image, label, ...), the images uint8 [1 or 3, height, width].
        classes: The classes' names, by label.
        indices: The indices of the images to classify; all of them by default.

    Returns:
        For each index the class name of the image's label, and whether the prediction is correct.

    Raises:
        ValueError: The version has different classes, or the images are not uint8.
        mlflow.exceptions.MlflowException: The version's files can't be downloaded.
    """
    program, names = _download_program(client, name, version)
    if sorted(names) != sorted(classes):
        raise ValueError(
            f"version {version} has {len(names)} classes ({', '.join(names[:3])}, ...), and the "
            f"images have {len(classes)} ({', '.join(classes[:3])}, ...)"
        )
    predictions: PredictionsByIndex = {}
    for images, batch_indices, labels in _iterate_batches(dataset, indices):
        with torch.inference_mode():
            predicted = program(images).argmax(dim=1).tolist()
        for index, label, guess in zip(batch_indices, labels, predicted, strict=True):
            predictions[index] = (classes[label], classes[label] == names[guess])
    return predictions


def _find_tested_indices(trainer: Trainer) -> set[int] | None:
    """Find the indices of the tested images; None if no callback logged predictions."""
    callbacks: list[Callback] = getattr(trainer, "callbacks", [])
    loggers = (callback for callback in callbacks if isinstance(callback, PredictionLogger))
    predictions = next((callback.predictions for callback in loggers), None)
    return None if predictions is None else {*predictions.indices.tolist()}


def _download_program(client: "MlflowClient", name: str, version: str) -> tuple[Any, list[str]]:
    """Download a version's program, and the names of its classes."""
    files = client.get_model_version_download_uri(name, version)
    with tempfile.TemporaryDirectory() as folder:
        program, names, _ = load_program(download_program(client, files, folder))
    return program.module(), names


def _iterate_batches(
    dataset: Any, indices: Collection[int] | None
) -> Iterator[tuple[Tensor, list[int], list[int]]]:
    """Iterate over images of one size together, with their indices and labels."""
    groups: dict[torch.Size, list[tuple[Tensor, int, int]]] = defaultdict(list)
    # The whole image if the data set has it, because each version has its own crop.
    read = getattr(dataset, "read_original", dataset.__getitem__)
    pixels = 0
    for item, index in enumerate(map(int, getattr(dataset, "index", range(len(dataset))))):
        if indices is not None and index not in indices:
            continue
        image, label, *_ = read(item)
        if image.dtype != torch.uint8:
            raise ValueError(f"the data set returns images of {image.dtype} (expected torch.uint8)")
        group = groups[image.shape]
        group.append((image.expand(3, -1, -1), index, int(label)))
        pixels += image.shape[1] * image.shape[2]
        if len(group) == _BATCH_SIZE or pixels > MAX_BATCH_PIXELS:
            yield from map(_stack, groups.values())
            groups.clear()
            pixels = 0
    yield from map(_stack, groups.values())


def _stack(group: list[tuple[Tensor, int, int]]) -> tuple[Tensor, list[int], list[int]]:
    images, indices, labels = zip(*group, strict=True)
    return torch.stack(images), list(indices), list(labels)
