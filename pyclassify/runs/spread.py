"""What a recipe came to with several seeds: means, and how sure they are."""

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean, stdev
from typing import Any

from mlflow.entities import Run

from pyclassify.runs.stats import mean_interval

# A tag with the seeds; it tells a parent from other runs.
SEEDS = "pyclassify.seeds"
FINISHED = "seeds_finished"

# What a reader asks for first.
_FIRST = ("test_accuracy", "best_val_accuracy", "val_accuracy")


def summarise(children: Sequence[Run]) -> dict[str, float]:
    """Summarise the metrics of whole trainings, over the seeds that finished.

    Args:
        children: The runs of the seeds; those that did not finish are left out.

    Returns:
        `seeds_finished`, and for each metric of the test, or of validation where none was tested,
        `_mean`; from two seeds on `_std`, of the sample, and `_low` and `_high`, the 95% interval
        of the mean. These are left out where a seed that finished lacks the metric, or has one that
        is not finite.
    """
    finished = [child for child in children if child.info.status == "FINISHED"]
    found: dict[str, float] = {FINISHED: len(finished)}
    for name in _names(finished):
        values = read(finished, name)
        found[f"{name}_mean"] = fmean(values)
        if 1 < len(values) == len(finished) and all(map(isfinite, values)):
            found[f"{name}_std"] = stdev(values)
            found[f"{name}_low"], found[f"{name}_high"] = mean_interval(values)
    return found


def _names(runs: Sequence[Run]) -> list[str]:
    names = sorted({name for run in runs for name in run.data.metrics})
    tested = any(name.startswith("test_") for name in names)
    stages = ("test_", "best_") if tested else ("best_", "val_")
    return [name for name in names if name.startswith(stages)]


def choose(children: Sequence[Run]) -> str:
    """Choose the one metric that seeds are told by."""
    names = _names(children)
    return next((name for name in (*_FIRST, *names) if name in names), _FIRST[0])


def read(children: Sequence[Run], metric: str) -> list[float]:
    """Read a metric in the runs that finished and have it."""
    return [
        child.data.metrics[metric]
        for child in children
        if child.info.status == "FINISHED" and metric in child.data.metrics
    ]


def format_mean_and_deviation(values: Sequence[float]) -> str:
    """Say a mean, the standard deviation and the mean's interval: 0.81 ± 0.01 (95%: ...)."""
    if not values:
        return "no seed that finished has it"
    mean, count = fmean(values), f"{len(values)} seed{'s' if len(values) > 1 else ''}"
    if len(values) == 1 or not all(map(isfinite, values)):
        return f"{mean:.4f} ({count})"
    low, high = mean_interval(values)
    return f"{mean:.4f} ± {stdev(values):.4f} (95%: {low:.4f} to {high:.4f}, {count})"


def agree(params: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The parameters of ours, those with a slash in their name, that all runs have alike."""
    first, *others = params
    return {
        name: value
        for name, value in first.items()
        if "/" in name and all(each.get(name) == value for each in others)
    }


def name_parent(children: Sequence[Run], count: int) -> str | None:
    """A parent's name by its children's: AlexNet-CIFAR10-5seeds by AlexNet-CIFAR10-seed0."""
    found = (re.fullmatch(r"(.+)-seed\d+", child.info.run_name or "") for child in children)
    return next((f"{match[1]}-{count}seeds" for match in found if match), None)


def find_logger(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Find what is set of the logger of runs, which may be one of several.

    Args:
        chosen: Dotted keys and values, as `options.settings` lists them.
    """
    start = "trainer.logger."
    alone = {key.removeprefix(start): v for key, v in chosen.items() if key.startswith(start)}
    several = chosen.get("trainer.logger")
    for each in several if isinstance(several, list) else ():
        if isinstance(each, dict) and str(each.get("class_path")).endswith("RunLogger"):
            return {**(each.get("init_args") or {}), **alone}
    return alone
