"""Resolve --ckpt_path: a checkpoint file, a run's ID, or a registered model."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from pyclassify.registry.source import download_program, find_model_files
from pyclassify.spool.store_errors import describe_server_error
from pyclassify.tracking.logger import BEST_WEIGHTS_PATH
from pyclassify.utils.masking import mask
from pyclassify.utils.options import UsageError

# A model of MLflow's registry, and how errors spell it.
_REGISTERED = r"models:/[^/@]+(@[^/@]+|/[^/@]+)"
_MODEL_FORMS = "models:/NAME@ALIAS or models:/NAME/VERSION"


def check_resume_path(given: str | Path | None, command: str) -> None:
    """Check that a checkpoint to resume from exists.

    Raises:
        MisconfigurationException: It is neither a file, nor a URL, nor a keyword of Lightning's.
    """
    keywords = re.compile(r"best|last|hpc|registry(:.*)?|\w+://.*")
    if given is not None and not keywords.fullmatch(str(given)) and not Path(given).exists():
        raise MisconfigurationException(
            f"--ckpt_path {given} is not a file; {command} resumes from a checkpoint file (to "
            "resume a run, use `pyclassify resume RUN_ID`)"
        )


def resolve_checkpoint(
    given: str | None, command: str, downloads: str, tracking_uri: str | None = None
) -> str:
    """Resolve a checkpoint's path or a run's ID to a path.

    Args:
        given: The path or the ID.
        command: The command that evaluates it.
        downloads: The folder that a run's weights are downloaded to.
        tracking_uri: The run's tracking server; MLflow's own by default.

    Raises:
        UsageError: No checkpoint was given, or a registered model that the command can't evaluate.
        MisconfigurationException: There is no such checkpoint.
    """
    predicts = command == "predict"
    expected = "a checkpoint file or a run's ID"
    if predicts:
        expected = f"a checkpoint file, a run's ID or a registered model, {_MODEL_FORMS}"
    if given is None:
        raise UsageError(f"{command} requires --ckpt_path: {expected}")
    if Path(given).is_file():
        return given
    if given.startswith("models:") and not predicts:
        raise UsageError(
            f"invalid --ckpt_path: {given}, a registered model, which only predict can evaluate "
            f"(expected {expected})"
        )
    if not re.fullmatch(r"[0-9a-f]{32}", given):
        raise MisconfigurationException(
            f"--ckpt_path {given} is not a file (expected {expected}; a run's ID has 32 "
            "hexadecimal digits)"
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
            f"run {given} has no {BEST_WEIGHTS_PATH} at {where} ({describe_server_error(error)}); "
            "`mlflow ui` lists the runs, and MLFLOW_TRACKING_URI selects another server"
        ) from error


def apply_data_state(chosen: Any, saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Give a prediction's data module the preprocessing and classes of the checkpoint.

    Args:
        chosen: The settings of the prediction, which are changed in place: options of the data
            module become those of the checkpoint, except those in `given`.
        saved: The data module's state in the checkpoint (`ImageDataModule.state_dict`).
        given: The settings of the command line and its files, by dotted name.

    Raises:
        MisconfigurationException: The number of classes is neither saved nor given.
    """
    options, network = (chosen[part].get("init_args", {}) for part in ("data", "model"))
    # Not needed to predict, and in a run's config.yaml perhaps an option of another data module.
    options.pop("val_size", None)
    for name, value in saved.items():
        if value and name in options and f"data.{name}" not in given:
            options[name] = value
    if "classes" not in options or options["classes"] is not None:
        return
    if "num_classes" in network:
        count = given.get("model.num_classes")
        if count is None:
            raise MisconfigurationException(
                f"checkpoint {chosen.ckpt_path} does not contain the names of the classes; give "
                "--data.classes='[cat, dog]' or --model.num_classes N"
            )
        options["classes"] = [str(number) for number in range(int(count))]
        rank_zero_warn(
            "the checkpoint does not contain the names of the classes: labels are written as "
            "numbers; give --data.classes"
        )


def read_model_config(
    run_id: str, downloads: str, tracking_uri: str | None = None
) -> dict[str, Any]:
    """Read the model's settings from a run's config.yaml; empty where the run has none."""
    import mlflow

    try:
        path = mlflow.artifacts.download_artifacts(
            None, run_id, "config.yaml", downloads, tracking_uri
        )
        return dict(yaml.safe_load(Path(path).read_text(encoding="utf-8"))["model"])
    except (mlflow.exceptions.MlflowException, OSError, ValueError, KeyError, TypeError):
        return {}


def is_registered_model(given: str | None, command: str) -> bool:
    """Whether `predict`, the only command that takes one, is given a registered model."""
    return command == "predict" and re.fullmatch(_REGISTERED, str(given)) is not None


def download_model(given: str, downloads: str, tracking_uri: str | None = None) -> str:
    """Download the exported program of a registered model.

    Args:
        given: The model, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        downloads: The folder that it is downloaded to.
        tracking_uri: The registry's server; MLflow's own by default.

    Raises:
        MisconfigurationException: The model does not exist, or has no exported program.
    """
    import mlflow

    try:
        client = mlflow.MlflowClient(tracking_uri)
        return download_program(client, find_model_files(client, given), downloads)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        where = mask(tracking_uri or mlflow.get_registry_uri())
        raise MisconfigurationException(
            f"can't download {given} from {where} ({describe_server_error(error)}); `mlflow ui` "
            "lists the models, and predict takes those that pyclassify registered"
        ) from error
