"""Versions of a registered model, and which of them its aliases name.

No torch here: versions are also registered where a job's log is uploaded, such as a login node.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyclassify.tracking.capsule import DATA_WARNING_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MODEL_FOLDER = "model"  # among a run's artifacts
CHAMPION, CHALLENGER = "champion", "challenger"  # the aliases
HISTORY_TAG = "champion_history"  # a tag of the registered model: versions, the newest first
MAX_HISTORY = 1000  # versions in that tag


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


def register_version(
    client: "MlflowClient",
    run_id: str,
    name: str,
    tags: Mapping[str, str] | None = None,
    path: str = MODEL_FOLDER,
) -> str:
    """Register the model that a run logged as a version of a registered model, once.

    Args:
        client: The registry, and the store of the run.
        run_id: The run.
        name: The registered model, which is created if it is missing.
        tags: The version's tags, in addition to the run's commit, test data and data warning.
        path: The model's folder among the run's artifacts.

    Returns:
        The version; the existing one, if the model was registered before.

    Raises:
        mlflow.exceptions.MlflowException: The run does not exist, or the registry refuses.
    """
    run = client.get_run(run_id)
    source = get_source_uri(run, path)
    if version := find_version(client, run_id, name, source):
        return version
    _create_model(client, name)
    all_tags = {**_collect_source_tags(run), **(tags or {})}
    text = _describe_version(run, all_tags)
    created = client.create_model_version(name, source, run_id, tags=all_tags, description=text)
    return str(created.version)


def get_source_uri(run: "Run", path: str) -> str:
    """Return the URI of a version's files: the folder `path` among the artifacts of its run."""
    return f"{run.info.artifact_uri}/{path}"


def find_version(client: "MlflowClient", run_id: str, name: str, source: str) -> str | None:
    """Find the version of a registered model that was made of a run's model.

    Args:
        client: The registry.
        run_id: The run.
        name: The registered model.
        source: The URI of the version's files.

    Returns:
        The newest such version; None without one.
    """
    versions = [
        found.version
        for found in client.search_model_versions(f"run_id = '{run_id}'")
        if found.name == name and found.source == source
    ]
    return str(max(versions, key=int)) if versions else None


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


def _collect_source_tags(run: "Run") -> dict[str, str]:
    """Name the code and the data that the model of a run comes from."""
    tags = {
        "run_id": run.info.run_id,
        "git_commit": run.data.tags.get("mlflow.source.git.commit"),
        "data_warning": run.data.tags.get(DATA_WARNING_TAG),
    }
    for data_input in run.inputs.dataset_inputs if run.inputs else []:
        if any(tag.value == "test" for tag in data_input.tags):
            tags["test_data"] = f"{data_input.dataset.name} {data_input.dataset.digest}"
    return {name: value for name, value in tags.items() if value}


def _describe_version(run: "Run", tags: Mapping[str, str]) -> str:
    """Describe a version in a few lines of Markdown, for its page in `mlflow ui`."""
    params, size = run.data.params, tags.get("input_size")
    network = params.get("model/model", params.get("model/class", "a network")).rsplit(".", 1)[-1]
    input_size = f", input {size} x {size} pixels" if size else ""
    classes = f", {tags['classes']} classes" if "classes" in tags else ""
    parts = [f"**{network}**{classes}{input_size}."]
    if "test_accuracy" in tags:
        data = tags.get("test_data", "").partition(" ")[0]
        parts.append(f"Test accuracy {tags['test_accuracy']}{f' on {data}' if data else ''}.")
    experiment, run_id = run.info.experiment_id, run.info.run_id
    link = f"[{run.info.run_name}](#/experiments/{experiment}/runs/{run_id})"
    commit = f" of commit `{tags['git_commit'][:12]}`" if "git_commit" in tags else ""
    parts.append(f"From the run {link}{commit}.")
    return " ".join(parts)
