"""The registry: versions of a registered model, made of the models that runs keep.

No torch here: versions are also made where a job's log is delivered, a login node say.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MODEL_FOLDER = "model"  # among a run's artifacts
CHAMPION, CHALLENGER = "champion", "challenger"
HISTORY_TAG = "champions"  # a tag of the registered model: versions, the newest first
MAX_HISTORY = 1000  # of the history


def register_version(
    client: Any,
    run_id: str,
    name: str,
    tags: Mapping[str, str] | None = None,
    path: str = MODEL_FOLDER,
) -> str:
    """Make the model that a run keeps a version of a registered model, once.

    Args:
        client: An `MlflowClient`.
        run_id: The run.
        name: The registered model, which is made where it is missing.
        tags: The version's tags, beside the commit and the data that the run tells.
        path: Where the run keeps the model.

    Returns:
        The version; the one that there is, if it was registered before.

    Raises:
        mlflow.exceptions.MlflowException: There is no such run, or the registry takes nothing.
    """
    run = client.get_run(run_id)
    source = get_source_uri(run, path)
    if version := find_version(client, run_id, name, source):
        return version
    _create_model(client, name)
    all_tags = {**_collect_source_tags(run), **(tags or {})}
    text = _describe_version(run, all_tags)
    made = client.create_model_version(name, source, run_id, tags=all_tags, description=text)
    return str(made.version)


def get_source_uri(run: Any, path: str) -> str:
    """Where a version's files are, of a model that a run keeps."""
    return f"{run.info.artifact_uri}/{path}"


def find_version(client: Any, run_id: str, name: str, source: str) -> str | None:
    """Find the version of a registered model that was made of a model of a run, if there is one.

    Args:
        client: An `MlflowClient`.
        run_id: The run.
        name: The registered model.
        source: Where the version's files are.
    """
    found = [
        each.version
        for each in client.search_model_versions(f"run_id = '{run_id}'")
        if each.name == name and each.source == source
    ]
    return str(max(found, key=int)) if found else None


def _create_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _collect_source_tags(run: Any) -> dict[str, str]:
    """What a run says of the code and the test images that its model comes from."""
    told = {"run_id": run.info.run_id, "git_commit": run.data.tags.get("mlflow.source.git.commit")}
    for each in run.inputs.dataset_inputs:
        if any(tag.value == "test" for tag in each.tags):
            told["test_data"] = f"{each.dataset.name} {each.dataset.digest}"
    return {name: value for name, value in told.items() if value}


def _describe_version(run: Any, tags: Mapping[str, str]) -> str:
    """Say in a few lines of Markdown what a version is, for its page in `mlflow ui`.

    Args:
        run: Its run.
        tags: The version's tags.
    """
    params, size = run.data.params, tags.get("input_size")
    network = params.get("model/model", params.get("model/class", "a network")).rsplit(".", 1)[-1]
    sees = f", sees images at {size} x {size} pixels" if size else ""
    parts = [f"**{network}**, {tags.get('classes', 'some')} classes{sees}."]
    if "test_accuracy" in tags:
        data = tags.get("test_data", "").partition(" ")[0]
        parts.append(f"Test accuracy {tags['test_accuracy']}{f' on {data}' if data else ''}.")
    experiment, run_id = run.info.experiment_id, run.info.run_id
    link = f"[{run.info.run_name}](#/experiments/{experiment}/runs/{run_id})"
    commit = f" of commit `{tags['git_commit'][:12]}`" if "git_commit" in tags else ""
    parts.append(f"From the run {link}{commit}.")
    return " ".join(parts)


@dataclass(frozen=True)
class Version:
    """A version of a registered model: its name, its number as text, its run, its tags."""

    name: str
    number: str
    run_id: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class AliasState:
    """What a registered model's aliases and history say.

    Args:
        champion: The version with the alias, empty where none has it.
        challenger: The same of the other alias.
        history: The versions that were champion, the newest first; the alias may have been moved by
            hand since, and some may be deleted.
    """

    champion: str
    challenger: str
    history: tuple[str, ...]

    @property
    def line(self) -> tuple[str, ...]:
        """The champion and those before it, the newest first."""
        if not self.champion or self.history[:1] == (self.champion,):
            return self.history
        return (self.champion, *self.history)

    def led_by(self, version: str) -> tuple[str, ...]:
        """The same once a version is champion."""
        return self.line if self.line[:1] == (version,) else (version, *self.line)


def read_alias_state(client: Any, name: str) -> AliasState:
    """Ask the registry."""
    model = client.get_registered_model(name)
    aliases = {alias: str(version) for alias, version in model.aliases.items()}
    history = tuple(model.tags.get(HISTORY_TAG, "").split())
    return AliasState(aliases.get(CHAMPION, ""), aliases.get(CHALLENGER, ""), history)


def get_version(client: Any, name: str, number: str) -> Version:
    """Ask the registry for a version, which gives its number as one type or another."""
    found = client.get_model_version(name, number)
    return Version(name, str(found.version), found.run_id or "", dict(found.tags))


def find_existing_version(client: Any, name: str, versions: Iterable[str]) -> Version | None:
    """The first of some versions that is not deleted."""
    from mlflow.exceptions import MlflowException

    for version in versions:
        try:
            return get_version(client, name, version)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return None
