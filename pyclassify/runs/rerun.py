"""`pyclassify rerun RUN_ID`: repeat a run from its capsule, and check that it is reproducible.

The new run trains with the code and configuration of the source run. Then the reproducibility check
compares their losses step by step, bitwise, and reports what differs between their capsules. The
training is a separate process; nothing here loads torch.
"""

import json
import math
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from pyclassify.tracking.capsule import OVERRIDES_TAG, SOURCE_RUN_TAG, get_repository_facts
from pyclassify.utils.masking import mask_command
from pyclassify.utils.mlflow_settings import configure_mlflow
from pyclassify.utils.options import PATH_OPTIONS, CommandParser, format_options
from pyclassify.utils.repository import check_out_code
from pyclassify.utils.text import join_some

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_NAMED = 5  # packages or files in one line
# Properties of the hardware that do not change results.
_IGNORED_HARDWARE = ("system", "memory_gb", "cores")


def rerun(argv: list[str]) -> int:
    """Repeat a run as a new run.

    Args:
        argv: The run's ID, and options that change its configuration.

    Returns:
        The exit code of the training, or 128 plus the number of the signal that ended it.

    Raises:
        UsageError: The command line is invalid.
        ValueError: The run does not exist, or can't be repeated.
        OSError: git can't restore the run's code.
    """
    if {"-h", "--help"} & set(argv):
        _make_parser().print_help()
        return 0
    run_id, options = parse_args(argv)
    configure_mlflow()
    client, source = look_up_run(run_id)
    run_id = source.info.run_id
    with (
        interrupt_on_stop_signals(),
        tempfile.TemporaryDirectory(prefix="pyclassify-rerun-") as folder,
    ):
        capsule = download_capsule(client, run_id, Path(folder))
        facts = json.loads((capsule / "capsule.json").read_text())
        config = prepare_config(capsule, facts, options, save_root=Path.cwd())
        if "register" in config:  # it would be a version of the same network
            config["register"]["name"] = None
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        root, code = find_code(capsule, facts["git"], run_id)
        command = [facts["subcommand"], "--config", f"{folder}/config.yaml", *options]
        overridden = shlex.join(mask_command(options))
        tags = {SOURCE_RUN_TAG: run_id, **({OVERRIDES_TAG: overridden} if options else {})}
        with check_out_code(root, code, Path(folder) / "tree") as started_in:
            run = client.create_run(source.info.experiment_id, tags=tags).info
            environ = make_environment(run, facts, root, folder)
            exit_code = run_training(command, started_in, environ)
            if not client.get_run(run.run_id).info.end_time:  # the process could not end it
                client.set_terminated(run.run_id, "KILLED" if exit_code < 0 else "FAILED")
        if exit_code == 0:
            new_capsule = download_capsule(client, run.run_id, Path(folder) / "new")
            report = format_reproducibility_check(
                client, run_id, run.run_id, capsule, new_capsule, overridden
            )
            sys.stdout.write("\n" + "".join(f"{line}\n" for line in report))
    return exit_code if exit_code >= 0 else 128 - exit_code


def _make_parser() -> CommandParser:
    parser = CommandParser(
        "pyclassify rerun",
        usage="pyclassify rerun RUN_ID [--OPTION VALUE ...]",
        description="Repeat a run as a new run: with the commit, the changes, the untracked files "
        "and the configuration of its capsule, on the same data. At the end, compare the losses of "
        "both runs step by step.",
        epilog="Options of `pyclassify train`, after RUN_ID, change the configuration of the new "
        "run, which logs them as the tag pyclassify.overrides.",
        examples=[
            "pyclassify rerun 3f2a91c0",
            "pyclassify rerun 3f2a91c0 --max_epochs 3 --seed 1",
        ],
    )
    parser.add_argument("run_id", metavar="RUN_ID", help="give the run's ID, or its first 8 digits")
    return parser


def parse_args(argv: list[str]) -> tuple[str, list[str]]:
    """Parse the command line; paths in options become absolute.

    Returns:
        The run's ID, and the options.

    Raises:
        UsageError: The id is missing, or an option is `--config`.
    """
    parser = _make_parser()
    if not argv or argv[0].startswith("-"):
        parser.error("the following arguments are required: RUN_ID, before the options")
    run_id, *options = argv
    path_names = {option.rpartition(".")[2] for option in PATH_OPTIONS}
    for index, word in enumerate(options):
        option, equals, value = word.partition("=")
        if option in ("--config", "-c"):
            parser.error(
                "rerun uses the configuration of the run, not --config; change it by single "
                "options, such as --max_epochs 3"
            )
        name = option.split(".")[-1].removeprefix("--")
        if name in path_names:
            if equals:
                options[index] = f"{option}={resolve_path(name, value, Path.cwd())}"
            elif index + 1 < len(options):
                options[index + 1] = resolve_path(name, options[index + 1], Path.cwd())
    return run_id, options


def format_reproducibility_check(
    client: "MlflowClient",
    source_id: str,
    new_id: str,
    source_capsule: Path,
    new_capsule: Path,
    overridden: str,
) -> list[str]:
    """Compare a repeated run to its source, and report how they differ.

    Args:
        client: The store.
        source_id: The run that was repeated.
        new_id: The new run.
        source_capsule: The folder of the source's capsule.
        new_capsule: The folder of the new run's capsule.
        overridden: The options that changed the configuration, as one text.

    Returns:
        The lines of the report.
    """
    identical, verdict = compare_metrics(client, source_id, new_id)
    lines = [verdict]
    if overridden:
        lines.append(f"overridden options: {overridden}")
    differences = [*compare_capsules(source_capsule, new_capsule)]
    if differences:
        prefix = "" if identical else "possible cause: "
        lines += [f"{prefix}{difference}" for difference in differences]
    elif not identical and not overridden:
        lines.append(
            "no cause found: code, configuration, versions, hardware and data are the same in both "
            "capsules"
        )
    return lines


def compare_metrics(client: "MlflowClient", source_id: str, new_id: str) -> tuple[bool, str]:
    """Compare the training losses of two runs at each step, bitwise.

    Runs without training losses are compared by their last losses and accuracies.

    Returns:
        Whether all common values are bitwise identical, and a line with the verdict.
    """
    metrics = client.get_run(source_id).data.metrics
    names = ["train_loss"]
    if names[0] not in metrics:
        names = sorted(name for name in metrics if name.endswith(("loss", "accuracy")))
    then = {name: _read_history(client, source_id, name) for name in names}
    now = {name: _read_history(client, new_id, name) for name in names}
    common = sorted((step, name) for name in names for step in then[name].keys() & now[name].keys())
    if not common:
        return False, f"can't compare run {source_id} and run {new_id}: they have no loss in common"
    different = [
        (step, name)
        for step, name in common
        if not _is_identical(then[name][step], now[name][step])
    ]
    if not different:
        compared = names[0] if len(names) == 1 else " and ".join(names)
        total = sum(map(len, then.values()))
        steps = f"all {total} steps" if len(common) == total else f"{len(common)} of {total} steps"
        return True, f"bitwise identical to run {source_id}: {compared} at {steps}"
    step, name = different[0]
    largest = max(abs(then[name][step] - now[name][step]) for step, name in different)
    return False, (
        f"not bitwise identical to run {source_id}: {name} differs at {len(different)} of "
        f"{len(common)} steps, first at step {step} ({then[name][step]!r} -> "
        f"{now[name][step]!r}), by at most {largest:.2g}"
    )


def _read_history(client: "MlflowClient", run_id: str, metric: str) -> dict[int, float]:
    """Read a metric by step; the last value of a step that was logged twice."""
    points = sorted(client.get_metric_history(run_id, metric), key=lambda point: point.timestamp)
    return {point.step: point.value for point in points}


def _is_identical(first: float, second: float) -> bool:
    return first == second or (math.isnan(first) and math.isnan(second))


def compare_capsules(source: Path, new: Path) -> Iterator[str]:
    """Compare two capsules; a line for each kind of difference."""
    then, now = (_read_comparable_facts(folder) for folder in (source, new))
    for title in then:
        if changed := [*_list_differences(then[title], now[title])]:
            max_named = _MAX_NAMED if title == "versions" else len(changed)
            yield f"{title}: {join_some(changed, max_named)}"
    repositories = get_repository_facts(json.loads((source / "capsule.json").read_text())["git"])
    if left_out := [
        Path(n, f) for n, facts in repositories.items() for f in facts.get("left_out", ())
    ]:
        names = ", ".join(map(str, left_out[:_MAX_NAMED]))
        yield f"files: the capsule of the source run lacks {names}"


def _read_comparable_facts(capsule: Path) -> dict[str, dict[str, Any]]:
    """Read what can change a loss, by the title of its line in the report."""
    facts = json.loads((capsule / "capsule.json").read_text())
    packages = (capsule / "packages.txt").read_text().splitlines()
    hardware = facts["hardware"].items()
    splits = (facts["data"] or {}).get("splits", {})
    weights = facts.get("weights") or {}
    return {
        "versions": dict(line.split("==", 1) for line in packages),
        "hardware": {key: value for key, value in hardware if key not in _IGNORED_HARDWARE},
        "python": {"version": facts["python"]},
        "data": {split: entry["digest"] for split, entry in splits.items()},
        "code": {"digest": facts["package"]},
        "weights": {"sha256": weights.get("sha256")},
        "settings": _read_settings(capsule, has_weights=bool(weights)),
    }


def _read_settings(capsule: Path, has_weights: bool) -> dict[str, str]:
    # The new run has absolute paths, and the files are compared by digest.
    ignored = ("ckpt_path", "data_path", *(["model.weights"] if has_weights else []))
    config = yaml.safe_load((capsule / "config.yaml").read_text())
    return {
        name: value
        for name, value in format_options(config)
        if not name.endswith(ignored) and not name.startswith("register.")
    }


def _list_differences(then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*then, *now]):
        if then.get(key) != now.get(key):
            yield f"{key} {_format_fact(then.get(key))} -> {_format_fact(now.get(key))}"


def _format_fact(value: Any) -> str:
    return "none" if value in (None, [], "") else str(value)
