"""The views that an experiment is given, and the recipe by which runs are grouped."""

import json
import sqlite3

import mlflow
import pytest
import yaml
from command_lines import SHAPES

from pyclassify.tracking import views
from pyclassify.tracking.views import BEST, BY_RECIPE, RECIPE, TAG, recipe

CONFIG = {
    "seed_everything": 0,
    "trainer": {"accelerator": "auto", "max_epochs": 3, "logger": {"class_path": "a.Logger"}},
    "model": {"class_path": "a.Classifier", "init_args": {"model": "b.resnet18", "lr": 0.1}},
    "data": {"class_path": "a.MNISTDataModule", "init_args": {"data_path": "/here"}},
}


def changed(path, value):
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    *parents, last = path.split(".")
    inner = config
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return config


def tags():
    return mlflow.get_experiment_by_name("tested").tags


def test_experiment_has_each_view_once_however_many_runs(cli):
    cli(f"fit {SHAPES}")
    first = tags()
    cli(f"fit {SHAPES} --seed 1")

    assert first == tags()
    assert {key for key in first if key.startswith(TAG)} == {TAG + BEST.key, TAG + BY_RECIPE.key}


@pytest.mark.parametrize("view", [BEST, BY_RECIPE], ids=lambda view: view.name)
def test_view_is_an_envelope_that_the_page_takes(view):
    told = json.loads(view.envelope(7))
    state = json.loads(told.pop("state"))

    assert told == {"name": view.name, "createdAt": 7, "updatedAt": 7}
    assert state == view.state
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`test_accuracy`", False)
    assert {*state["selectedColumns"]} < {*state["columnOrder"]} == {*state["columnWidths"]}
    assert len(view.envelope(2**41)) < 20_000  # MLflow's limit of a tag


def test_key_is_another_for_other_content():
    renamed = views.View("Another name", BEST.word, BEST.state)
    restated = views.View(BEST.name, BEST.word, {**BEST.state, "orderByAsc": True})

    assert BEST.key == views.View(BEST.name, BEST.word, dict(BEST.state)).key
    assert len({BEST.key, renamed.key, restated.key}) == 3


def test_view_that_a_person_deleted_is_written_again_and_others_are_left_alone(cli):
    cli(f"fit {SHAPES}")
    experiment = mlflow.get_experiment_by_name("tested").experiment_id
    client = mlflow.MlflowClient()
    client.delete_experiment_tag(experiment, TAG + BEST.key)
    client.set_experiment_tag(experiment, TAG + BY_RECIPE.key, "a person's own")

    cli(f"fit {SHAPES}")

    assert TAG + BEST.key in tags()
    assert tags()[TAG + BY_RECIPE.key] == "a person's own"


def test_views_that_cannot_be_written_cost_a_warning_only(cli):
    with sqlite3.connect("mlflow.db") as store:
        store.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON experiment_tags "
            "BEGIN SELECT RAISE(ABORT, 'no permission'); END"
        )

    with pytest.warns(UserWarning, match=r"the views of `mlflow ui` can't be made .*permission"):
        done = cli(f"fit {SHAPES}")

    assert done.code == 0
    assert [run.info.status for run in done.runs] == ["FINISHED"]
    assert RECIPE in done.runs[0].data.tags


def test_runs_that_differ_by_seed_alone_are_of_one_recipe(cli):
    for more in ("", "--seed 1", "--learning_rate 0.5"):
        runs = cli(f"fit {SHAPES} {more}").runs

    other, *same = [run.data.tags[RECIPE] for run in runs]
    assert same[0] == same[1] != other
    assert other.startswith("Linear-Synthetic ")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed_everything", 1),
        ("trainer.accelerator", "gpu"),
        ("trainer.logger", False),
        ("data.init_args.data_path", "/there"),
    ],
)
def test_place_and_seed_make_no_other_recipe(path, value):
    assert recipe(changed(path, value)) == recipe(CONFIG)


@pytest.mark.parametrize(
    ("path", "value"),
    [("trainer.max_epochs", 4), ("model.init_args.lr", 0.2), ("data.class_path", "mine.Data")],
)
def test_what_is_trained_makes_another_recipe(path, value):
    assert recipe(changed(path, value)) != recipe(CONFIG)


def test_recipe_is_named_by_network_and_data():
    assert recipe(CONFIG).startswith("resnet18-MNIST ")
    assert recipe(changed("model", {"class_path": "mine.Module"})).startswith("Module-MNIST ")
