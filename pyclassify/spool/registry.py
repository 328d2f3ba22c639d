"""MLflow is told of spools: by entry points where this package is installed, and by this else."""


def register() -> None:
    """Have MLflow know the URI scheme `spool` in this process."""
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry

    from pyclassify.spool.artifacts import SpoolArtifacts
    from pyclassify.spool.store import SpoolStore

    _tracking_store_registry.register("spool", SpoolStore)
    _artifact_repository_registry.register("spool", SpoolArtifacts)
