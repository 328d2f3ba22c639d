"""The files of a run in its spool, as MLflow's artifact repository."""

import os
import shutil
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository, verify_artifact_path

from pyclassify.spool.store import root_of
from pyclassify.spool.writer import open_run

_CHUNK = 1 << 20


class SpoolArtifacts(ArtifactRepository):
    """A run's files: copied into its spool, then recorded, so that a record's file is whole.

    Args:
        artifact_uri: `spool:///ROOT/<run_id>/artifacts`.
    """

    def __init__(self, artifact_uri: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(artifact_uri, *args, **kwargs)
        self.folder = root_of(artifact_uri)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        verify_artifact_path(artifact_path)
        name = Path(artifact_path or "", Path(local_file).name)
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.folder.parent / f"copy.{os.getpid()}.{threading.get_ident()}"
        try:
            digest, size = _copy(Path(local_file), temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)  # half a file on a disk that is full
        record = {"kind": "artifact", "path": name.as_posix(), "size": size, "sha256": digest}
        open_run(self.folder.parent).append(record)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        for path in sorted(Path(local_dir).rglob("*")):
            if path.is_file():
                inside = path.parent.relative_to(local_dir)
                self.log_artifact(str(path), Path(artifact_path or "", inside).as_posix())

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        folder = self.folder / (path or "")
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        return [
            FileInfo(
                each.relative_to(self.folder).as_posix(),
                each.is_dir(),
                None if each.is_dir() else each.stat().st_size,
            )
            for each in found
        ]

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        shutil.copyfile(self.folder / remote_file_path, local_path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        raise NotImplementedError("a spool deletes nothing; delete it at the server")


def _copy(source: Path, target: Path) -> tuple[str, int]:
    digest, size = sha256(), 0
    with source.open("rb") as original, target.open("wb") as copy:
        while chunk := original.read(_CHUNK):
            digest.update(chunk)
            size += copy.write(chunk)
        copy.flush()
        os.fsync(copy.fileno())
    return digest.hexdigest(), size
