"""Find the weights that a checkpoint's path, a run's ID or a model's URI stands for.

No torch here: a login node can download what a node with GPUs evaluates.
"""

import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pyclassify.registry.versions import find_model
from pyclassify.spool.model_sender import FALLBACK_FOLDER
from pyclassify.spool.store_errors import describe_server_error
from pyclassify.utils.masking import mask

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from pyclassify.serving.predictor import Predictor

# A registered or logged model.
MODEL_URI = re.compile(r"models:/(m-[^/@]+|[^/@]+@[^/@]+|[^/@]+/[^/@]+)")
MODEL_FORMS = "models:/NAME@ALIAS or models:/NAME/VERSION"
RUN_ID = re.compile(r"[0-9a-f]{4,32}")  # or its first digits
RUN_ID_FORM = "the first 4 to 32 hexadecimal digits of a run's ID"
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


def load(source: str | Path, tracking_uri: str | None = None) -> "Predictor":
    """Load a trained network to classify images, from a run, a checkpoint or a model.

    Of a run its newest model is loaded; of one without a model, its best checkpoint.

    Args:
        source: The ID of a run or its first digits, the path of a checkpoint or of an exported
            program (model.pt2), or `models:/NAME@ALIAS`, `models:/NAME/VERSION` or
            `models:/m-...`.
        tracking_uri: The tracking server with its registry; by default that of
            MLFLOW_TRACKING_URI, or mlflow.db in the working directory.

    Returns:
        The network with `predict`, `classes` and `preprocess`, on the CPU.

    Raises:
        ValueError: There are no such weights, the server does not answer, or the checkpoint does
            not describe its network.
        OSError: The store does not exist.

    Example:
        Of a run it is `load("3f2a")`, of a registered model `load("models:/pets@champion")`:

        >>> from pyclassify import AlexNetBN, Preprocess, load
        >>> from pyclassify.serving.export import export_program
        >>> names = export_program(AlexNetBN(2), Preprocess(), ["cat", "dog"], "model.pt2")
        >>> network = load("model.pt2")
        >>> network.classes
        ['cat', 'dog']
        >>> predictions = network.predict("photos/test", top_k=1, progress=False)
        >>> predictions[0].keys()
        dict_keys(['classes', 'probabilities'])
    """
    from pyclassify.serving.export import load_program
    from pyclassify.serving.predictor import Predictor

    with tempfile.TemporaryDirectory() as folder:
        weights = find_weights(str(source), folder, tracking_uri)
        if not weights.is_program:
            return _load_checkpoint(weights, folder, tracking_uri)
        try:
            program, classes, preprocess = load_program(weights.path)
        except Exception as error:  # torch raises any type for another file
            raise ValueError(f"{source} has no exported classifier ({error})") from error
        return Predictor(program.module(), classes, preprocess)


def _load_checkpoint(weights: Weights, folder: str, tracking_uri: str | None) -> "Predictor":
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from pyclassify.data.transforms import Preprocess
    from pyclassify.module import Classifier
    from pyclassify.serving.export import ProbabilityNetwork
    from pyclassify.serving.predictor import Predictor
    from pyclassify.training.checkpoints import find_data_state, read_checkpoint

    try:
        checkpoint = read_checkpoint(weights.path)
    except Exception as error:  # torch raises any type for another file
        raise ValueError(f"{weights.path} is not a checkpoint ({error})") from error
    state = next(iter(find_data_state(checkpoint).values()), {})
    arguments = _describe_classifier(weights, checkpoint, state, folder, tracking_uri)
    try:
        network = Classifier.load_from_checkpoint(weights.path, map_location="cpu", **arguments)
    except (MisconfigurationException, RuntimeError) as error:
        raise ValueError(f"can't load {weights.path}: {error}") from error
    settings = {name: state[name] for name in ("resize", "crop", "mean", "std") if name in state}
    preprocess = Preprocess(**settings) if settings else network.preprocess
    classes = state.get("classes") or [str(label) for label in range(network.num_classes)]
    return Predictor(ProbabilityNetwork(network, preprocess).eval(), classes, preprocess)


def _describe_classifier(
    weights: Weights,
    checkpoint: dict[str, Any],
    state: dict[str, Any],
    folder: str,
    tracking_uri: str | None,
) -> dict[str, Any]:
    """Describe the classifier of a checkpoint, where the checkpoint does not do so itself."""
    from pyclassify.module import Classifier
    from pyclassify.training.checkpoints import CLASSIFIER_KEY
    from pyclassify.training.network import ConfiguredNetwork, import_object

    config: dict[str, Any] = {}
    if weights.run is not None:
        config = read_model_config(weights.run.info.run_id, folder, tracking_uri)
    options = config.get("init_args") or {}
    if "model" in options and issubclass(import_object(config["class_path"]), Classifier):
        # The run's configuration is trusted, as `predict` and `rerun` do.
        network = ConfiguredNetwork(options["model"], is_trusted=True)
        num_classes = len(state.get("classes", ())) or options.get("num_classes")
        return {"model": network} | ({"num_classes": num_classes} if num_classes else {})
    if CLASSIFIER_KEY not in checkpoint:
        raise ValueError(
            f"{weights.path} does not describe its network; give the ID of its run, or load it by "
            "Classifier.load_from_checkpoint(PATH, model=NETWORK, num_classes=N)"
        )
    return {}


def read_model_config(run_id: str, folder: str, tracking_uri: str | None = None) -> dict[str, Any]:
    """Read the model's settings from a run's config.yaml; empty where the run has none."""
    import mlflow

    try:
        path = mlflow.artifacts.download_artifacts(
            None, run_id, "config.yaml", folder, tracking_uri
        )
        return dict(yaml.safe_load(Path(path).read_text(encoding="utf-8"))["model"])
    except (mlflow.exceptions.MlflowException, OSError, ValueError, KeyError, TypeError):
        return {}


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
    if Path(source).expanduser().is_file():
        return Weights(str(Path(source).expanduser()))
    is_model = MODEL_URI.fullmatch(source) is not None
    if not is_model and not RUN_ID.fullmatch(source):
        raise ValueError(
            f"{source} is not a file (expected a checkpoint file, {RUN_ID_FORM}, or a registered "
            f"model, {MODEL_FORMS})"
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
        names = {file.path for file in client.list_artifacts(run_id)}
        if FALLBACK_FOLDER in names and Path(_WEIGHTS_PATH).parent.name not in names:
            return download_program(client, f"{run.info.artifact_uri}/{FALLBACK_FOLDER}", folder)
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
