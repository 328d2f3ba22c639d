"""What goes to the stores beside the tracking server: a run's files, and versions of its model.

A bucket or a registry may be away, or refuse, where the server takes all else.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pyclassify.spool.files import open_files
from pyclassify.spool.records import Record

# Spent on files that can't be stored: each may take a timeout, and what is logged has to go on.
_PATIENCE = 10.0  # seconds


class WaitingError(OSError):
    """Files can't be stored or a version can't be made at the moment; all else was delivered.

    Args:
        what: What is not taken: "no file", or "no version".
        words: Why.
    """

    def __init__(self, what: str, words: str) -> None:
        super().__init__(words)
        self.what = what


class Uploads:
    """What is not stored yet; one thing that can't be holds nothing up but versions made of it.

    Args:
        offer: Sends a record by the function that follows it, or sets it aside for good.

    Attributes:
        waiting: The records of what could not be stored yet, files by their paths.
    """

    def __init__(self, offer: Callable[..., None]) -> None:
        self._offer = offer
        self.waiting: dict[str, Record] = {}
        self.begin()

    def begin(self) -> None:
        """Have patience again, and try anew what could not be stored."""
        self._failed: dict[str, Exception] = {}
        self._spent = 0.0

    def send(self, send: Mapping[str, Callable[[Record], None]]) -> None:
        """Store what can be, each thing once a turn: all files, then versions of a model.

        Args:
            send: What stores a record of each kind, in order; those of other kinds wait.
        """
        for kind in send:
            for key, record in [*self.waiting.items()]:
                if record["kind"] == kind and key not in self._failed and self._spent < _PATIENCE:
                    self._try(key, record, send[kind])
            if any(each["kind"] == "artifact" for each in self.waiting.values()):
                return

    def _try(self, key: str, record: Record, send: Callable[[Record], None]) -> None:
        start = time.monotonic()
        try:
            self._offer(record, send, record)
            del self.waiting[key]
        except Exception as error:  # each kind of store fails in its own way
            self._failed[key] = error
            self._spent += time.monotonic() - start

    def check(self) -> None:
        """Say what can't be stored.

        Raises:
            WaitingError: Something can't.
        """
        for key, error in self._failed.items():
            what = "no file" if self.waiting[key]["kind"] == "artifact" else "no version"
            raise WaitingError(what, f"{key}: {error}") from error


def upload(client: Any, artifact_uri: str, path: Path, name: str) -> None:
    """Store a file of a run.

    Args:
        client: An `MlflowClient` of the server.
        artifact_uri: Where the run's files are.
        path: The file.
        name: Its path in the run.
    """
    parent = Path(name).parent.as_posix()
    files = open_files(client, artifact_uri)
    files.log_artifact(str(path), None if parent == "." else parent)
