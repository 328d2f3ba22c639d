"""What is said of seeds: in the terminal, and in the description of their parent run."""

from collections.abc import Mapping

import mlflow
from mlflow.entities import Run, RunInfo

from pyclassify.runs import spread
from pyclassify.tracking.description import plain
from pyclassify.tracking.ui import BY_RECIPE, TRAINING, run_link, runs_link, start_quickly

Rows = Mapping[int, Run | None]
"""Each seed and its run, unless that is still to come."""


def in_terminal(parent: RunInfo, rows: Rows) -> list[str]:
    """Say what seeds came to, in lines for a terminal."""
    children = list(filter(None, rows.values()))
    metric = spread.choose(children)
    lines = {}
    for seed, run in rows.items():
        if run:
            told = f"{run.info.run_id[:8]}  {run.info.status:8}  {_value(run, metric)}"
            lines[f"seed {seed}"] = told.rstrip()
    lines[metric] = spread.format_mean_and_deviation(spread.read(children, metric))
    uri, experiment = mlflow.get_tracking_uri(), parent.experiment_id
    lines |= {"run": parent.run_id, "next": start_quickly(uri)}
    links = ["", "These runs:", run_link(uri, experiment, parent.run_id)]
    links += ["", "Recipes, each the mean of its runs:"]
    links.append(runs_link(uri, experiment, BY_RECIPE.key))
    return [*(f"{key:14} {line}" for key, line in lines.items()), *links]


def in_markdown(parent: RunInfo, rows: Rows) -> str:
    """Say it with a table of the seeds, for the run's page."""
    children = list(filter(None, rows.values()))
    metric = spread.choose(children)
    title, page = metric.replace("_", " "), f"#/experiments/{parent.experiment_id}/runs"
    said = spread.format_mean_and_deviation(spread.read(children, metric))
    lines = [f"**{title}: {said}**", "", f"| seed | run | status | {title} |", "|--|--|--|--|"]
    for seed, run in rows.items():
        link = status = value = ""
        if run:
            link = f"[{plain(run.info.run_name)}]({page}/{run.info.run_id}?{TRAINING})"
            status, value = run.info.status, _value(run, metric)
        lines.append(f"| {seed} | {link} | {status} | {value} |")
    return "\n".join(lines)


def _value(run: Run, metric: str) -> str:
    value = run.data.metrics.get(metric)
    return "" if value is None else f"{value:.4f}"
