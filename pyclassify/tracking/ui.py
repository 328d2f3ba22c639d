"""Views of an experiment's runs, kept with it: what a printed link shows in `mlflow ui`.

By itself its table of runs has no column for a metric or a parameter. A view is a tag of the
experiment, as the page's own "Save view" writes it (MLflow 3.17): an envelope in JSON around the
page's state, in JSON again.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from pyclassify.tracking.parameters import RECIPE, recipe
from pyclassify.utils.masking import mask

TAG = "mlflow.sharedViewState."
# Columns, in order, and their width in pixels.
_RUN = {"attributes.`Run Name`": 300, "attributes.`Created`": 130, "duration": 80}
_METRICS = {
    "test_accuracy": 115,
    "best_val_accuracy": 140,
    "test_loss": 95,
    "test_ece": 95,
    "wall_seconds": 110,
    "images_per_second": 145,
    "parameters": 100,
}
_PARAMS = {
    "config": 220,
    "model/model": 220,
    "model/learning_rate": 150,
    "data/class": 220,
    "data/batch_size": 125,
    "trainer/max_epochs": 145,
    "seed_everything": 125,
}


@dataclass(frozen=True)
class View:
    """One view.

    Attributes:
        name: What the menu "Views" calls it.
        word: What its key begins with.
        state: The page's state, as far as it is not the page's own.
    """

    name: str
    word: str
    state: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What links call it: another one for each content, so that a link stays what it was."""
        content = json.dumps([self.name, self.state], sort_keys=True)
        return f"{self.word}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    def envelope(self, time: int) -> str:
        """Make the tag's value.

        Args:
            time: When the view was made, in milliseconds since 1970.
        """
        state = json.dumps(self.state, separators=(",", ":"))
        told = {"name": self.name, "createdAt": time, "updatedAt": time, "state": state}
        return json.dumps(told, separators=(",", ":"))


def _bars(metric: str) -> dict[str, Any]:
    return {"type": "BAR", "metricKey": metric, "metricSectionId": "results"}


def _charts() -> dict[str, Any]:
    """The page's charts: the results as bars, then how each run got there."""
    cards = [
        *map(_bars, _METRICS),
        *map(_lines, ("val_accuracy", "val_loss", "train_accuracy", "train_loss")),
        *map(_lines, ("learning_rate", "epoch_seconds")),
    ]
    common = {"runsCountToCompare": 10, "deleted": False, "isGenerated": False}
    sections = {"results": "Results", "training": "Training"}
    return {
        "compareRunCharts": [
            {"uuid": card["metricKey"], "displayName": card["metricKey"], **common, **card}
            for card in cards
        ],
        # Later metrics come into sections of the page's own, after these.
        "compareRunSections": [
            {"uuid": key, "name": name, "display": True, "isReordered": False, "deleted": False}
            for key, name in sections.items()
        ],
        "isAccordionReordered": True,
    }


def _lines(metric: str) -> dict[str, Any]:
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


def _state(group_by: Mapping[str, Any] | None = None) -> dict[str, Any]:
    columns = {f"metrics.`{name}`": width for name, width in _METRICS.items()}
    columns |= {f"params.`{name}`": width for name, width in _PARAMS.items()}
    return {
        "orderByKey": "metrics.`test_accuracy`",
        "orderByAsc": False,
        "groupBy": group_by,
        "selectedColumns": [*columns],
        "columnOrder": [*_RUN, *columns],
        "columnWidths": _RUN | columns,
        **_charts(),
    }


BEST = View("Best first", "best", _state())
BY_RECIPE = View(
    "By recipe",
    "recipe",
    _state(
        {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "tag", "groupByData": RECIPE}],
        }
    ),
)
# What `mlflow ui` prints.
LOCAL = "http://127.0.0.1:5000"
# The half of MLflow's pages that is not for language models.
TRAINING = "workflowType=machine_learning"


def keep(
    logger: Any,
    config: Mapping[str, Any],
    data: Mapping[str, Any] | None,
    weights: Mapping[str, str] | None = None,
) -> None:
    """Write the views that a run's experiment lacks, and the run's recipe.

    Args:
        logger: The run's `RunLogger`.
        config: The run's configuration, as it was resolved.
        data: What `dataset.describe` says of its data.
        weights: What `weights.describe` says of the weights that it starts from.
    """
    client, experiment_id = logger.experiment, logger.experiment_id
    client.set_tag(logger.run_id, RECIPE, recipe(config, data, weights))
    experiment = client.get_experiment(experiment_id)
    # The same time makes the same tag whoever writes it. The menu has the latest first.
    for later, view in enumerate((BY_RECIPE, BEST)):
        if TAG + view.key not in experiment.tags:
            made = view.envelope(experiment.creation_time + later)
            client.set_experiment_tag(experiment_id, TAG + view.key, made)


def show_runs(tracking_uri: str) -> str:
    """What to do to look at the runs that are kept at an address."""
    if server := server_address(tracking_uri):
        return f"open {server}"
    if tracking_uri in ("sqlite:///mlflow.db", f"sqlite:///{Path.cwd()}/mlflow.db"):
        return "mlflow ui"
    # A password stays out of logs.
    secret = mask(tracking_uri) != tracking_uri
    uri = '"$MLFLOW_TRACKING_URI"' if secret else shlex.quote(tracking_uri)
    return f"mlflow ui --backend-store-uri {uri}"


def server_address(tracking_uri: str) -> str | None:
    """A tracking server's address, without user and password; none where runs are in a file."""
    address = urlsplit(tracking_uri)
    if address.scheme not in ("http", "https"):
        return None
    # A browser asks for them; what masks them for reading gives no address to open.
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


def start_quickly(tracking_uri: str) -> str:
    """What to do to look at runs, without the half of `mlflow ui` that is for language models.

    MLflow's own start takes three times as long, and six times the memory: it has a process for
    each of four workers and of nine kinds of jobs that no run of ours asks for.
    """
    if server_address(tracking_uri):
        return show_runs(tracking_uri)
    return f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {show_runs(tracking_uri)} --workers 1"


def run_link(tracking_uri: str, experiment_id: str, run_id: str) -> str:
    """The page of one run."""
    return f"{_pages(tracking_uri)}/experiments/{experiment_id}/runs/{run_id}?{TRAINING}"


def runs_link(tracking_uri: str, experiment_id: str, view: str) -> str:
    """The page of an experiment's runs, as a view of it shows them.

    Args:
        tracking_uri: Where the runs are.
        experiment_id: The experiment.
        view: The view's key, `pyclassify.tracking.ui.BEST.key` for one.
    """
    return (
        f"{_pages(tracking_uri)}/experiments/{experiment_id}/runs?viewStateShareKey={quote(view)}"
        f"&{TRAINING}"
    )


def compare_link(tracking_uri: str, run_ids: Sequence[str], experiment_ids: Sequence[str]) -> str:
    """The page that shows runs side by side, on their server or on the one of `mlflow ui`."""
    runs, experiments = (
        quote(json.dumps(ids, separators=(",", ":")))
        for ids in (list(run_ids), list(dict.fromkeys(experiment_ids)))
    )
    return f"{_pages(tracking_uri)}/compare-runs?runs={runs}&experiments={experiments}&{TRAINING}"


def _pages(tracking_uri: str) -> str:
    """The beginning of each page's address: on the runs' server, or on that of `mlflow ui`."""
    return f"{(server_address(tracking_uri) or LOCAL).rstrip('/')}/#"
