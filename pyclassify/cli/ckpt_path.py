"""Whether what a command line asks for can be had: devices, checkpoints, a file to write."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from pyclassify.serving.export import PROGRAM_PATH
from pyclassify.tracking.logger import BEST_WEIGHTS_PATH
from pyclassify.utils.masking import mask

# A model of MLflow's registry, and how one is given.
_REGISTERED = r"models:/[^/@]+(@[^/@]+|/[^/@]+)"
_MODEL_FORMS = "models:/NAME@ALIAS or models:/NAME/VERSION"


def check_resume_path(given: str | Path | None, verb: str) -> None:
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


def resolve_checkpoint(
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
            + (f", or a registered model ({_MODEL_FORMS})" if predicts else "")
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
            + (f" nor a registered model ({_MODEL_FORMS})" if predicts else "")
        )
    import mlflow

    try:
        return str(
            mlflow.artifacts.download_artifacts(
                None, given, BEST_WEIGHTS_PATH, downloads, tracking_uri
            )
        )
    except (mlflow.exceptions.MlflowException, OSError) as error:
        where = mask(tracking_uri or mlflow.get_tracking_uri())
        raise MisconfigurationException(
            f"run {given} has no {BEST_WEIGHTS_PATH} at {where} ({mask(str(error))}); `mlflow ui` "
            "lists the runs there, MLFLOW_TRACKING_URI names another place"
        ) from error


def apply_data_state(chosen: Any, kept: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Have a data module show the network its images as the network was shown those of its own.

    Args:
        chosen: The settings of a prediction, which are changed: its data module's options become
            those of the checkpoint, but for those that were given.
        kept: What the checkpoint keeps of the data (`ImageDataModule.state_dict`).
        given: The settings that were given, by dotted name.

    Raises:
        MisconfigurationException: How many classes there are is neither kept nor given.
    """
    options, network = (chosen[part].get("init_args", {}) for part in ("data", "model"))
    # Of no use here, and where a run's config.yaml is given, perhaps of another data module.
    options.pop("val_size", None)
    for name, value in kept.items():
        if value and name in options and f"data.{name}" not in given:
            options[name] = value
    if "classes" not in options or options["classes"] is not None:
        return
    if "num_classes" in network:
        count = given.get("model.num_classes")
        if count is None:
            raise MisconfigurationException(
                f"ckpt_path {chosen.ckpt_path} does not tell its classes; give their names by "
                "--data.classes='[cat, dog]', or their number by --model.num_classes"
            )
        options["classes"] = [str(number) for number in range(int(count))]
        rank_zero_warn("the checkpoint does not name its classes: the labels are numbers")


def read_model_config(
    run_id: str, downloads: str, tracking_uri: str | None = None
) -> dict[str, Any]:
    """Read which network a run trained, as its config.yaml has it; empty where it keeps none."""
    import mlflow

    try:
        path = mlflow.artifacts.download_artifacts(
            None, run_id, "config.yaml", downloads, tracking_uri
        )
        return dict(yaml.safe_load(Path(path).read_text(encoding="utf-8"))["model"])
    except (mlflow.exceptions.MlflowException, OSError, ValueError, KeyError, TypeError):
        return {}


def is_registered_model(given: str | None, verb: str) -> bool:
    """Whether what is to be scored is a registered model, which can only predict."""
    return verb == "predict" and re.fullmatch(_REGISTERED, str(given)) is not None


def download_program(given: str, downloads: str, tracking_uri: str | None = None) -> str:
    """Copy the exported program of a registered model here.

    Args:
        given: The model, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        downloads: The folder that it is copied to.
        tracking_uri: Where the registry is, if not where MLflow would look.

    Raises:
        MisconfigurationException: There is no such model, or it holds no program.
    """
    import mlflow

    try:
        return str(
            mlflow.artifacts.download_artifacts(
                f"{given}/{PROGRAM_PATH}", None, None, downloads, tracking_uri, tracking_uri
            )
        )
    except (mlflow.exceptions.MlflowException, OSError) as error:
        where = mask(tracking_uri or mlflow.get_registry_uri())
        raise MisconfigurationException(
            f"{given} can't be had from {where} ({mask(str(error))}); `mlflow ui` lists the "
            "models there, and predict takes those that were registered here"
        ) from error
