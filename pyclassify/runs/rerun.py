"""`pyclassify rerun RUN_ID`: make a run again from its capsule, and say whether it is the same.

No torch here: the training is a process of its own, on the code that the run had.
"""

import json
import math
import shlex
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from pyclassify.runs.restore import (
    download_capsule,
    find_code,
    interrupt_on_stop_signals,
    look_up_run,
    make_environment,
    prepare_config,
    resolve_path,
    run_training,
)
from pyclassify.spool.server import configure_mlflow
from pyclassify.tracking.capsule import OVERRIDDEN_TAG, SOURCE_RUN_TAG
from pyclassify.utils.masking import mask_command
from pyclassify.utils.options import PATH_OPTIONS, format_options
from pyclassify.utils.repository import check_out_worktree
from pyclassify.utils.text import join_some

USAGE = """usage: pyclassify rerun RUN_ID [--OPTION VALUE ...]

Make a run again from its capsule: its commit, changes, untracked files and configuration, on the
same data, as a new run beside it. At the end the losses of both are compared step by step.
Options, as those of `pyclassify train`, change the configuration; the new run names them.
"""
_NAMED = 5  # of many packages, those that are named
# Of no consequence to a number.
_IGNORED = ("system", "memory_gb", "cores")


def rerun(given: list[str]) -> int:
    """Make a run again.

    Args:
        given: The run's id, and options that change its configuration.

    Returns:
        The exit code: the training's, or 128 and the signal that ended it.

    Raises:
        ValueError: There is no such run, or it can't be made again; one line that says why.
        OSError: git can't restore its code.
    """
    if {"-h", "--help"} & set(given):
        sys.stdout.write(USAGE)
        return 0
    configure_mlflow()
    run_id, options = parse_args(given)
    client, run = look_up_run(run_id)
    run_id = run.info.run_id
    with (
        interrupt_on_stop_signals(),
        tempfile.TemporaryDirectory(prefix="pyclassify-rerun-") as folder,
    ):
        kept = download_capsule(client, run_id, Path(folder))
        facts = json.loads((kept / "capsule.json").read_text())
        config = prepare_config(kept, facts, options, saves_in=Path.cwd())
        if "register" in config:  # a repetition is no other network, to be judged anew
            config["register"]["name"] = None
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        root, code = find_code(kept, facts["git"], run_id)
        command = [facts["verb"], "--config", f"{folder}/config.yaml", *options]
        with check_out_worktree(root, code, Path(folder) / "tree") as started_in:
            overridden = shlex.join(mask_command(options))
            tags = {SOURCE_RUN_TAG: run_id, **({OVERRIDDEN_TAG: overridden} if options else {})}
            made = client.create_run(run.info.experiment_id, tags=tags).info
            exit_code = run_training(
                command, started_in, make_environment(made, facts, root, folder)
            )
            if not client.get_run(made.run_id).info.end_time:  # gone before it could say so
                client.set_terminated(made.run_id, "KILLED" if exit_code < 0 else "FAILED")
        if exit_code == 0:
            again = download_capsule(client, made.run_id, Path(folder) / "again")
            told = format_reproducibility_check(
                client, run_id, made.run_id, kept, again, overridden
            )
            sys.stdout.write("\n" + "".join(f"{line}\n" for line in told))
    return exit_code if exit_code >= 0 else 128 - exit_code


def parse_args(given: list[str]) -> tuple[str, list[str]]:
    """Tell the run's id from the options; options that are paths become absolute."""
    ids = [word for word in given[:1] if not word.startswith("-")]
    if not ids:
        raise ValueError(
            "rerun was given no run's id, which a run shows as `run` in its last lines: "
            "pyclassify rerun RUN_ID"
        )
    options = given[1:]
    for place, word in enumerate(options):
        name, equals, value = word.partition("=")
        if name in ("--config", "-c"):
            raise ValueError(
                "rerun takes the configuration that the run had; give what shall differ as "
                "options, --max_epochs 3"
            )
        last = name.split(".")[-1].removeprefix("--")
        if last in {path.rpartition(".")[2] for path in PATH_OPTIONS}:
            if equals:
                options[place] = f"{name}={resolve_path(last, value, Path.cwd())}"
            elif place + 1 < len(options):
                options[place + 1] = resolve_path(last, options[place + 1], Path.cwd())
    return ids[0], options


def format_reproducibility_check(
    client: Any, run_id: str, other_id: str, kept: Path, other_kept: Path, overridden: str
) -> list[str]:
    """Tell how a run that was made again went, against its source.

    Args:
        client: An `MlflowClient`.
        run_id: The source.
        other_id: The run that was made from it.
        kept: The folder of the source's capsule.
        other_kept: That of the other's.
        overridden: The options that were given to change it.

    Returns:
        Lines of text.
    """
    same, verdict = compare_metrics(client, run_id, other_id)
    lines = [verdict]
    if overridden:
        lines.append(f"overridden: {overridden}")
    differences = [*compare_capsules(kept, other_kept)]
    if differences:
        lines += [f"{'' if same else 'may be why: '}{each}" for each in differences]
    elif not same and not overridden:
        lines.append(
            "nothing else differs that a capsule knows of: not the code, the configuration, the "
            "versions, the machine or the data"
        )
    return lines


def compare_metrics(client: Any, run_id: str, other_id: str) -> tuple[bool, str]:
    """Compare the losses of two runs at each step, bit by bit.

    Runs that do not train are compared by their last loss and accuracy.

    Returns:
        Whether they are the same, and a line that says so, or where they part.
    """
    metrics = client.get_run(run_id).data.metrics
    names = ["train_loss"]
    if names[0] not in metrics:
        names = sorted(name for name in metrics if name.endswith(("loss", "accuracy")))
    then = {name: read_metric_history(client, run_id, name) for name in names}
    now = {name: read_metric_history(client, other_id, name) for name in names}
    common = sorted((step, name) for name in names for step in then[name].keys() & now[name].keys())
    what = names[0] if len(names) == 1 else " and ".join(names)
    if not common:
        return False, f"{run_id} and {other_id} can't be compared: they have no loss in common"
    parted = [(step, name) for step, name in common if not _same(then[name][step], now[name][step])]
    total = sum(map(len, then.values()))
    some = f"all {total} steps" if len(common) == total else f"{len(common)} of {total} steps"
    if not parted:
        return True, f"the same as {run_id} to the last bit: {what} at {some}"
    step, name = parted[0]
    largest = max(abs(then[name][step] - now[name][step]) for step, name in parted)
    return False, (
        f"not the same as {run_id}: {name} differs at {len(parted)} of {len(common)} steps, first "
        f"at step {step} ({then[name][step]!r} then, {now[name][step]!r} now), by {largest:.2g} at "
        "most"
    )


def read_metric_history(client: Any, run_id: str, name: str) -> dict[int, float]:
    """Read a metric by step, the last value of each."""
    points = sorted(client.get_metric_history(run_id, name), key=lambda point: point.timestamp)
    return {point.step: point.value for point in points}


def compare_capsules(kept: Path, other_kept: Path) -> Iterator[str]:
    """Tell what two capsules differ in, a line for each."""
    then, now = (json.loads((folder / "capsule.json").read_text()) for folder in (kept, other_kept))
    versions = [_read_versions(folder / "packages.txt") for folder in (kept, other_kept)]
    changed = [*_differ(*versions)]
    if changed:
        yield f"versions: {join_some(changed, _NAMED)}"
    hardware = [
        {key: value for key, value in each["hardware"].items() if key not in _IGNORED}
        for each in (then, now)
    ]
    for title, *pair in (
        ("hardware", *hardware),
        ("python", {"version": then["python"]}, {"version": now["python"]}),
        ("data", *(_digests(each) for each in (then, now))),
        ("code", *({"digest": each["package"]} for each in (then, now))),
        ("weights", *({"sha256": _weights(each).get("sha256")} for each in (then, now))),
        ("settings", *(dict(_read_settings(*each)) for each in ((kept, then), (other_kept, now)))),
    ):
        if changed := [*_differ(*pair)]:
            yield f"{title}: {', '.join(changed)}"
    if left_out := then["git"].get("left_out"):
        yield f"files: the capsule lacks {', '.join(islice(left_out, _NAMED))}"


def _read_settings(folder: Path, facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    # Paths are made absolute to make a run again, and what they name is compared by its content.
    left_out = ("ckpt_path", "data_path", *(["model.weights"] if _weights(facts) else []))
    for name, value in format_options(yaml.safe_load((folder / "config.yaml").read_text())):
        if not name.endswith(left_out) and not name.startswith("register."):
            yield name, value


def _weights(facts: dict[str, Any]) -> dict[str, str]:
    return facts.get("weights") or {}


def _read_versions(file: Path) -> dict[str, str]:
    return dict(line.split("==", 1) for line in file.read_text().splitlines())


def _digests(facts: dict[str, Any]) -> dict[str, str]:
    sets = (facts["data"] or {}).get("sets", {})
    return {part: each["digest"] for part, each in sets.items()}


def _differ(then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*then, *now]):
        if then.get(key) != now.get(key):
            yield f"{key} {_show(then.get(key))} then, {_show(now.get(key))} now"


def _show(value: Any) -> str:
    return "none" if value in (None, [], "") else str(value)


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
