"""Which network is to be scored: the one that a run trained, or that a registered model holds."""

import re
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyclassify.serving.export import PROGRAM
from pyclassify.utils.masking import mask

# A model of MLflow's registry, and how one is given.
REGISTERED = r"models:/[^/@]+(@[^/@]+|/[^/@]+)"
MODELS = "models:/NAME@ALIAS or models:/NAME/VERSION"


def find_network(run_id: str, downloads: str, tracking_uri: str | None = None) -> dict[str, Any]:
    """Read which network a run trained, as its config.yaml has it; empty where it keeps none."""
    import mlflow

    try:
        path = mlflow.artifacts.download_artifacts(
            None, run_id, "config.yaml", downloads, tracking_uri
        )
        return dict(yaml.safe_load(Path(path).read_text(encoding="utf-8"))["model"])
    except (mlflow.exceptions.MlflowException, OSError, ValueError, KeyError, TypeError):
        return {}


def is_registered(given: str | None, verb: str) -> bool:
    """Whether what is to be scored is a registered model, which can only predict."""
    return verb == "predict" and re.fullmatch(REGISTERED, str(given)) is not None


def find_program(given: str, downloads: str, tracking_uri: str | None = None) -> str:
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
                f"{given}/{PROGRAM}", None, None, downloads, tracking_uri, tracking_uri
            )
        )
    except (mlflow.exceptions.MlflowException, OSError) as error:
        where = mask(tracking_uri or mlflow.get_registry_uri())
        raise MisconfigurationException(
            f"{given} can't be had from {where} ({mask(str(error))}); `mlflow ui` lists the "
            "models there, and predict takes those that were registered here"
        ) from error
