"""A run's files at the place that its server names."""

from typing import Any


def open_files(client: Any, artifact_uri: str) -> Any:
    """The repository of a run's files, MLflow's `ArtifactRepository`.

    Not by the client's own way, which remembers the repository of a run's id: in a process that
    writes the run to a spool that is the spool, whichever store is asked.

    Args:
        client: An `MlflowClient` of the run's server.
        artifact_uri: The run's.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(artifact_uri, tracking_uri=client.tracking_uri)
