"""The description of a run, Markdown in a tag, which the run's page in `mlflow ui` begins with.

First come the results, once there are any: the page shows a few lines of it until it is asked for
more. Then comes what was run, written when the run starts, and how to make it again.

What a person wrote stays. Ours ends in a seal, a line that is not shown and has the digest of all
before it: text without it or changed before it is left alone, and what stands after it is kept.
"""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pyclassify.tracking import parameters
from pyclassify.tracking.capsule import FOLDER, OVERRIDDEN, SOURCE_RUN
from pyclassify.tracking.ui import TRAINING
from pyclassify.utils.masking import mask

NOTE = "mlflow.note.content"
UNFINISHED = "**No results**: this run goes on, or was stopped before it had any."
_SEAL = re.compile(r'\n\n\[pyclassify\]: # "([0-9a-f]{16})"(?:\n|$)')
BEGIN = "### What was run\n"
_USES = {"train": "for training", "val": "for validation", "test": "for the test"}
# An underscore within a word is one, and so is a colon before a blank.
_SPECIAL = re.compile(r"""[\\`*{}\[\]<>#|~@&$!"¨]|:(?=\S)|(?<![^\W_])_|_(?![^\W_])""")
_PLAIN_CODE = re.compile(r"""[\w ./:=,+@%'"\[\]{}()#*<>&!?^;-]+""")
_FEW = 3  # classes that are named as best, and as worst
_NAMES = {
    "test_accuracy": "test accuracy",
    "best_val_accuracy": "best validation accuracy",
    "val_accuracy": "validation accuracy",
    "test_loss": "test loss",
    "val_loss": "validation loss",
    "test_ece": "calibration error",
    "test_flip_accuracy": "test accuracy averaged with mirror images",
}


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


def tell_what_was_run(
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    tags: Mapping[str, str],
    page: str,
) -> str:
    """Write down what a run is, as it is known when it starts.

    Args:
        config: Its resolved configuration.
        facts: Those of its capsule.
        tags: Its tags, which name the run that it is made again from.
        page: Its page, `#/experiments/<id>/runs/<id>`.
    """
    params = parameters.flatten(config, {})
    fits = facts["verb"] in ("fit", "train")
    rows = {
        "Network": _tell_network(params),
        "Weights": _tell_weights(params, facts.get("weights")),
        "Data": _tell_data(facts["data"], params),
        "Recipe": ", ".join(_tell_recipe(params)) if fits else "",
        "Seed": plain(params.get("seed_everything", "")),
        "Machine": _tell_machine(facts["hardware"]),
        "Code": _tell_code(facts.get("git"), page),
        "Command": code(shlex.join(facts["command"]), most=400),
        "Again": _tell_source(tags, page),
    }
    told = table({name: row for name, row in rows.items() if row})
    return f"{BEGIN}\n{told}\n\n### Make it again\n\n{_tell_how(facts.get('git'), page)}"


def _tell_network(params: Mapping[str, str]) -> str:
    path = params.get("model/model", params["model/class"])
    start = "model/model/"
    arguments = {k.removeprefix(start): v for k, v in params.items() if k.startswith(start)}
    parts = [code(path), *(f"{plain(k)} {plain(v, 40)}" for k, v in list(arguments.items())[:5])]
    return ", ".join(parts)


def _tell_weights(params: Mapping[str, str], start: Mapping[str, str] | None) -> str:
    if "ckpt_path" in params or not start:
        return code(params.get("ckpt_path", ""), most=200)
    return f"from {code(start['file'], most=200)} ({code(start['sha256'][:8])})"


def _tell_data(data: Mapping[str, Any] | None, params: Mapping[str, str]) -> str:
    if data is None:
        return code(params["data/class"])
    parts = [f"**{plain(str(data['name']))}**"]
    if data["classes"] is not None:
        parts.append(f"{data['classes']:,} classes")
    parts += [
        f"{each['images']:,} images {_USES.get(part, plain(part))} ({code(each['digest'][:8])})"
        for part, each in data["sets"].items()
    ]
    return ", ".join(parts)


def _tell_recipe(params: Mapping[str, str]) -> Iterator[str]:
    own = "Adam" if params["model/class"] == "pyclassify.module.Classifier" else ""
    if optimizer := params.get("optimizer/class", own).rsplit(".", 1)[-1]:
        yield plain(optimizer)
    epochs = params.get("trainer/max_epochs")
    told = {
        "learning rate {}": params.get("optimizer/lr", params.get("model/learning_rate")),
        "schedule {}": params.get("lr_scheduler/class", "").rsplit(".", 1)[-1],
        "batches of {}": params.get("data/batch_size"),
        f"at most {{}} epoch{'s' if epochs != '1' else ''}": epochs,
        "precision {}": params.get("trainer/precision"),
    }
    yield from (words.format(plain(value)) for words, value in told.items() if value)


def _tell_machine(hardware: Mapping[str, Any]) -> str:
    count, threads = hardware["processes"], hardware["threads"]
    here = [f"{number} x {name}" for name, number in Counter(hardware["gpus"]).items()]
    if "cpu" in hardware:
        here += [hardware["cpu"], f"{hardware['cores']} cores, {hardware['memory_gb']:.0f} GB"]
    processes = f"{_count(count, 'process', 'es')} on {hardware['accelerator'].upper()}"
    each = " each" if count > 1 else ""
    return plain(f"{processes}, {_count(threads, 'thread')}{each}; {', '.join(here)}", most=200)


def _count(number: int, what: str, more: str = "s") -> str:
    return f"{number:,} {what}{more if number != 1 else ''}"


def _tell_code(git: Mapping[str, Any] | None, page: str) -> str:
    if git is None or "missing" in git:
        return plain(git["missing"] if git else "not known", most=200)
    changes = "as committed"
    if git["changed"]:
        capsule = f"{page}/artifacts/{FOLDER}?{TRAINING}"
        changes = f"with uncommitted changes, kept in [{FOLDER}]({capsule})"
    remote = f" of {code(git['remote'], most=200)}" if git["remote"] else ""
    return f"commit {code(git['commit'][:12])}{remote}, {changes}"


def _tell_source(tags: Mapping[str, str], page: str) -> str:
    if SOURCE_RUN not in tags:
        return ""
    source, options = tags[SOURCE_RUN], tags.get(OVERRIDDEN)
    how = f"with {code(options, most=200)}" if options else "as it was"
    where = f"{page.rpartition('/')[0]}/{source}?{TRAINING}"
    return f"made from [{source}]({where}), {how}"


def _tell_how(git: Mapping[str, Any] | None, page: str) -> str:
    if git is None or "missing" in git:
        why = "code is in no commit" if git else "capsule is missing"
        return f"Its {why}: it can only be made again by hand, from its artifact config.yaml."
    return f"```bash\npyclassify rerun {page.rpartition('/')[2]}\n```"


def plain(text: str, most: int = 100) -> str:
    """Write text so that it reads the same when rendered.

    Args:
        text: Any text; a line break in it becomes a blank.
        most: How many of its characters are shown.
    """
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", _shorten(text, most))


def code(text: str, most: int = 100) -> str:
    """Write text in a typewriter's letters, if that can be done."""
    short = _shorten(text, most)
    return f"`{short}`" if _PLAIN_CODE.fullmatch(short) else plain(short, most)


def table(rows: Mapping[str, str]) -> str:
    """A table of two columns, names and what belongs to them, both Markdown already."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {row} |" for name, row in rows.items())])


def _shorten(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def tell_results(metrics: Mapping[str, float], scores: Scores | None, epochs: int) -> str:
    """Write a run's results as Markdown, a line for the accuracy, one for the rest, one by class.

    Args:
        metrics: The run's own, by name.
        scores: Its test by classes, if there was one.
        epochs: How many it was trained for, 0 if it was not.
    """
    shown = [name for name in _NAMES if name in metrics]
    if "best_val_accuracy" in shown:  # the last epoch's are not the kept network's
        shown = [name for name in shown if not name.startswith("val_")]
    first = shown.pop(0) if shown and "accuracy" in shown[0] else None
    lines = [f"**{_NAMES[first].capitalize()} {metrics[first]:.4f}**" if first else "**Finished**"]
    if first == "test_accuracy" and scores is not None:
        lines[0] += f" ({_tell_interval(sum(scores.right), sum(scores.total))})"
    rest = [f"{_NAMES[name]} {metrics[name]:.4f}" for name in shown]
    if "parameters" in metrics:
        rest.append(f"{metrics['parameters']:,.0f} parameters")
    epochs_told = f"{epochs} epoch{'s' if epochs > 1 else ''}" if epochs else ""
    time_told = _tell_time(metrics["wall_seconds"]) if "wall_seconds" in metrics else ""
    rest.append(" in ".join(filter(None, (epochs_told, time_told))))
    if line := ", ".join(filter(None, rest)):
        lines.append(f"{line[0].upper()}{line[1:]}.")
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
