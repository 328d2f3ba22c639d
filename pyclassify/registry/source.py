"""Find the exported program that the URI of a model stands for.

No torch here: a login node can download what a node with GPUs evaluates.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient


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
