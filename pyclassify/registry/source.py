"""Find the weights that a checkpoint's path, a run's ID or a model's URI stands for.

No torch here: a login node can download what a node with GPUs evaluates.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyclassify.registry.versions import find_model
from pyclassify.spool.store_errors import describe_server_error
from pyclassify.utils.masking import mask

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# A registered or logged model.
MODEL_URI = re.compile(r"models:/(m-[^/@]+|[^/@]+@[^/@]+|[^/@]+/[^/@]+)")
MODEL_FORMS = "models:/NAME@ALIAS or models:/NAME/VERSION"
RUN_ID = re.compile(r"[0-9a-f]{4,32}")  # or its first digits
_WEIGHTS_PATH = "weights/best.ckpt"  # among the artifacts of a run without a model


@dataclass(frozen=True)
class Weights:
    """A file with the weights of a network.

    Args:
        path: A checkpoint, or the exported program of a model.
        run: The run that they are of; None of a file and a model.
    """

    path: str
    run: "Run | None" = None

    @property
    def is_program(self) -> bool:
        """Whether the file is an exported program, which needs no Python class."""
        return self.path.endswith(".pt2")


def find_weights(source: str, folder: str, tracking_uri: str | None = None) -> Weights:
    """Find the weights of a checkpoint, a run or a model, and download them.

    Of a run those of its newest model are downloaded; of one without a model, its best checkpoint.

    Args:
        source: The path of a checkpoint or exported program, the ID of a run or its first digits,
            or `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/m-...`.
        folder: The folder that they are downloaded to.
        tracking_uri: The tracking server with its registry; MLFLOW_TRACKING_URI by default.

    Raises:
        ValueError: There are no such weights, or the server does not answer.
        OSError: The store does not exist.
    """
    if Path(source).is_file():
        return Weights(source)
    is_model = MODEL_URI.fullmatch(source) is not None
    if not is_model and not RUN_ID.fullmatch(source):
        raise ValueError(
            f"{source} is not a file (expected a checkpoint file, a run's ID, which has 32 "
            f"hexadecimal digits, or a registered model, {MODEL_FORMS})"
        )
    # MLflow takes a second to import, and a file does not need it.
    from mlflow.exceptions import MlflowException

    from pyclassify.tracking.search import find_run, open_store

    client = open_store(tracking_uri)
    where = mask(client._registry_uri if is_model else client.tracking_uri)
    try:
        if is_model:
            return Weights(download_program(client, find_model_files(client, source), folder))
        run = find_run(client, source)
    except (MlflowException, OSError) as error:
        raise ValueError(
            f"can't download {source} from {where} ({describe_server_error(error)}); `mlflow ui` "
            "lists runs and models, and MLFLOW_TRACKING_URI selects another server"
        ) from error
    return Weights(_download_run_weights(client, run, folder), run)


def _download_run_weights(client: "MlflowClient", run: "Run", folder: str) -> str:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    run_id, uri = run.info.run_id, client.tracking_uri
    try:
        with suppress(ValueError):  # it has no model
            return download_program(client, find_model(client, run).artifact_location, folder)
        return str(download_artifacts(None, run_id, _WEIGHTS_PATH, folder, uri))
    except (MlflowException, OSError) as error:
        raise ValueError(
            f"run {run_id} has neither a model nor {_WEIGHTS_PATH} at {mask(uri)} "
            f"({describe_server_error(error)}); `mlflow ui` lists the runs, and "
            "MLFLOW_TRACKING_URI selects another server"
        ) from error


def find_model_files(client: "MlflowClient", model_uri: str) -> str:
    """Find the files of a model.

    `mlflow.artifacts` would ask the store of MLFLOW_TRACKING_URI, whatever store it is given.

    Args:
        client: The registry, and the store of logged models.
        model_uri: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or `models:/m-...`, a logged model.

    Returns:
        The URI of the folder with the file MLmodel.

    Raises:
        mlflow.exceptions.MlflowException: The model does not exist, or the registry does not
            answer.
    """
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    # The name and version of a registered model, or only the ID of a logged model.
    found = get_model_name_and_version(client, model_uri)  # type: ignore[no-untyped-call]
    if len(found) == 1:
        return str(client.get_logged_model(found[0]).artifact_location)
    return str(client.get_model_version_download_uri(*found))


def download_program(client: "MlflowClient", files: str, folder: str) -> str:
    """Download the exported program of a model.

    Args:
        client: The store that the model's files were logged to.
        files: The URI of the model's files.
        folder: The folder that the program is downloaded to.

    Returns:
        The program's path.

    Raises:
        mlflow.exceptions.MlflowException: The model has no exported program, or its files can't be
            downloaded.
        OSError: The same, on a file system.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    def download(path: str) -> str:
        return str(download_artifacts(f"{files}/{path}", None, None, folder, client.tracking_uri))

    model = Model.load(download("MLmodel"))
    artifacts = model.flavors.get("python_function", {}).get("artifacts") or {}
    if "program" not in artifacts:
        raise MlflowException("the model has no exported program")
    return download(artifacts["program"]["path"])
