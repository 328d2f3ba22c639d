"""What a server will never take of a run: how it is known, and where it is set aside."""

import json
import warnings
from pathlib import Path

from pyclassify.spool.records import Record
from pyclassify.spool.stores import is_database_failing

# What the server says of a request that it will never take, and what a proxy says of it.
INVALID = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST")
_REJECTED = (400, 413, 414, 422)


class Refusals:
    """The records of a run that were set aside.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._name, self._file = folder.name, folder / "refused.records"

    def add(self, record: Record, words: str) -> None:
        """Set aside what can't be delivered, and say so."""
        with self._file.open("a") as file:
            file.write(json.dumps({**record, "words": words}) + "\n")
        warnings.warn(f"{self._name}: not delivered: {words}", stacklevel=2)

    def find(self, path: str) -> str:
        """A file of a folder of the run's files that was set aside; empty where none was."""
        try:
            lines = self._file.read_text().splitlines()
        except FileNotFoundError:
            return ""
        names = (str(json.loads(line).get("path", "")) for line in lines)
        return next((name for name in names if name.startswith(f"{path}/")), "")


def is_final(error: Exception) -> bool:
    """Whether a server will never take what it answered so."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        words = str(error)
        refused = error.error_code in INVALID and not is_database_failing(words)
        # A proxy's own page has no code of MLflow's.
        return refused or "failed with error code 413" in words
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status in _REJECTED
