"""A network that was trained and tested becomes a version of a registered model by itself."""

import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

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
from pyclassify.tracking.run import warn_on_error

_UPLOAD_TIMEOUT_SECONDS = (
    60.0  # for the model's files to arrive; later ones are registered as they do
)
_BATCH_SIZE = 128  # images of one size that are classified together
_MODELS_TAG = (
    "pyclassify.models"  # the tag with the steps whose models a run keeps, the first in FOLDER
)


class RegisterModel(Callback):
    """Keep the network that was trained and tested as a model in the run, and register it.

    Args:
        name: The registered model that gets a version; none is registered without it.
        min_accuracy: The test accuracy that a model's first version needs to become champion.
        alpha: A later version becomes champion where it is more accurate on the same images and
            McNemar's exact test says so with a p-value below this.
        judge_by: The images that champion and challenger are compared by: test, or val.

    Attributes:
        told: What became of the last model, for the end of the training; empty before.
    """

    told = ""
    version: str | None = None

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
        """Once all callbacks have told of the test what they have to: the judge reads that."""
        logger = find_run_logger(trainer)
        trained = stage == "test" and getattr(trainer, "tests_after_fit", False)
        if self.name is None or logger is None or not trained or not trainer.is_global_zero:
            return
        self.version, self.told = None, ""
        kept = warn_on_error("the model", _log_model, logger, trainer, pl_module)
        if kept is not None:
            warn_on_error("the version", self._register, logger, self.name, kept)
        if self.version is not None:
            warn_on_error("the decision", self._judge, logger, self.name, trainer)

    def _register(self, logger: RunLogger, name: str, kept: dict[str, Any]) -> None:
        """Ask for the version, and say which it is or what becomes of it without the registry."""
        written, delivery = logger.spooled_run, logger.spooled_run.delivery
        bounds = {"min_accuracy": self.min_accuracy, "alpha": self.alpha}
        record = {"kind": "version", "name": name, "judge_by": self.judge_by, **bounds}
        if delivery is not None:
            delivery.make_version = register_and_promote
        written.append({**record, **kept})
        if delivery is None or not delivery.ask(_UPLOAD_TIMEOUT_SECONDS):
            why = (delivery and delivery.trouble) or "its files are on their way"
            rank_zero_warn(
                f"the model is in the run, and not yet registered as {name!r} ({why}); it will be "
                f"when all has arrived, by `pyclassify sync {written.folder}` if not before"
            )
            return
        client, path = written.server(), kept["path"]
        source = get_source_uri(client.get_run(written.server_id), path)
        self.version = find_version(client, written.server_id, name, source)
        if self.version is not None:
            self.told = f"{name} version {self.version}"
            return
        how = f"import mlflow; mlflow.register_model('runs:/{written.server_id}/{path}', '{name}')"
        rank_zero_warn(  # the registry refused, and the delivery has told its words
            f'the model is in the run, but not registered; once that is mended: python -c "{how}"'
        )

    def _judge(self, logger: RunLogger, name: str, trainer: Trainer) -> None:
        """Compare it with the champion by what this process has of the images, where need be."""

        client = logger.spooled_run.server()
        data: Any = getattr(trainer, "datamodule", None)
        callbacks: list[Callback] = getattr(trainer, "callbacks", [])
        tested = next(
            (each.predictions for each in callbacks if isinstance(each, PredictionLogger)), None
        )

        def evaluate(version: str) -> PredictionsByIndex:
            indices = {*tested.indices.tolist()} if tested and self.judge_by == "test" else None
            return predict_version(
                client, name, version, getattr(data, self.judge_by), data.classes, indices
            )

        decision = promote_if_better(
            client,
            name,
            str(self.version),
            evaluate=evaluate,
            reevaluate=self.judge_by != "test",
            alpha=self.alpha,
            min_accuracy=self.min_accuracy,
        )
        self.told = decision.text


def predict_version(
    client: Any,
    name: str,
    version: str,
    dataset: Dataset[Any],
    classes: Sequence[str],
    places: Collection[int] | None = None,
) -> PredictionsByIndex:
    """Classify images by a version, on the CPU.

    Args:
        client: An `MlflowClient`.
        name: The registered model.
        version: Its version.
        dataset: Gives (image, label, ...), the image uint8 [1 or 3, height, width].
        classes: The classes' names, by label.
        places: The places of the images in their set; all of them by default.

    Returns:
        For each place its label's name, and whether the version has it right.

    Raises:
        ValueError: The version was made for other classes, or the data set gives no bytes.
        mlflow.exceptions.MlflowException: The version's files can't be had.
    """
    program, names = _load(client, name, version)
    if sorted(names) != sorted(classes):
        raise ValueError(
            f"version {version} tells {len(names)} classes apart ({', '.join(names[:3])}, ...), "
            f"and the images are of {len(classes)} ({', '.join(classes[:3])}, ...)"
        )
    answers: PredictionsByIndex = {}
    for images, numbers, labels in _group(dataset, places):
        with torch.inference_mode():
            best = program(images).argmax(dim=1).tolist()
        for place, label, guess in zip(numbers, labels, best, strict=True):
            answers[place] = (classes[label], classes[label] == names[guess])
    return answers


def _is_valid_name(name: str) -> bool:
    """Whether MLflow takes the name of a registered model; it would say so after the training."""
    is_path = bool(set(name) & set("/:")) or name == "." or name.startswith("..")
    return bool(name.strip()) and not is_path


def _load(client: Any, name: str, version: str) -> tuple[Any, list[str]]:
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


def _group(
    dataset: Any, places: Collection[int] | None
) -> Iterator[tuple[Tensor, list[int], list[int]]]:
    """Images of one size together, with their places and labels."""
    groups: dict[torch.Size, list[tuple[Tensor, int, int]]] = defaultdict(list)
    index = getattr(dataset, "index", range(len(dataset)))
    # Whole where the set can, as each version crops another part of it.
    read = getattr(dataset, "read_original", dataset.__getitem__)
    pixels = 0
    for item, place in enumerate(map(int, index)):
        if places is not None and place not in places:
            continue
        image, label, *_ = read(item)
        if image.dtype != torch.uint8:
            raise ValueError(f"the data set gives {image.dtype} and not the images' bytes")
        group = groups[image.shape]
        group.append((image.expand(3, -1, -1), place, int(label)))
        pixels += image.shape[1] * image.shape[2]
        if len(group) == _BATCH_SIZE or pixels > MAX_BATCH_PIXELS:
            yield from map(_stack, groups.values())
            groups.clear()
            pixels = 0
    yield from map(_stack, groups.values())


def _stack(group: list[tuple[Tensor, int, int]]) -> tuple[Tensor, list[int], list[int]]:
    images, places, labels = zip(*group, strict=True)
    return torch.stack(images), list(places), list(labels)


def _log_model(logger: RunLogger, trainer: Trainer, network: LightningModule) -> dict[str, Any]:
    """Keep the network with its preprocessing in the run.

    Returns:
        `path`, the folder in the run, and `tags` of a version that is made of it.

    Raises:
        MisconfigurationException: Nothing tells how bytes become what the network takes.
    """
    from pyclassify.serving.artifact import save_model

    data = getattr(trainer, "datamodule", None)
    preprocess = getattr(data, "preprocess", None) or getattr(network, "preprocess", None)
    if preprocess is None:
        raise MisconfigurationException(
            "neither the data module nor the LightningModule has a `preprocess`, which makes "
            "bytes into what the network takes; give one of them one"
        )
    path, run_id = _name_folder(logger, trainer.global_step), str(logger.run_id)
    classes = getattr(data, "classes", ())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, path)
        names = save_model(folder, network, preprocess, classes, origin=(run_id, path))
        logger.experiment.log_artifacts(run_id, str(folder), path)
    accuracy = trainer.callback_metrics.get("test_accuracy")
    known = {
        "classes": len(names),
        "input_size": getattr(preprocess, "crop", None),
        "test_accuracy": None if accuracy is None else round(float(accuracy), 6),
    }
    tags = {name: str(value) for name, value in known.items() if value is not None}
    return {"path": path, "tags": tags}


def _name_folder(logger: RunLogger, step: int) -> str:
    """Where a run keeps the model of a step: a run that is trained for longer has several."""
    kept = [
        each for each in logger.spooled_run.read().data.tags.get(_MODELS_TAG, "").split(",") if each
    ]
    if str(step) not in kept:
        kept.append(str(step))
        logger.experiment.set_tag(logger.run_id, _MODELS_TAG, ",".join(kept))
    return MODEL_FOLDER if kept[0] == str(step) else f"{MODEL_FOLDER}-{step}"
