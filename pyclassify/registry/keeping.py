"""The network that was tested, kept as a model among its run's artifacts."""

import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyclassify.registry.versions import FOLDER
from pyclassify.tracking.logger import RunLogger

KEPT = "pyclassify.models"  # the tag with the steps whose models a run keeps, the first in FOLDER


def keep(logger: RunLogger, trainer: Trainer, network: LightningModule) -> dict[str, Any]:
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
    kept = [each for each in logger.written.read().data.tags.get(KEPT, "").split(",") if each]
    if str(step) not in kept:
        kept.append(str(step))
        logger.experiment.set_tag(logger.run_id, KEPT, ",".join(kept))
    return FOLDER if kept[0] == str(step) else f"{FOLDER}-{step}"
