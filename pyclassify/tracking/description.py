"""The description of a run, Markdown in a tag, which the run's page in `mlflow ui` begins with.

First come the results, once there are any: the page shows a few lines of it until it is asked for
more. Then comes what was run, written when the run starts, and how to make it again.

What a person wrote stays. Ours ends in a seal, a line that is not shown and has the digest of all
before it: text without it or changed before it is left alone, and what stands after it is kept.
"""

import re
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from pyclassify.tracking.about import BEGIN, tell_what_was_run
from pyclassify.tracking.markdown import plain
from pyclassify.tracking.results import Scores, tell_results
from pyclassify.utils.masking import mask

NOTE = "mlflow.note.content"
UNFINISHED = "**No results**: this run goes on, or was stopped before it had any."

_SEAL = re.compile(r'\n\n\[pyclassify\]: # "([0-9a-f]{16})"(?:\n|$)')


def begin(client: Any, run_id: str, config: dict[str, Any], facts: dict[str, Any]) -> None:
    """Describe what a run is, at its start.

    Args:
        client: An `MlflowClient`.
        run_id: The run.
        config: Its resolved configuration.
        facts: Those of its capsule.
    """

    def compose(run: Any, _: str) -> str:
        page = f"#/experiments/{run.info.experiment_id}/runs/{run_id}"
        return f"{UNFINISHED}\n\n{tell_what_was_run(config, facts, run.data.tags, page)}"

    _rewrite(client, run_id, compose, anew=True)


def finish(
    client: Any,
    run_id: str,
    scores: Scores | None = None,
    epochs: int = 0,
    picture: str = "",
) -> None:
    """Put a run's results first, out of its metrics and what else is given.

    Args:
        client: An `MlflowClient`.
        run_id: The run.
        scores: Its test by classes.
        epochs: How many it was trained for.
        picture: One of its artifacts.
    """

    def compose(run: Any, body: str) -> str:
        told = tell_results(run.data.metrics, scores, epochs)
        if picture:
            # Relative, it is found behind a server's prefix too.
            told += f"\n\n![What was taken for what](get-artifact?path={picture}&run_uuid={run_id})"
        return f"{told}\n\n{body}"

    _rewrite(client, run_id, compose)


def fail(client: Any, run_id: str, error: BaseException) -> None:
    """Say first what ended a run."""
    words = plain(mask(f"{type(error).__name__}: {error}"), most=300)
    _rewrite(client, run_id, lambda run, body: f"**Failed**: {words}\n\n{body}")


def seal(text: str) -> str:
    """Mark a text as ours."""
    return f'{text}\n\n[pyclassify]: # "{_digest(text)}"\n'


def unseal(note: str) -> tuple[str, str]:
    """Tell our text from what stands after its seal; none is ours where it was changed."""
    for found in _SEAL.finditer(note):
        if _digest(note[: found.start()]) == found[1]:
            return note[: found.start()], note[found.end() :]
    return "", note


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


def _rewrite(
    client: Any, run_id: str, compose: Callable[[Any, str], str], anew: bool = False
) -> None:
    from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

    run = client.get_run(run_id)
    ours, theirs = unseal(run.data.tags.get(NOTE, ""))
    if not ours and (theirs or not anew):
        return
    body = ours[max(0, ours.find(BEGIN)) :]
    note = seal(compose(run, body)) + theirs
    if len(note) <= MAX_TAG_VAL_LENGTH:  # longer, it would be cut
        client.set_tag(run_id, NOTE, note)
