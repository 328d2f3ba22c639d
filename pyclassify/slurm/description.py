"""What this backend says of a run in the run's description, beside what people wrote there."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyclassify.utils.masking import mask

_NOTE = "mlflow.note.content"  # MLflow's tag for a run's description
_LAST_LINES = 20
_LAST_BYTES = 4000  # some of MLflow's servers take 5000 for a description
_QUOTED = "The last lines of stderr:"


def name_job(job_id: str) -> str:
    """What a paragraph on a job begins with, whether or not its id names the cluster."""
    return f"SLURM job {job_id.partition(';')[0]}"


def tells(run: Any, subject: str) -> bool:
    """Whether a run's description has a paragraph on a subject."""
    return bool(_find(subject).search(_read(run)))


def describe(client: Any, run: Any, subject: str, words: str, logs: Sequence[Path] = ()) -> None:
    """Say something in a run's description, in the place of what was said on the same subject.

    Args:
        client: An `MlflowClient`.
        run: The run.
        subject: What it is about.
        words: A line.
        logs: Stdout and stderr, whose last lines are told too.
    """
    more = _quote_last_lines(logs)
    _write(client, run, subject, "\n\n".join([f"{subject}: {words}", *more]))


def forget(client: Any, run: Any, subject: str) -> None:
    """Take back what was said on a subject."""
    if tells(run, subject):
        _write(client, run, subject, "")


def _write(client: Any, run: Any, subject: str, text: str) -> None:
    note, found = _find(subject).subn("", _read(run))
    note = note.strip("\n") if found else note
    client.set_tag(run.info.run_id, _NOTE, "\n\n".join(each for each in (note, text) if each))


def _read(run: Any) -> str:
    return str(run.data.tags.get(_NOTE, ""))


def _find(subject: str) -> re.Pattern[str]:
    """The paragraph on a subject, and what it quotes."""
    quote = rf"\n\n{_QUOTED}\n\n(`{{3,}})\n(?s:.*?)\n\1$"
    return re.compile(rf"(?:\A|\n\n){re.escape(subject)}: .*(?:{quote})?", re.MULTILINE)


def _quote_last_lines(logs: Sequence[Path]) -> list[str]:
    if not logs or not logs[-1].is_file():
        return []
    with logs[-1].open("rb") as file:
        file.seek(-min(_LAST_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
        lines = file.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
    if not any(line.strip() for line in lines):
        return []
    text = "\n".join(mask(line) for line in lines)
    fence = max(("```", *(f"{each}`" for each in re.findall("`+", text))), key=len)
    return [_QUOTED, f"{fence}\n{text}\n{fence}"]
