"""Register the network that was trained and tested as a version of a registered model.

The model is logged to the run first, so that it is not lost where the registry does not answer. The
version is then registered by whatever uploads the run's log: the training itself, or a later
`pyclassify sync`.
"""

import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
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
from pyclassify.registry.versions import MODEL_FOLDER, find_version, get_source_uri
from pyclassify.serving.export import MAX_BATCH_PIXELS, PROGRAM_PATH, load_program
from pyclassify.tracking.logger import RunLogger, find_run_logger
from pyclassify.tracking.prediction_table import PredictionsByIndex
from pyclassify.tracking.predictions import PredictionLogger
from pyclassify.tracking.run import fail_later, warn_on_error

if TYPE_CHECKING:
    from mlflow import MlflowClient

# For the model's files to be uploaded; a version whose files take longer is registered later.
_UPLOAD_TIMEOUT_SECONDS = 60.0
_BATCH_SIZE = 128  # images of one size that are classified together
# A tag with the steps whose models a run has logged, the first of them in MODEL_FOLDER.
_MODELS_TAG = "pyclassify.models"


class RegisterModel(Callback):
    """Keep the network that was trained and tested as a model in the run, and register it.

    Args:
        name: The registered model that gets a version; none is registered without it.
        min_accuracy: The test accuracy that a model's first version needs to become champion.
        alpha: A later version becomes champion where it is more accurate on the same images and
            McNemar's exact test says so with a p-value below this.
        judge_by: The images that champion and challenger are compared by: test, or val.

    Raises:
        MisconfigurationException: The name is not one that MLflow takes, alpha is not in (0, 1), or
            min_accuracy is not in [0, 1].

    Attributes:
        version: The version of the last model; None where it is not registered yet.
        result: The version and the decision about it in one line; empty without a version.

    Example:
        >>> callback = RegisterModel("alexnet", min_accuracy=0.8)
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
        judge_by: Literal["test", "val"] = "test",
    ) -> None:
        if name is not None and not _is_valid_name(name):
            raise MisconfigurationException(
                f"the registered model's name is {name!r}; it takes a text without / and :, which "
                "is not . and does not start with .."
            )
        try:
            check_bounds(alpha, min_accuracy)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        self.name, self.min_accuracy, self.alpha = name, min_accuracy, alpha
        self.judge_by = judge_by

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log the model and register it, once all callbacks have logged the test."""
        logger = find_run_logger(trainer)
        is_trained = stage == "test" and getattr(trainer, "tests_after_fit", False)
        if self.name is None or logger is None or not is_trained or not trainer.is_global_zero:
            return
        self.version, self.result = None, ""
        model = warn_on_error(
            "log the model", _log_model, logger, trainer, pl_module, is_required=True
        )
        if model is not None:
            action = f"register a version of {self.name!r}"
            warn_on_error(action, self._register, logger, self.name, model, is_required=True)
        if self.version is not None:
            warn_on_error("run the promotion check", self._promote, logger, self.name, trainer)

    def _register(self, logger: RunLogger, name: str, model: dict[str, Any]) -> None:
        """Request the version, and wait for it; warn where it is not registered yet."""
        run, thread = logger.spooled_run, logger.spooled_run.upload_thread
        bounds = {"min_accuracy": self.min_accuracy, "alpha": self.alpha}
        record = {"kind": "version", "name": name, "judge_by": self.judge_by, **bounds}
        if thread is not None:
            thread.make_version = register_and_promote
        run.append({**record, **model})
        if thread is None or not thread.wait_until_uploaded(_UPLOAD_TIMEOUT_SECONDS):
            reason = (thread and thread.last_error) or "its files are on their way"
            rank_zero_warn(
                f"the model is in the run, and not yet registered as {name!r} ({reason}); it will "
                f"be when all has arrived, by `pyclassify sync {run.folder}` if not before"
            )
            return
        client, path = run.get_server_client(), model["path"]
        source = get_source_uri(client.get_run(run.server_id), path)
        self.version = find_version(client, run.server_id, name, source)
        if self.version is not None:
            self.result = f"{name} version {self.version}"
            return
        code = f"import mlflow; mlflow.register_model('runs:/{run.server_id}/{path}', '{name}')"
        # The registry refused, and the upload has warned with its message.
        reason = f'the registry refused it; once that is fixed: python -c "{code}"'
        fail_later(f"register a version of {name!r}", reason)

    def _promote(self, logger: RunLogger, name: str, trainer: Trainer) -> None:
        """Compare the version with the champion, by the images of this process where needed."""
        client = logger.spooled_run.get_server_client()
        data: Any = getattr(trainer, "datamodule", None)
        indices = _find_tested_indices(trainer) if self.judge_by == "test" else None

        def evaluate(version: str) -> PredictionsByIndex:
            dataset = getattr(data, self.judge_by)
            return predict_version(client, name, version, dataset, data.classes, indices)

        decision = promote_if_better(
            client,
            name,
            str(self.version),
            evaluate=evaluate,
            reevaluate=self.judge_by != "test",
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
        For each index the name of the image's label, and whether the prediction is correct.

    Raises:
        ValueError: The version has other classes, or the images are not uint8.
        mlflow.exceptions.MlflowException: The version's files can't be downloaded.
    """
    program, names = _download_program(client, name, version)
    if sorted(names) != sorted(classes):
        raise ValueError(
            f"version {version} tells {len(names)} classes apart ({', '.join(names[:3])}, ...), "
            f"and the images are of {len(classes)} ({', '.join(classes[:3])}, ...)"
        )
    predictions: PredictionsByIndex = {}
    for images, batch_indices, labels in _iterate_batches(dataset, indices):
        with torch.inference_mode():
            predicted = program(images).argmax(dim=1).tolist()
        for index, label, guess in zip(batch_indices, labels, predicted, strict=True):
            predictions[index] = (classes[label], classes[label] == names[guess])
    return predictions


def _is_valid_name(name: str) -> bool:
    """Whether MLflow takes the name of a registered model; it would say so after the training."""
    is_path = bool(set(name) & set("/:")) or name == "." or name.startswith("..")
    return bool(name.strip()) and not is_path


def _log_model(logger: RunLogger, trainer: Trainer, network: LightningModule) -> dict[str, Any]:
    """Log the network with its preprocessing to the run.

    Returns:
        `path`, the folder in the run, and `tags` of a version that is made of it.

    Raises:
        MisconfigurationException: There is no preprocessing.
    """
    from pyclassify.serving.artifact import save_model

    data = getattr(trainer, "datamodule", None)
    preprocess = getattr(data, "preprocess", None) or getattr(network, "preprocess", None)
    if preprocess is None:
        raise MisconfigurationException(
            "neither the data module nor the LightningModule has a `preprocess`, which makes "
            "bytes into what the network takes; give one of them one"
        )
    path, run_id = _choose_folder(logger, trainer.global_step), str(logger.run_id)
    classes = getattr(data, "classes", ())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, path)
        names = save_model(folder, network, preprocess, classes, origin=(run_id, path))
        logger.experiment.log_artifacts(run_id, str(folder), path)
    accuracy = trainer.callback_metrics.get("test_accuracy")
    facts = {
        "classes": len(names),
        "input_size": getattr(preprocess, "crop", None),
        "test_accuracy": None if accuracy is None else round(float(accuracy), 6),
    }
    tags = {name: str(value) for name, value in facts.items() if value is not None}
    return {"path": path, "tags": tags}


def _choose_folder(logger: RunLogger, step: int) -> str:
    """Choose the folder for the model of a step; a run that is trained for longer has several."""
    tag = logger.spooled_run.get_run().data.tags.get(_MODELS_TAG, "")
    steps = [logged for logged in tag.split(",") if logged]
    if str(step) not in steps:
        steps.append(str(step))
        logger.experiment.set_tag(str(logger.run_id), _MODELS_TAG, ",".join(steps))
    return MODEL_FOLDER if steps[0] == str(step) else f"{MODEL_FOLDER}-{step}"


def _find_tested_indices(trainer: Trainer) -> set[int] | None:
    """Find which images of the test set were tested; None where nothing logged predictions."""
    callbacks: list[Callback] = getattr(trainer, "callbacks", [])
    loggers = (callback for callback in callbacks if isinstance(callback, PredictionLogger))
    predictions = next((callback.predictions for callback in loggers), None)
    return None if predictions is None else {*predictions.indices.tolist()}


def _download_program(client: "MlflowClient", name: str, version: str) -> tuple[Any, list[str]]:
    """Download a version's program, and the names of its classes."""
    import mlflow

    source = client.get_model_version_download_uri(name, version)
    with tempfile.TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(
            artifact_uri=f"{source}/{PROGRAM_PATH}",
            dst_path=folder,
            tracking_uri=client.tracking_uri,
        )
        program, names = load_program(path)
    return program.module(), names


def _iterate_batches(
    dataset: Any, indices: Collection[int] | None
) -> Iterator[tuple[Tensor, list[int], list[int]]]:
    """Iterate over images of one size together, with their indices and labels."""
    groups: dict[torch.Size, list[tuple[Tensor, int, int]]] = defaultdict(list)
    # Whole where the set can, as each version crops another part of it.
    read = getattr(dataset, "read_original", dataset.__getitem__)
    pixels = 0
    for item, index in enumerate(map(int, getattr(dataset, "index", range(len(dataset))))):
        if indices is not None and index not in indices:
            continue
        image, label, *_ = read(item)
        if image.dtype != torch.uint8:
            raise ValueError(f"the data set gives {image.dtype} and not the images' bytes")
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
