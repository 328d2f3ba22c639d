"""The description of a run: Markdown in a tag, shown at the top of the run's page in `mlflow ui`.

The results come first, once there are any, since the page shows only a few lines until the
description is expanded. The configuration follows, written when the run starts, and the command
that reproduces the run.

Text that a user has written is never changed. The generated text ends with a seal: a line that is
not rendered, with the digest of all text before it. Text without a valid seal belongs to the user,
and so does text after the seal.
"""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from pyclassify.tracking import parameters
from pyclassify.tracking.capsule import (
    CAPSULE_FOLDER,
    OVERRIDES_TAG,
    SOURCE_RUN_TAG,
    get_repository_facts,
)
from pyclassify.tracking.ui import WORKFLOW_QUERY
from pyclassify.utils.masking import mask
from pyclassify.utils.text import escape_markdown, format_code, format_duration

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_UNFINISHED = (
    "**No results yet**: the run is in progress, or it was stopped before the first result."
)
_RUN_HEADING = "### Configuration\n"
_SEAL = re.compile(r'\n\n\[pyclassify\]: # "([0-9a-f]{16})"(?:\n|$)')
_SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
_METRIC_NAMES = {
    "test_accuracy": "test accuracy",
    "best_val_accuracy": "best validation accuracy",
    "val_accuracy": "validation accuracy",
    "test_loss": "test loss",
    "val_loss": "validation loss",
    "test_ece": "expected calibration error (ECE)",
    "test_flip_tta_accuracy": "test accuracy with flip TTA",
}
_NAMED_CLASSES = 3  # of the highest accuracy, and of the lowest


@dataclass(frozen=True)
class ClassCounts:
    """The number of test images of each class, and how many were classified correctly.

    Args:
        names: The names of the classes.
        total: The number of images of each class.
        correct: The number of correctly classified images of each class.

    Example:
        >>> ClassCounts(["cat", "dog"], total=[10, 10], correct=[9, 7])
    """

    names: Sequence[str]
    total: Sequence[int]
    correct: Sequence[int]


def describe_start(
    client: "MlflowClient", run_id: str, config: dict[str, Any], facts: dict[str, Any]
) -> None:
    """Write the description of a run when it starts: its configuration.

    Args:
        client: The client of the run's store.
        run_id: The run.
        config: The run's resolved configuration.
        facts: The content of the run's capsule.json.
    """

    def compose(run: "Run", _: str) -> str:
        page = f"#/experiments/{run.info.experiment_id}/runs/{run_id}"
        return f"{_UNFINISHED}\n\n{format_run(config, facts, run.data.tags, page)}"

    _rewrite(client, run_id, compose, create=True)


def describe_results(
    client: "MlflowClient",
    run_id: str,
    counts: ClassCounts | None = None,
    epochs: int = 0,
    figure: str = "",
) -> None:
    """Write a run's results at the start of its description.

    Args:
        client: The client of the run's store, which has the run's metrics.
        run_id: The run.
        counts: The test results by class; by default the accuracy by class is omitted.
        epochs: The number of training epochs; 0 for a run without training.
        figure: The path of an artifact to show; by default none.
    """

    def compose(run: "Run", body: str) -> str:
        results = format_results(run.data.metrics, counts, epochs)
        if figure:
            # A relative URL also works if the server has a path prefix.
            address = f"get-artifact?path={figure}&run_uuid={run_id}"
            results += f"\n\n![Confusion matrix]({address})"
        return f"{results}\n\n{body}"

    _rewrite(client, run_id, compose)


def describe_model(client: "MlflowClient", run_id: str) -> None:
    """Add the command that registers a run's model to the end of its description."""
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

    section = f"### Register the model\n\n```bash\npyclassify register {run_id} NAME\n```"

    def compose(run: "Run", _: str) -> str:
        generated = unseal(run.data.tags[MLFLOW_RUN_NOTE])[0]
        return generated if section in generated else f"{generated}\n\n{section}"

    _rewrite(client, run_id, compose)


def describe_failure(client: "MlflowClient", run_id: str, reason: str) -> None:
    """Write the error that ended a run at the start of its description."""
    message = escape_markdown(mask(reason), max_length=300)
    _rewrite(client, run_id, lambda run, body: f"**Failed**: {message}\n\n{body}")


def _rewrite(
    client: "MlflowClient",
    run_id: str,
    compose: "Callable[[Run, str], str]",
    create: bool = False,
) -> None:
    """Rewrite the generated text; `compose` gets the run and the text from the first heading."""
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
    from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

    run = client.get_run(run_id)
    generated, written = unseal(run.data.tags.get(MLFLOW_RUN_NOTE, ""))
    if not generated and (written or not create):
        return
    body = generated[max(0, generated.find(_RUN_HEADING)) :]
    note = seal(compose(run, body)) + written
    if len(note) <= MAX_TAG_VAL_LENGTH:  # MLflow truncates a longer one
        client.set_tag(run_id, MLFLOW_RUN_NOTE, note)


def seal(text: str) -> str:
    """Add a seal to generated text."""
    return f'{text}\n\n[pyclassify]: # "{_digest(text)}"\n'


def unseal(note: str) -> tuple[str, str]:
    """Split a note into generated text, without the seal, and the user's text.

    The generated text is empty if there is no seal, or if a user has changed the sealed text.
    """
    for found in _SEAL.finditer(note):
        if _digest(note[: found.start()]) == found[1]:
            return note[: found.start()], note[found.end() :]
    return "", note


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


# Configuration


def format_run(
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    tags: Mapping[str, str],
    page: str,
) -> str:
    """Format a run's configuration, as known when it starts, as Markdown.

    Args:
        config: The run's resolved configuration.
        facts: The content of the run's capsule.json.
        tags: The run's tags, which name the source run of a rerun.
        page: The run's page, `#/experiments/<id>/runs/<id>`.
    """
    params = parameters.flatten_parameters(config, {})
    is_training = facts["subcommand"] in ("fit", "train")
    rows = {
        "Network": _format_network(params),
        "Weights": _format_weights(params, facts.get("weights")),
        "Data": _format_data(facts["data"], params, page),
        "Hyperparameters": ", ".join(_format_hyperparameters(params)) if is_training else "",
        "Seed": escape_markdown(params.get("seed_everything", "")),
        "Hardware": _format_hardware(facts["hardware"]),
        "Code": _format_commit(facts.get("git"), page),
        "Command": format_code(shlex.join(facts["command"]), max_length=400),
        "Source run": _format_source(tags, page),
    }
    table = _format_table({name: row for name, row in rows.items() if row})
    rerun = _format_rerun(facts.get("git"), page)
    return f"{_RUN_HEADING}\n{table}\n\n### Reproduce\n\n{rerun}"


def _format_network(params: Mapping[str, str]) -> str:
    path = params.get("model/model", params["model/class"])
    prefix = "model/model/"
    arguments = {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
    shown = list(arguments.items())[:5]
    parts = [f"{escape_markdown(name)} {escape_markdown(value, 40)}" for name, value in shown]
    return ", ".join([format_code(path), *parts])


def _format_weights(params: Mapping[str, str], weights: Mapping[str, str] | None) -> str:
    if "ckpt_path" in params:
        return f"checkpoint {format_code(params['ckpt_path'], max_length=200)}"
    if not weights:
        return ""
    file = format_code(weights["file"], max_length=200)
    return f"initialized from {file} (SHA-256 {format_code(weights['sha256'][:8])})"


def _format_data(data: Mapping[str, Any] | None, params: Mapping[str, str], page: str) -> str:
    if data is None:
        return format_code(params["data/class"])
    parts = [f"**{escape_markdown(str(data['name']))}**"]
    if data["classes"] is not None:
        parts.append(f"{data['classes']:,} classes")
    for split, facts in data["splits"].items():
        name = _SPLIT_NAMES.get(split, escape_markdown(split))
        digest = format_code(facts["digest"][:8])
        parts.append(f"{facts['images']:,} {name} images (digest {digest})")
    if skipped := data.get("skipped"):
        parts.append(f"{_format_count(skipped, 'file')} skipped that can't be decoded")
    if report := data.get("report"):
        parts.append(f"[{report}]({page}/artifacts/{report}?{WORKFLOW_QUERY})")
    return ", ".join(parts)


def _format_hyperparameters(params: Mapping[str, str]) -> Iterator[str]:
    default = "Adam" if params["model/class"] == "pyclassify.module.Classifier" else ""
    if optimizer := params.get("optimizer/class", default).rsplit(".", 1)[-1]:
        yield escape_markdown(optimizer)
    epochs = params.get("trainer/max_epochs")
    values = {
        "learning rate {}": params.get("optimizer/lr", params.get("model/learning_rate")),
        "schedule {}": params.get("lr_scheduler/class", "").rsplit(".", 1)[-1],
        "batch size {}": params.get("data/batch_size"),
        f"at most {{}} epoch{'s' if epochs != '1' else ''}": epochs,
        "precision {}": params.get("trainer/precision"),
    }
    for template, value in values.items():
        if value:
            yield template.format(escape_markdown(value))


def _format_hardware(hardware: Mapping[str, Any]) -> str:
    count, threads = hardware["processes"], hardware["threads"]
    devices = [f"{number} x {name}" for name, number in Counter(hardware["gpus"]).items()]
    if "cpu" in hardware:
        memory = f"{hardware['memory_gb']:.0f} GB of memory"
        devices += [hardware["cpu"], f"{hardware['cores']} cores, {memory}"]
    processes = f"{_format_count(count, 'process', 'es')} on {hardware['accelerator'].upper()}"
    each = " each" if count > 1 else ""
    text = f"{processes}, {_format_count(threads, 'CPU thread')}{each}; {', '.join(devices)}"
    return escape_markdown(text, max_length=200)


def _format_count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{plural if number != 1 else ''}"


def _format_commit(git: Mapping[str, Any] | None, page: str) -> str:
    if git is None or "missing" in git:
        return escape_markdown(git["missing"] if git else "unknown", max_length=200)
    changes = "without uncommitted changes"
    if any(facts["changed"] for facts in get_repository_facts(git).values()):
        capsule = f"{page}/artifacts/{CAPSULE_FOLDER}?{WORKFLOW_QUERY}"
        changes = f"with uncommitted changes (saved in [{CAPSULE_FOLDER}]({capsule}))"
    remote = f" of {format_code(git['remote'], max_length=200)}" if git["remote"] else ""
    return f"commit {format_code(git['commit'][:12])}{remote}, {changes}"


def _format_source(tags: Mapping[str, str], page: str) -> str:
    if SOURCE_RUN_TAG not in tags:
        return ""
    source, options = tags[SOURCE_RUN_TAG], tags.get(OVERRIDES_TAG)
    changes = f"with {format_code(options, max_length=200)}" if options else "with the same options"
    link = f"{page.rpartition('/')[0]}/{source}?{WORKFLOW_QUERY}"
    return f"rerun of [{source}]({link}), {changes}"


def _format_rerun(git: Mapping[str, Any] | None, page: str) -> str:
    if git is None or "missing" in git:
        reason = "code was not in a Git commit" if git else "capsule is missing"
        return (
            f"`pyclassify rerun` can't reproduce this run, because its {reason}. The artifact "
            "config.yaml has its configuration."
        )
    return f"```bash\npyclassify rerun {page.rpartition('/')[2]}\n```"


# Results


def format_results(metrics: Mapping[str, float], counts: ClassCounts | None, epochs: int) -> str:
    """Format a run's results as Markdown: the accuracy, other metrics, and the accuracy by class.

    Args:
        metrics: The run's metrics, by name.
        counts: The test results by class; None without a test.
        epochs: The number of training epochs; 0 for a run without training.
    """
    names = [name for name in _METRIC_NAMES if name in metrics]
    if "best_val_accuracy" in names:  # val_ metrics are of the last epoch, not of the best weights
        names = [name for name in names if not name.startswith("val_")]
    first = names.pop(0) if names and "accuracy" in names[0] else None
    paragraphs = ["**Finished**"]
    if first:
        paragraphs = [f"**{_METRIC_NAMES[first].capitalize()} {metrics[first]:.4f}**"]
    if first == "test_accuracy" and counts is not None:
        paragraphs[0] += f" ({format_interval(sum(counts.correct), sum(counts.total))})"
    rest = [f"{_METRIC_NAMES[name]} {metrics[name]:.4f}" for name in names]
    if "parameters" in metrics:
        rest.append(f"{metrics['parameters']:,.0f} parameters")
    rest.append(_format_effort(epochs, metrics.get("wall_seconds")))
    if line := ", ".join(filter(None, rest)):
        paragraphs.append(f"{line[0].upper()}{line[1:]}.")
    if counts is not None and len(counts.names) > 1:
        paragraphs.append(_format_classes(counts))
    return "\n\n".join(paragraphs)


def format_interval(correct: int, total: int) -> str:
    """Format how many images were predicted correctly, and the accuracy's 95% interval."""
    from scipy.stats import binomtest

    # Wilson's interval (JASA 22, 1927) is also valid for few images, and if all are correct.
    low, high = binomtest(correct, total).proportion_ci(method="wilson")
    return f"{correct:,} of {total:,} images; 95% confidence interval {low:.4f} to {high:.4f}"


def _format_effort(epochs: int, seconds: float | None) -> str:
    parts = []
    if epochs:
        parts.append(f"{epochs} epoch{'s' if epochs > 1 else ''}")
    if seconds is not None:
        parts.append(format_duration(seconds))
    return " in ".join(parts)


def _format_classes(counts: ClassCounts) -> str:
    tested = zip(counts.names, counts.total, counts.correct, strict=True)
    accuracies = [
        (escape_markdown(name, max_length=40), correct / total)
        for name, total, correct in tested
        if total
    ]
    best = sorted(accuracies, key=lambda item: -item[1])
    if len(best) <= 2 * _NAMED_CLASSES:
        return f"Accuracy by class: {_format_accuracies(best)}."
    worst = best[: -_NAMED_CLASSES - 1 : -1]
    best = best[:_NAMED_CLASSES]
    return (
        f"Highest accuracy by class: {_format_accuracies(best)}. "
        f"Lowest: {_format_accuracies(worst)}."
    )


def _format_accuracies(accuracies: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {accuracy:.2f}" for name, accuracy in accuracies)


# Markdown


def _format_table(rows: Mapping[str, str]) -> str:
    lines = [f"| {name} | {row} |" for name, row in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
