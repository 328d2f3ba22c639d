"""The description of a run, Markdown in a tag, which the run's page in `mlflow ui` begins with.

First come the results, once there are any: the page shows a few lines of it until it is asked for
more. Then comes what was run, written when the run starts, and how to make it again.

What a person wrote stays. Ours ends in a seal, a line that is not shown and has the digest of all
before it: text without it or changed before it is left alone, and what stands after it is kept.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pyclassify.tracking.about import BEGIN, tell_what_was_run
from pyclassify.tracking.markdown import plain
from pyclassify.tracking.masking import mask

NOTE = "mlflow.note.content"
UNFINISHED = "**No results**: this run goes on, or was stopped before it had any."

_SEAL = re.compile(r'\n\n\[pyclassify\]: # "([0-9a-f]{16})"\n')
_FEW = 3  # classes that are named as best, and as worst

_OTHERS = {
    "best_val_accuracy": "best validation accuracy",
    "test_loss": "test loss",
    "test_ece": "calibration error",
}


@dataclass(frozen=True)
class Scores:
    """How many test images of each class there are, and how many are recognised.

    Args:
        names: The classes.
        total: The images of each.
        right: Those of them that are recognised.
    """

    names: Sequence[str]
    total: Sequence[int]
    right: Sequence[int]


def begin(client: Any, run_id: str, config: dict[str, Any], facts: dict[str, Any]) -> None:
    """Describe what a run is, at its start.

    Args:
        client: An `MlflowClient`.
        run_id: The run.
        config: Its resolved configuration.
        facts: Those of its capsule.
    """
    _rewrite(
        client,
        run_id,
        lambda run, _: f"{UNFINISHED}\n\n{tell_what_was_run(run, config, facts)}",
        anew=True,
    )


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


def tell_results(metrics: Mapping[str, float], scores: Scores | None, epochs: int) -> str:
    """Write a run's results as Markdown, a line for the accuracy, one for the rest, one by class.

    Args:
        metrics: The run's own, by name.
        scores: Its test by classes, if there was one.
        epochs: How many it was trained for, 0 if it was not.
    """
    ranked = {"test_accuracy": "Test accuracy", **_OTHERS, "val_accuracy": "validation accuracy"}
    first, *_ = [name for name in ranked if name in metrics and "accuracy" in name] or [""]
    lines = [f"**{ranked[first].capitalize()} {metrics[first]:.4f}**" if first else "**Finished**"]
    if first == "test_accuracy" and scores is not None:
        lines[0] += f" ({_tell_interval(sum(scores.right), sum(scores.total))})"
    rest = [
        f"{words} {metrics[name]:.4f}"
        for name, words in _OTHERS.items()
        if name in metrics and name != first
    ]
    if "parameters" in metrics:
        rest.append(f"{metrics['parameters']:,.0f} parameters")
    time = _tell_time(metrics["wall_seconds"]) if "wall_seconds" in metrics else ""
    done = f"{epochs} epoch{'s' if epochs > 1 else ''}" if epochs else ""
    rest.append(" in ".join(filter(None, (done, time))))
    lines += [f"{line[0].upper()}{line[1:]}." for line in [", ".join(filter(None, rest))] if line]
    if scores is not None and len(scores.names) > 1:
        lines.append(_tell_classes(scores))
    return "\n\n".join(lines)


def _tell_interval(right: int, total: int) -> str:
    from scipy.stats import binomtest

    # Wilson's (JASA 22, 1927), which holds for few images and for all of them right as well.
    low, high = binomtest(right, total).proportion_ci(method="wilson")
    return f"{right:,} of {total:,} images; 95% interval {low:.4f} to {high:.4f}"


def _tell_classes(scores: Scores) -> str:
    tested = zip(scores.names, scores.total, scores.right, strict=True)
    share = [(plain(name, most=40), right / total) for name, total, right in tested if total]
    best = sorted(share, key=lambda each: -each[1])
    if len(best) <= 2 * _FEW:
        return f"By class: {_list(best)}."
    return f"Best at {_list(best[:_FEW])}; worst at {_list(best[: -_FEW - 1 : -1])}."


def _list(shares: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {share:.2f}" for name, share in shares)


def _tell_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = {"h": hours, "min": minutes, "s": rest if not hours else 0}
    return " ".join(f"{count} {unit}" for unit, count in parts.items() if count) or "under 1 s"


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
