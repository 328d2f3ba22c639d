"""The files of a spool as MLflow's artifact repository: those of runs, and of logged models."""

import os
import shutil
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.store.artifact.artifact_repo import ArtifactRepository, verify_artifact_path

from pyclassify.spool import records
from pyclassify.spool.records import Record
from pyclassify.spool.writer import open_writer

_CHUNK_BYTES = 1 << 20


def parse_spool_uri(uri: str) -> Path:
    """Parse the URI of a spool to its folder.

    Raises:
        MlflowException: The URI has no absolute path.
    """
    parts = urlsplit(uri)
    if parts.netloc or not parts.path.startswith("/"):
        raise MlflowException(
            f"invalid spool URI: {uri} (expected an absolute path: spool:///FOLDER)",
            INVALID_PARAMETER_VALUE,
        )
    return Path(unquote(parts.path))


class SpoolArtifacts(ArtifactRepository):
    """The files of a run or of a logged model: each is copied before its record is written.

    Args:
        artifact_uri: `spool:///ROOT/<run_id>/artifacts`, or `spool:///ROOT/<run_id>/models/<id>`.
    """

    def __init__(self, artifact_uri: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(artifact_uri, *args, **kwargs)
        self.folder = parse_spool_uri(artifact_uri)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        verify_artifact_path(artifact_path)
        name = Path(artifact_path or "", Path(local_file).name)
        is_of_model = self.folder.parent.name == records.MODELS_FOLDER
        run_folder = self.folder.parents[1] if is_of_model else self.folder.parent
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = run_folder / f"copy.{os.getpid()}.{threading.get_ident()}"
        try:
            digest, size = _copy(Path(local_file), temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)  # an incomplete copy on a full disk
        record: Record = {"kind": "artifact", "path": name.as_posix()}
        record |= {"size": size, "sha256": digest}
        if is_of_model:
            record["model"] = self.folder.name
        open_writer(run_folder).append(record)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        for path in sorted(Path(local_dir).rglob("*")):
            if path.is_file():
                inside = Path(artifact_path or "", path.parent.relative_to(local_dir)).as_posix()
                self.log_artifact(str(path), None if inside == "." else inside)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        folder = self.folder / (path or "")
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        return [
            FileInfo(
                file.relative_to(self.folder).as_posix(),
                file.is_dir(),
                None if file.is_dir() else file.stat().st_size,
            )
            for file in files
        ]

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        shutil.copyfile(self.folder / remote_file_path, local_path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        raise NotImplementedError(
            "deleting artifacts is not supported by a spool; delete them at the server"
        )


def _copy(source: Path, target: Path) -> tuple[str, int]:
    digest, size = sha256(), 0
    with source.open("rb") as original, target.open("wb") as copy:
        while chunk := original.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += copy.write(chunk)
        copy.flush()
        os.fsync(copy.fileno())
    return digest.hexdigest(), size
