"""Versions of a registered model, and which of them its aliases name.

No torch here: versions are also registered where a job's log is uploaded, such as a login node.
"""

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyclassify.registry.lock import lock_model
from pyclassify.spool.records import MODEL_NAME
from pyclassify.spool.store_errors import lacks_logged_models
from pyclassify.tracking.capsule import DATA_WARNING_TAG
from pyclassify.utils.masking import mask

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

RESULT_TAGS = ("classes", "input_size", "test_accuracy")  # tags of a logged model and its versions
CHAMPION, CHALLENGER = "champion", "challenger"  # the aliases
HISTORY_TAG = "champion_history"  # a tag of the registered model: versions, the newest first
MAX_HISTORY = 1000  # versions in that tag


NAME_RULE = "expected a name without / and :, other than . and not starting with .."


@dataclass(frozen=True)
class Version:
    """A version of a registered model: its name, its number as text, its run, its tags."""

    name: str
    number: str
    run_id: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class AliasState:
    """The aliases of a registered model, and the versions that were champion.

    Args:
        champion: The version with the alias `champion`; empty without one.
        challenger: The version with the alias `challenger`; empty without one.
        recorded: The versions in the tag `champion_history`, the newest first. The alias may have
            been moved manually since, and some versions may be deleted.

    Example:
        >>> AliasState(champion="3", challenger="", recorded=("2", "1")).history
        ('3', '2', '1')
    """

    champion: str
    challenger: str
    recorded: tuple[str, ...]

    @property
    def history(self) -> tuple[str, ...]:
        """The champion and those before it, the newest first."""
        if not self.champion or self.recorded[:1] == (self.champion,):
            return self.recorded
        return (self.champion, *self.recorded)

    def extend_history(self, version: str) -> tuple[str, ...]:
        """The history after a version becomes champion."""
        return self.history if self.history[:1] == (version,) else (version, *self.history)


def read_alias_state(client: "MlflowClient", name: str) -> AliasState:
    """Read the aliases and the champion history of a registered model.

    Raises:
        mlflow.exceptions.MlflowException: The model does not exist, or the registry does not
            answer.
    """
    model = client.get_registered_model(name)
    aliases = {alias: str(version) for alias, version in model.aliases.items()}
    recorded = tuple(model.tags.get(HISTORY_TAG, "").split())
    return AliasState(aliases.get(CHAMPION, ""), aliases.get(CHALLENGER, ""), recorded)


def is_valid_name(name: str) -> bool:
    """Whether MLflow accepts the name of a registered model."""
    is_path = bool(set(name) & set("/:")) or name == "." or name.startswith("..")
    return bool(name.strip()) and not is_path


def format_serve_command(model: str) -> str:
    """Format the command that serves a model, on another port than that of `mlflow ui`.

    Args:
        model: A URI, such as models:/NAME/VERSION, or a path.
    """
    return f"mlflow models serve -m {shlex.quote(model)} --env-manager uv --port 5001"


def find_model(client: "MlflowClient", run: "Run") -> "LoggedModel":
    """Find the newest READY model of a run: of its training, or of a user's code without one.

    Args:
        client: The store of the run.
        run: The run.

    Raises:
        ValueError: The run has no such model, or the store is of MLflow 2.
        mlflow.exceptions.MlflowException: The store does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        models = client.search_logged_models(
            [run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'"
        )
    except (MlflowException, NotImplementedError) as error:
        if not lacks_logged_models(error):
            raise
        raise ValueError(
            f"{mask(client.tracking_uri)} does not know logged models; upgrade it to MLflow 3"
        ) from error
    ready = [model for model in models if model.status == "READY"]
    if not ready:
        raise ValueError(_format_missing_model(run, models))
    outputs = run.outputs.model_outputs if run.outputs else []
    steps = {output.model_id: output.step for output in outputs}
    own = [model for model in ready if model.name == MODEL_NAME]
    return max(own or ready, key=lambda m: (steps.get(m.model_id, -1), m.creation_timestamp))


def register_version(client: "MlflowClient", model_id: str, name: str) -> str:
    """Register a logged model as a version of a registered model, once.

    Args:
        client: The registry, and the store of the model and its run.
        model_id: The logged model.
        name: The registered model, which is created if it is missing.

    Returns:
        The version; the existing one, if the model was registered before, also in `mlflow ui`.

    Raises:
        ValueError: The model is not READY.
        mlflow.exceptions.MlflowException: The model does not exist, or the registry refuses.
    """
    model = client.get_logged_model(model_id)
    check_ready(model)
    if version := find_version(client, model, name):
        return version
    _create_model(client, name)
    with lock_model(client, name):  # two processes may register it at the same moment
        if version := find_version(client, model, name):
            return version
        run = client.get_run(str(model.source_run_id))
        tags = _collect_tags(run, model)
        description = _describe_version(run, tags)
        with _resolved_at(client) as is_own:
            created = client.create_model_version(
                name,
                f"models:/{model_id}" if is_own else model.artifact_location,
                run.info.run_id,
                tags=tags,
                description=description,
                model_id=model_id if is_own else None,
            )
        _link_version(client, model, name, int(created.version))
    return str(created.version)


def check_ready(model: "LoggedModel") -> None:
    """Check that all files of a logged model are stored.

    Raises:
        ValueError: The model is PENDING or FAILED.
    """
    if model.status != "READY":
        raise ValueError(
            f"model {model.model_id} is {model.status} (expected READY): its files are not "
            "completely stored; register the model of another run"
        )


def find_version(client: "MlflowClient", model: "LoggedModel", name: str) -> str | None:
    """Find the version of a registered model that was made of a logged model.

    Args:
        client: The registry.
        model: The logged model.
        name: The registered model.

    Returns:
        The newest such version; None without one.
    """
    versions = [
        found.version
        for found in client.search_model_versions(f"run_id = '{model.source_run_id}'")
        if found.name == name and _parse_model_id(found.source) == model.model_id
    ]
    return str(max(versions, key=int)) if versions else None


def complete_version(client: "MlflowClient", name: str, number: str) -> None:
    """Add what `register_version` writes to a version that was registered otherwise.

    These are its tags and its description; what a user has written stays.

    Raises:
        ValueError: The version's model is PENDING or FAILED.
        mlflow.exceptions.MlflowException: The version does not exist, or the registry refuses.
    """
    version = client.get_model_version(name, number)
    model = _find_source_model(client, version.source)
    if model is None or not model.source_run_id:
        return
    check_ready(model)
    run = client.get_run(model.source_run_id)
    tags = {**_collect_tags(run, model), **version.tags}
    for key in sorted(tags.keys() - version.tags.keys()):
        client.set_model_version_tag(name, number, key, tags[key])
    if not version.description:
        client.update_model_version(name, number, _describe_version(run, tags))


def get_version(client: "MlflowClient", name: str, number: str) -> Version:
    """Get a version from the registry.

    Raises:
        mlflow.exceptions.MlflowException: The version does not exist, or the registry does not
            answer.
    """
    found = client.get_model_version(name, number)
    # Some stores return the number as an int, others as a string.
    return Version(name, str(found.version), found.run_id or "", dict(found.tags))


def find_existing_version(
    client: "MlflowClient", name: str, numbers: Iterable[str]
) -> Version | None:
    """Find the first of some versions that is not deleted."""
    from mlflow.exceptions import MlflowException

    for number in numbers:
        try:
            return get_version(client, name, number)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return None


def _create_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _collect_tags(run: "Run", model: "LoggedModel") -> dict[str, str]:
    """Collect the tags that name the code, the data and the result that a model comes from."""
    from pyclassify.tracking.prediction_table import find_test_data

    tags = {
        "run_id": run.info.run_id,
        "git_commit": run.data.tags.get("mlflow.source.git.commit"),
        "data_warning": run.data.tags.get(DATA_WARNING_TAG),
    }
    if data := find_test_data(run):
        tags["test_data"] = f"{data.dataset.name} {data.dataset.digest}"
    tags |= {name: model.tags.get(name) for name in RESULT_TAGS}
    return {name: value for name, value in tags.items() if value}


def _parse_model_id(source: str | None) -> str | None:
    """Parse the logged model's ID from a version's source: models:/ID, or where its files are."""
    found = re.search(r"(?:^models:|/models)/(m-[0-9a-f]{32})(?:/|$)", source or "")
    return found[1] if found else None


def _find_source_model(client: "MlflowClient", source: str | None) -> "LoggedModel | None":
    """Find the logged model of a version's source; None if it was made of other files."""
    from mlflow.exceptions import MlflowException

    model_id = _parse_model_id(source)
    try:
        return client.get_logged_model(model_id) if model_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


@contextmanager
def _resolved_at(client: "MlflowClient") -> Iterator[bool]:
    """Have MLflow resolve models:/ID at the client's server within this context.

    A database store resolves such a source at the tracking URI of the process.

    Yields:
        Whether the registry is that server's own; another one does not know the model's ID.
    """
    import mlflow

    before = mlflow.get_tracking_uri()
    is_own = mlflow.get_registry_uri() in (before, client.tracking_uri)
    if before == client.tracking_uri:
        yield is_own
        return
    mlflow.set_tracking_uri(client.tracking_uri)
    try:
        yield is_own
    finally:
        mlflow.set_tracking_uri(before)


def _link_version(client: "MlflowClient", model: "LoggedModel", name: str, number: int) -> None:
    """Name a version on the page of its model; a server does so itself, a database does not."""
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    tags = client.get_logged_model(model.model_id).tags
    versions = json.loads(tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    linked = {(version["name"], int(version["version"])) for version in versions}
    if (name, number) not in linked:
        versions.append({"name": name, "version": number})
        value = {MLFLOW_MODEL_VERSIONS: json.dumps(versions)}
        client.set_logged_model_tags(model.model_id, value)


def _format_missing_model(run: "Run", models: "Iterable[LoggedModel]") -> str:
    """Format why a run has no model to register, and the next command."""
    run_id, status = run.info.run_id, run.info.status
    found = ", ".join(sorted({str(model.status) for model in models}))
    state = f"its models are {found}" if found else f"the run is {status}, and logged no model"
    command = f"pyclassify rerun {run_id[:8]} --register NAME"
    return f"run {run_id} has no READY model ({state}); train again with one: `{command}`"


def _describe_version(run: "Run", tags: Mapping[str, str]) -> str:
    """Describe a version in a few lines of Markdown, for its page in `mlflow ui`."""
    params, size = run.data.params, tags.get("input_size")
    network = params.get("model/model", params.get("model/class", "a network")).rsplit(".", 1)[-1]
    input_size = f", input {size} x {size} pixels" if size else ""
    classes = f", {tags['classes']} classes" if "classes" in tags else ""
    parts = [f"{network}{classes}{input_size}."]
    if "test_accuracy" in tags:
        data = tags.get("test_data", "").partition(" ")[0]
        parts.append(f"Test accuracy {tags['test_accuracy']}{f' on {data}' if data else ''}.")
    experiment, run_id = run.info.experiment_id, run.info.run_id
    link = f"[{run.info.run_name}](#/experiments/{experiment}/runs/{run_id})"
    commit = f" of commit `{tags['git_commit'][:12]}`" if "git_commit" in tags else ""
    parts.append(f"From the run {link}{commit}.")
    return " ".join(parts)
