"""Views, links and commands of `mlflow ui`."""

import json
import re
import shlex
import sqlite3

import mlflow
import pytest

from pyclassify.tracking import ui
from pyclassify.tracking.parameters import RECIPE_TAG
from pyclassify.tracking.ui import (
    BEST_VIEW,
    RECIPE_VIEW,
    VIEW_TAG_PREFIX,
    format_fast_ui_command,
    link_run,
    link_runs,
)
from tests.support.trainings import SHAPES

LOCAL = "http://127.0.0.1:5000/#/experiments"
TRAINING = "workflowType=machine_learning"


def tags():
    return mlflow.get_experiment_by_name("tested").tags


def test_experiment_of_several_runs_has_each_view_once(cli):
    cli(f"fit {SHAPES}")
    first = tags()
    cli(f"fit {SHAPES} --seed 1")

    assert first == tags()
    assert {key for key in first if key.startswith(VIEW_TAG_PREFIX)} == {
        VIEW_TAG_PREFIX + BEST_VIEW.key,
        VIEW_TAG_PREFIX + RECIPE_VIEW.key,
    }


@pytest.mark.parametrize("view", [BEST_VIEW, RECIPE_VIEW], ids=lambda view: view.name)
def test_view_envelope_has_the_pages_format(view):
    envelope = json.loads(view.make_envelope(7))
    state = json.loads(envelope.pop("state"))

    assert envelope == {"name": view.name, "createdAt": 7, "updatedAt": 7}
    assert state == view.state
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`test_accuracy`", False)
    assert {*state["selectedColumns"]} < {*state["columnOrder"]} == {*state["columnWidths"]}
    assert len(view.make_envelope(2**41)) < 20_000  # MLflow's limit of a tag


def test_view_key_depends_on_its_content():
    renamed = ui.View("Another name", BEST_VIEW.prefix, BEST_VIEW.state)
    restated = ui.View(BEST_VIEW.name, BEST_VIEW.prefix, {**BEST_VIEW.state, "orderByAsc": True})

    assert BEST_VIEW.key == ui.View(BEST_VIEW.name, BEST_VIEW.prefix, dict(BEST_VIEW.state)).key
    assert len({BEST_VIEW.key, renamed.key, restated.key}) == 3


def test_deleted_view_is_logged_again_and_an_edited_view_stays(cli):
    cli(f"fit {SHAPES}")
    experiment = mlflow.get_experiment_by_name("tested").experiment_id
    client = mlflow.MlflowClient()
    client.delete_experiment_tag(experiment, VIEW_TAG_PREFIX + BEST_VIEW.key)
    client.set_experiment_tag(experiment, VIEW_TAG_PREFIX + RECIPE_VIEW.key, "a person's own")

    cli(f"fit {SHAPES}")

    assert VIEW_TAG_PREFIX + BEST_VIEW.key in tags()
    assert tags()[VIEW_TAG_PREFIX + RECIPE_VIEW.key] == "a person's own"


def test_views_that_the_store_refuses_cost_only_a_warning(cli):
    with sqlite3.connect("mlflow.db") as store:
        store.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON experiment_tags "
            "BEGIN SELECT RAISE(ABORT, 'no permission'); END"
        )

    with pytest.warns(UserWarning, match=r"rejected.*: .*no permission"):
        done = cli(f"fit {SHAPES}")

    assert done.code == 0
    assert [run.info.status for run in done.runs] == ["FINISHED"]
    assert RECIPE_TAG in done.runs[0].data.tags


def test_training_prints_links_to_its_run_and_the_views(cli):
    done = cli(f"train {SHAPES}")
    run = done.runs[0].info

    links = re.findall(r"^[a-z ]+ (http\S+)$", done.out, re.MULTILINE)
    assert links == [
        f"{LOCAL}/{run.experiment_id}/runs/{run.run_id}?{TRAINING}",
        f"{LOCAL}/{run.experiment_id}/runs?viewStateShareKey={BEST_VIEW.key}&{TRAINING}",
        f"{LOCAL}/{run.experiment_id}/runs?viewStateShareKey={RECIPE_VIEW.key}&{TRAINING}",
    ]


def test_links_to_a_server_have_no_password():
    server = "https://me:secret@runs.example.org/team/"

    assert link_run(server, "3", "a") == (
        f"https://runs.example.org/team/#/experiments/3/runs/a?{TRAINING}"
    )
    assert link_runs(server, "3", "best-1").startswith("https://runs.example.org/team/#/exp")


@pytest.mark.parametrize(
    ("uri", "command"),
    [
        ("sqlite:///mlflow.db", ["mlflow", "ui"]),
        ("sqlite:////a b/x.db", ["mlflow", "ui", "--backend-store-uri", "sqlite:////a b/x.db"]),
    ],
)
def test_fast_ui_command_of_a_database_is_a_shell_command(uri, command):
    argv = shlex.split(format_fast_ui_command(uri))

    assert argv == ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", *command, "--workers", "1"]


def test_fast_ui_command_has_no_password_of_a_database():
    for uri in ("postgresql://me:hunter2@db/runs", "postgresql://db/runs?user=me&password=hunter2"):
        assert 'store-uri "$MLFLOW_TRACKING_URI" --workers' in format_fast_ui_command(uri)


def test_fast_ui_command_of_a_server_opens_it():
    assert format_fast_ui_command("https://runs.example.org") == "open https://runs.example.org"
