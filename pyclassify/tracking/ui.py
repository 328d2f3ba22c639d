"""Pages of `mlflow ui`: links to them, commands to open them, and views of an experiment's runs.

By default the table of an experiment's runs has no column for a metric or a parameter. A view adds
them: a tag of the experiment, as the page's own "Save view" writes it (MLflow 3.17), which is an
JSON envelope around the page's state, which is JSON too. A printed link names its view.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from pyclassify.tracking.parameters import RECIPE_TAG, name_recipe
from pyclassify.utils.masking import mask

if TYPE_CHECKING:
    from pyclassify.tracking.logger import RunLogger

LOCAL_SERVER = "http://127.0.0.1:5000"  # the address of `mlflow ui`
WORKFLOW_QUERY = "workflowType=machine_learning"  # MLflow's other pages are for LLMs
VIEW_TAG_PREFIX = "mlflow.sharedViewState."

# Columns in their order, with their width in pixels.
_ATTRIBUTE_COLUMNS = {"attributes.`Run Name`": 300, "attributes.`Created`": 130, "duration": 80}
_MODEL_COLUMN = "attributes.`Models`"  # MLflow's table of models can't be sorted by a metric
_METRIC_COLUMNS = {
    "test_accuracy": 115,
    "best_val_accuracy": 140,
    "test_loss": 95,
    "test_ece": 95,
    "wall_seconds": 110,
    "images_per_second": 145,
    "parameters": 100,
}
_PARAMETER_COLUMNS = {
    "config": 220,
    "model/model": 220,
    "model/learning_rate": 150,
    "data/class": 220,
    "data/batch_size": 125,
    "trainer/max_epochs": 145,
    "seed_everything": 125,
}
_CURVES = (
    *("val_accuracy", "val_loss", "train_accuracy", "train_loss"),
    *("learning_rate", "epoch_seconds"),
)


@dataclass(frozen=True)
class View:
    """A saved view of an experiment's runs.

    Attributes:
        name: The name in the menu "Views".
        prefix: The start of the view's key.
        state: The page's state, as far as it differs from the page's default.

    Example:
        >>> View("Newest first", "newest", {"orderByKey": "attributes.start_time"}).key
        'newest-2975543b'
    """

    name: str
    prefix: str
    state: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The view's name in links; other content has another key, so that links stay valid."""
        content = json.dumps([self.name, self.state], sort_keys=True)
        return f"{self.prefix}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    def make_envelope(self, time: int) -> str:
        """Make the tag's value.

        Args:
            time: When the view was made, in milliseconds since 1970.
        """
        state = json.dumps(self.state, separators=(",", ":"))
        envelope = {"name": self.name, "createdAt": time, "updatedAt": time, "state": state}
        return json.dumps(envelope, separators=(",", ":"))


def _make_state(group_by: Mapping[str, Any] | None = None) -> dict[str, Any]:
    columns = {_MODEL_COLUMN: 130}
    columns |= {f"metrics.`{name}`": width for name, width in _METRIC_COLUMNS.items()}
    columns |= {f"params.`{name}`": width for name, width in _PARAMETER_COLUMNS.items()}
    return {
        "orderByKey": "metrics.`test_accuracy`",
        "orderByAsc": False,
        "groupBy": group_by,
        "selectedColumns": [*columns],
        "columnOrder": [*_ATTRIBUTE_COLUMNS, *columns],
        "columnWidths": _ATTRIBUTE_COLUMNS | columns,
        **_make_charts(),
    }


def _make_charts() -> dict[str, Any]:
    """Make the page's charts: the results as bars, then the training as curves."""
    cards = [*map(_make_bars, _METRIC_COLUMNS), *map(_make_curve, _CURVES)]
    common = {"runsCountToCompare": 10, "deleted": False, "isGenerated": False}
    sections = {"results": "Results", "training": "Training"}
    return {
        "compareRunCharts": [
            {"uuid": card["metricKey"], "displayName": card["metricKey"], **common, **card}
            for card in cards
        ],
        # Other metrics come into sections of the page's own, after these.
        "compareRunSections": [
            {"uuid": key, "name": name, "display": True, "isReordered": False, "deleted": False}
            for key, name in sections.items()
        ],
        "isAccordionReordered": True,
    }


def _make_bars(metric: str) -> dict[str, Any]:
    return {"type": "BAR", "metricKey": metric, "metricSectionId": "results"}


def _make_curve(metric: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "metricKey": metric,
        "metricSectionId": "training",
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "scaleType": "linear",
        "range": {},
        "lineSmoothness": 0,
        "selectedXAxisMetricKey": "",
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
        "ignoreOutliers": False,
    }


BEST_VIEW = View("Best first", "best", _make_state())
RECIPE_VIEW = View(
    "By recipe",
    "recipe",
    _make_state(
        {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "tag", "groupByData": RECIPE_TAG}],
        }
    ),
)


def log_views(
    logger: "RunLogger",
    config: Mapping[str, Any],
    data: Mapping[str, Any] | None,
    weights: Mapping[str, str] | None = None,
) -> None:
    """Log the views that a run's experiment lacks, and the run's recipe.

    Args:
        logger: The run's logger.
        config: The run's resolved configuration.
        data: The run's data, as `record.describe_data` describes them.
        weights: The initial weights, as `parameters.describe_weights` describes them.
    """
    client, experiment_id = logger.experiment, logger.experiment_id
    client.set_tag(logger.run_id, RECIPE_TAG, name_recipe(config, data, weights))
    experiment = client.get_experiment(experiment_id)
    # With the experiment's time each process writes the same tag. The menu has the latest first.
    for offset, view in enumerate((RECIPE_VIEW, BEST_VIEW)):
        tag = VIEW_TAG_PREFIX + view.key
        if tag not in experiment.tags:
            envelope = view.make_envelope(experiment.creation_time + offset)
            client.set_experiment_tag(experiment_id, tag, envelope)


def format_ui_command(tracking_uri: str) -> str:
    """Format the command, or the address, that opens `mlflow ui` on a store."""
    if server := find_server_address(tracking_uri):
        return f"open {server}"
    if tracking_uri in ("sqlite:///mlflow.db", f"sqlite:///{Path.cwd()}/mlflow.db"):
        return "mlflow ui"
    # A password stays out of logs.
    has_password = mask(tracking_uri) != tracking_uri
    uri = '"$MLFLOW_TRACKING_URI"' if has_password else shlex.quote(tracking_uri)
    return f"mlflow ui --backend-store-uri {uri}"


def format_fast_ui_command(tracking_uri: str) -> str:
    """Format a command that opens `mlflow ui` without its workers for language models.

    MLflow's default start takes three times as long and six times the memory: it has a process for
    each of four workers and of nine kinds of jobs, which these runs don't need.
    """
    if find_server_address(tracking_uri):
        return format_ui_command(tracking_uri)
    return f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {format_ui_command(tracking_uri)} --workers 1"


def find_server_address(tracking_uri: str) -> str | None:
    """Find a tracking server's address without user and password; None for a database or file."""
    address = urlsplit(tracking_uri)
    if address.scheme not in ("http", "https"):
        return None
    # A browser asks for the credentials, and can't open an address in which they are masked.
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


def link_run(tracking_uri: str, experiment_id: str, run_id: str) -> str:
    """Link the page of a run."""
    return f"{_pages(tracking_uri)}/experiments/{experiment_id}/runs/{run_id}?{WORKFLOW_QUERY}"


def link_runs(tracking_uri: str, experiment_id: str, view: str) -> str:
    """Link the page of an experiment's runs in one of its views.

    Args:
        tracking_uri: The store of the runs.
        experiment_id: The experiment.
        view: The view's key, such as `BEST_VIEW.key`.
    """
    return (
        f"{_pages(tracking_uri)}/experiments/{experiment_id}/runs?viewStateShareKey={quote(view)}"
        f"&{WORKFLOW_QUERY}"
    )


def link_comparison(
    tracking_uri: str, run_ids: Sequence[str], experiment_ids: Sequence[str]
) -> str:
    """Link the page that shows runs side by side."""
    runs = quote(json.dumps([*run_ids], separators=(",", ":")))
    experiments = quote(json.dumps([*dict.fromkeys(experiment_ids)], separators=(",", ":")))
    query = f"runs={runs}&experiments={experiments}&{WORKFLOW_QUERY}"
    return f"{_pages(tracking_uri)}/compare-runs?{query}"


def _pages(tracking_uri: str) -> str:
    """The start of each page's address: on the runs' server, or on that of `mlflow ui`."""
    return f"{(find_server_address(tracking_uri) or LOCAL_SERVER).rstrip('/')}/#"
