"""What a run is, in Markdown: network, data, recipe, machine and code, and how to make it again."""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pyclassify.tracking import parameters
from pyclassify.tracking.capsule import FOLDER, OVERRIDDEN, SOURCE_RUN
from pyclassify.tracking.links import TRAINING
from pyclassify.tracking.markdown import code, plain, table

BEGIN = "### What was run\n"

_USES = {"train": "for training", "val": "for validation", "test": "for the test"}


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
