"""Whether what a command line asks for can be had: devices, checkpoints, a file to write."""

import re
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyclassify.cli.networks import MODELS
from pyclassify.tracking.logger import WEIGHTS
from pyclassify.utils.masking import mask


def check_resumable(given: str | Path | None, verb: str) -> None:
    """Refuse to go on from a checkpoint that is not there.

    Raises:
        MisconfigurationException: It is neither a path, nor an address or word of Lightning's.
    """
    words = re.compile(r"best|last|hpc|registry(:.*)?|\w+://.*")
    if given is not None and not words.fullmatch(str(given)) and not Path(given).exists():
        raise MisconfigurationException(
            f"ckpt_path {given} is no file; {verb} goes on from a checkpoint file (a run's id is "
            "not enough: a run keeps its best weights, without the optimizer's state)"
        )


def find_checkpoint(
    given: str | None, verb: str, downloads: str, tracking_uri: str | None = None
) -> str:
    """Turn a checkpoint's path or a run's id into a path.

    Args:
        given: The path or the id.
        verb: What is to be done with it, for messages.
        downloads: The folder that a run's weights are copied to.
        tracking_uri: Where the run is, if not where MLflow would look.

    Raises:
        MisconfigurationException: None was given, or there is none.
    """
    predicts = verb == "predict"
    if given is None:
        raise MisconfigurationException(
            f"{verb} scores a trained network; give --ckpt_path, a checkpoint file or a run's id"
            + (f", or a registered model ({MODELS})" if predicts else "")
        )
    if Path(given).is_file():
        return given
    if given.startswith("models:") and not predicts:
        raise MisconfigurationException(
            f"ckpt_path {given} is a registered model, which only predict takes; give {verb} a "
            "checkpoint file or a run's id"
        )
    if not re.fullmatch(r"[0-9a-f]{32}", given):
        raise MisconfigurationException(
            f"ckpt_path {given} is neither a file nor a run's id (32 hexadecimal digits)"
            + (f" nor a registered model ({MODELS})" if predicts else "")
        )
    import mlflow

    try:
        return str(
            mlflow.artifacts.download_artifacts(None, given, WEIGHTS, downloads, tracking_uri)
        )
    except (mlflow.exceptions.MlflowException, OSError) as error:
        where = mask(tracking_uri or mlflow.get_tracking_uri())
        raise MisconfigurationException(
            f"run {given} has no {WEIGHTS} at {where} ({mask(str(error))}); `mlflow ui` "
            "lists the runs there, MLFLOW_TRACKING_URI names another place"
        ) from error
