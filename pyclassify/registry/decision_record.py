"""A decision as it is kept: in tags of the version and its run's decision.json."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyclassify.registry.aliases import Standing, Version
from pyclassify.registry.decision import NOT_JUDGED, Decision, restore, restore_from_tags
from pyclassify.spool.server import open_files
from pyclassify.tracking.run import attempt

FILE = "decision.json"


def place(version: Version) -> str:
    """The folder of a version's decision among its run's artifacts, which others may share."""
    return f"registry/{version.name}-{version.number}"


def read(client: Any, version: Version) -> Decision | None:
    """Read the last decision about a version.

    Args:
        client: An `MlflowClient`.
        version: The version.

    Returns:
        None where there is none; what its tags tell, where its file is lost.
    """
    if "decision" not in version.tags:
        return None
    try:
        return restore(_load(client, version))
    except Exception:  # each kind of store fails in its own way
        return restore_from_tags(version.name, version.number, version.tags)


def stamp(decision: Decision, kept: Decision | None) -> Decision:
    """A decision with its time; the one that is kept already, where that says the same."""
    if kept and replace(decision, time=kept.time) == kept:
        return kept
    now = datetime.now(UTC).isoformat(" ", "seconds").replace("+00:00", " UTC")
    return replace(decision, time=now)


def save(client: Any, version: Version, decision: Decision) -> None:
    """Write a decision into its file, where those before it stay, under `earlier`."""
    if version.run_id:
        attempt(f"{place(version)}/{FILE}", _save, client, version, decision.as_data())


def mark(client: Any, version: Version, decision: Decision) -> None:
    """Tell a decision in the version's tags."""
    told = decision.tags()
    # The decision itself comes last: who reads it finds the rest.
    for key in sorted(told, key=lambda key: key == "decision"):
        if told[key]:
            client.set_model_version_tag(version.name, version.number, key, told[key])
        elif key in version.tags:
            with unless_refused():
                client.delete_model_version_tag(version.name, version.number, key)


@contextmanager
def unless_refused() -> Iterator[None]:
    """Within this context what is refused is left: who may make versions may not delete tags."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise


def is_carried_out(kept: Decision, standing: Standing) -> bool:
    """Whether there is no more to do: a process may have been killed before it moved the alias."""
    moved = not kept.is_champion or kept.version in standing.history
    return moved and kept.outcome != NOT_JUDGED


def _save(client: Any, version: Version, data: dict[str, Any]) -> None:
    earlier: list[dict[str, Any]] = []
    if "decision" in version.tags:
        with suppress(Exception):  # what is lost can't be kept
            last = _load(client, version)
            earlier = [*last.pop("earlier"), last]
    text = json.dumps({**data, "earlier": earlier}, indent=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, FILE)
        path.write_text(f"{text}\n", encoding="utf-8")
        _open_files(client, version).log_artifact(str(path), place(version))


def _load(client: Any, version: Version) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = _open_files(client, version).download_artifacts(f"{place(version)}/{FILE}", folder)
        data: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return data


def _open_files(client: Any, version: Version) -> Any:
    return open_files(client, client.get_run(version.run_id).info.artifact_uri)
