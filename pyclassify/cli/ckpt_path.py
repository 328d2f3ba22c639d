"""Whether what a command line asks for can be had: devices, checkpoints, a file to write."""

import re
from pathlib import Path
from typing import Any

from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyclassify.cli.networks import MODELS
from pyclassify.tracking.logger import WEIGHTS
from pyclassify.utils.masking import mask

TABLES = (".parquet", ".csv")


def check_devices(devices: Any, accelerator: str) -> None:
    """Refuse a number of devices that this machine can't give.

    Raises:
        MisconfigurationException: There are fewer, or none was asked for.
    """
    if devices == "auto" or re.search(r"[\[,]", str(devices)):
        return  # which Lightning judges
    kinds = [kind for kind in (CUDAAccelerator, MPSAccelerator) if kind.is_available()]
    gpus = kinds[0].auto_device_count() if kinds else 0
    on_gpu = accelerator in ("gpu", "cuda", "mps") or (accelerator == "auto" and gpus > 0)
    count = int(devices) if re.fullmatch(r"-?\d+", str(devices)) else 0
    if count < 1 and not (count == -1 and on_gpu):
        raise MisconfigurationException(
            f"devices is {devices}; give 1 or more, a list of GPU indices, or auto"
        )
    if on_gpu and count > gpus:
        raise MisconfigurationException(
            f"devices is {devices} and this machine has {gpus} GPUs; give at most as many, or "
            "--accelerator cpu"
        )


def check_output(given: str | Path) -> Path:
    """Refuse a table's name before anything is computed for it.

    Raises:
        MisconfigurationException: It is of no known format, its folder is missing, or it exists.
    """
    path = Path(given).expanduser()
    if path.suffix not in TABLES:
        raise MisconfigurationException(
            f"output is {given}; give a file that ends in {' or '.join(TABLES)}"
        )
    if not path.parent.is_dir():
        raise MisconfigurationException(
            f"output is {given}, and {path.parent} is no folder; make it"
        )
    if path.exists():
        raise MisconfigurationException(
            f"output is {given}, which exists; name another file by --output, or remove it"
        )
    return path


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


def check_seed(seed: int | bool) -> None:
    """Refuse a seed that some random generator does not take.

    Raises:
        MisconfigurationException: It is not among those of numpy's.
    """
    if not 0 <= seed < 2**32:
        raise MisconfigurationException(f"seed is {seed}; give a whole number from 0 to 2^32 - 1")


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
