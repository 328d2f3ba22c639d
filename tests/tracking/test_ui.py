"""The views of its runs that an experiment is given."""

import json
import sqlite3

import mlflow
import pytest

from pyclassify.tracking import ui
from pyclassify.tracking.parameters import RECIPE_TAG
from pyclassify.tracking.ui import BEST_VIEW, RECIPE_VIEW, VIEW_TAG_PREFIX
from tests.support.trainings import SHAPES


def tags():
    return mlflow.get_experiment_by_name("tested").tags


def test_experiment_has_each_view_once_however_many_runs(cli):
    cli(f"fit {SHAPES}")
    first = tags()
    cli(f"fit {SHAPES} --seed 1")

    assert first == tags()
    assert {key for key in first if key.startswith(VIEW_TAG_PREFIX)} == {
        VIEW_TAG_PREFIX + BEST_VIEW.key,
        VIEW_TAG_PREFIX + RECIPE_VIEW.key,
    }


@pytest.mark.parametrize("view", [BEST_VIEW, RECIPE_VIEW], ids=lambda view: view.name)
def test_view_is_an_envelope_that_the_page_takes(view):
    envelope = json.loads(view.make_envelope(7))
    state = json.loads(envelope.pop("state"))

    assert envelope == {"name": view.name, "createdAt": 7, "updatedAt": 7}
    assert state == view.state
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`test_accuracy`", False)
    assert {*state["selectedColumns"]} < {*state["columnOrder"]} == {*state["columnWidths"]}
    assert len(view.make_envelope(2**41)) < 20_000  # MLflow's limit of a tag


def test_key_is_another_for_other_content():
    renamed = ui.View("Another name", BEST_VIEW.prefix, BEST_VIEW.state)
    restated = ui.View(BEST_VIEW.name, BEST_VIEW.prefix, {**BEST_VIEW.state, "orderByAsc": True})

    assert BEST_VIEW.key == ui.View(BEST_VIEW.name, BEST_VIEW.prefix, dict(BEST_VIEW.state)).key
    assert len({BEST_VIEW.key, renamed.key, restated.key}) == 3


def test_view_that_a_person_deleted_is_written_again_and_others_are_left_alone(cli):
    cli(f"fit {SHAPES}")
    experiment = mlflow.get_experiment_by_name("tested").experiment_id
    client = mlflow.MlflowClient()
    client.delete_experiment_tag(experiment, VIEW_TAG_PREFIX + BEST_VIEW.key)
    client.set_experiment_tag(experiment, VIEW_TAG_PREFIX + RECIPE_VIEW.key, "a person's own")

    cli(f"fit {SHAPES}")

    assert VIEW_TAG_PREFIX + BEST_VIEW.key in tags()
    assert tags()[VIEW_TAG_PREFIX + RECIPE_VIEW.key] == "a person's own"


def test_views_that_cannot_be_written_cost_a_warning_only(cli):
    with sqlite3.connect("mlflow.db") as store:
        store.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON experiment_tags "
            "BEGIN SELECT RAISE(ABORT, 'no permission'); END"
        )

    with pytest.warns(UserWarning, match=r"not delivered: .*no permission"):
        done = cli(f"fit {SHAPES}")

    assert done.code == 0
    assert [run.info.status for run in done.runs] == ["FINISHED"]
    assert RECIPE_TAG in done.runs[0].data.tags
