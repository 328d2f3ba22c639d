"""A job's logs: where they are, and what is new in them."""

import glob
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path


def locate(pattern: str, job_id: str, job_name: str) -> Path | None:
    """Find the file that SLURM made of a pattern, if there is one yet.

    Args:
        pattern: An absolute path with sbatch's %j and others ("filename pattern" in sbatch(1)).
        job_id: The job's number.
        job_name: Its name.
    """
    parts = [glob.escape(part) for part in fill(pattern, job_id, job_name).split("\0")]
    found = sorted(glob.glob("*".join(parts)))
    return Path(found[-1]) if found else None


def fill(pattern: str, job_id: str, job_name: str, unknown: str = "\0") -> str:
    """Fill in a pattern as far as it is known before the job starts.

    Args:
        pattern: A file name with sbatch's %j and others.
        job_id: The job's number.
        job_name: Its name.
        unknown: What stands for the others, such as %N, the first node.
    """
    known = {"j": job_id, "A": job_id, "x": job_name, "%": "%"}

    def expand(found: re.Match[str]) -> str:
        width, letter = found[1], found[2]
        text = known.get(letter, unknown)
        return text.zfill(int(width)) if width and letter in "jA" else text

    return re.sub(r"%(\d*)([A-Za-z%])", expand, pattern)


class Tail:
    """What is new in some logs, each time that it is asked.

    Args:
        patterns: Those of the logs.
        job_id: The job's number.
        job_name: Its name.
    """

    def __init__(self, patterns: list[str], job_id: str, job_name: str) -> None:
        self.patterns, self.job_id, self.job_name = patterns, job_id, job_name
        self._read: dict[Path, int] = {}

    def files(self) -> list[Path]:
        """The logs that there are, stdout first."""
        found = (locate(each, self.job_id, self.job_name) for each in self.patterns)
        return list(dict.fromkeys(path for path in found if path))

    def expected(self) -> list[str]:
        """Where the logs would be, with a * for what only SLURM knows."""
        names = (fill(each, self.job_id, self.job_name, "*") for each in self.patterns)
        return list(dict.fromkeys(names))

    def new(self) -> Iterator[str]:
        """The text that was written since the last call."""
        for path in self.files():
            with path.open("rb") as file:
                read = self._read.get(path, 0)
                # A job that is requeued may start its log anew.
                file.seek(read if read <= file.seek(0, os.SEEK_END) else 0)
                text = file.read()
                self._read[path] = file.tell()
            if text:
                yield text.decode(errors="replace")


def tail_of(tags: Mapping[str, str]) -> Tail:
    """The logs of a run, by its tags."""
    patterns = [tags[name] for name in ("slurm_output", "slurm_error") if name in tags]
    job_id = tags.get("slurm_job_id", "").partition(";")[0]
    return Tail(patterns, job_id, tags.get("slurm_job_name", ""))


def kept_logs(run_id: str) -> Iterator[str]:
    """The logs among a run's artifacts, for where its folder was cleared."""
    from mlflow import MlflowClient

    client = MlflowClient()
    with tempfile.TemporaryDirectory() as folder:
        for each in client.list_artifacts(run_id, "slurm"):
            if Path(each.path).name not in ("job.sh", "backend_config.json"):
                path = client.download_artifacts(run_id, each.path, folder)
                yield Path(path).read_text(errors="replace")


def absolute(folder: Path, name: str) -> str:
    """A log's pattern where SLURM would take it to be, in the job's folder."""
    return os.path.join(str(folder).replace("%", "%%"), name)
