"""The description in a run: when it is written, and whose words stay."""

import mlflow
import pytest

from pyclassify.tracking import description
from pyclassify.tracking.description import (
    NOTE_TAG,
    ClassCounts,
    describe_failure,
    describe_results,
    describe_start,
)
from tests.support.runs import CONFIG, FACTS, record
from tests.support.trainings import SHAPES

SECRET = "hunter2-and-more"


@pytest.fixture
def run_id(cli):
    return record()


def note(run_id):
    return mlflow.MlflowClient().get_run(run_id).data.tags.get(NOTE_TAG)


def test_no_text_makes_a_description_too_long_for_a_tag(cli, run_id):
    long = "|*`" * 5000
    config = {**CONFIG, "data": {"class_path": long}, "ckpt_path": long}
    git = {"missing": long}
    facts = {**FACTS, "command": [long], "data": {**FACTS["data"], "name": long}, "git": git}

    describe_start(mlflow.MlflowClient(), run_id, config, facts)
    describe_results(mlflow.MlflowClient(), run_id, ClassCounts([long] * 9, [1] * 9, [0] * 9))

    assert "**Test accuracy" in note(run_id)


def test_trained_run_has_its_description(cli):
    (made,) = cli(f"train {SHAPES}").runs

    text = made.data.tags[NOTE_TAG]
    assert text.startswith(f"**Test accuracy {made.data.metrics['test_accuracy']:.4f}** (")
    assert "1 epoch in " in text
    assert "`tests.support.networks.Linear`" in text
    assert "40 images for training" in text
    assert f"pyclassify rerun {made.info.run_id}\n" in text
    picture = "description/confusion_matrix.png"
    assert f"(get-artifact?path={picture}&run_uuid={made.info.run_id})" in text
    shown = mlflow.MlflowClient().list_artifacts(made.info.run_id, "description")
    assert [each.path for each in shown] == [picture]


def test_failed_run_says_why_and_what_it_was(cli):
    with pytest.raises(ZeroDivisionError):
        cli(f"fit {SHAPES}", "--trainer.callbacks+=tests.support.networks.Bug")

    (made,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert made.data.tags[NOTE_TAG].startswith("**Failed**: ZeroDivisionError: ")
    assert "`tests.support.networks.Linear`" in made.data.tags[NOTE_TAG]
    assert made.info.status == "FAILED"


def test_note_of_a_person_stays(cli):
    given = f'--trainer.logger.tags={{"{NOTE_TAG}": "mine"}}'
    (made,) = cli(f"train {SHAPES}", given).runs

    assert made.data.tags[NOTE_TAG] == "mine"


def test_what_a_person_adds_at_the_end_stays(run_id):
    client = mlflow.MlflowClient()
    describe_start(client, run_id, CONFIG, FACTS)
    client.set_tag(run_id, NOTE_TAG, note(run_id) + "\nI like it.")

    describe_results(client, run_id)

    assert note(run_id).startswith("**Test accuracy 0.5000**")
    assert note(run_id).endswith("\nI like it.")


@pytest.mark.parametrize("edit", [lambda text: text.replace("Seed", "Luck"), lambda text: ""])
def test_what_a_person_changed_is_left_alone(edit, run_id):
    client = mlflow.MlflowClient()
    describe_start(client, run_id, CONFIG, FACTS)
    changed = edit(note(run_id))
    client.set_tag(run_id, NOTE_TAG, changed)

    describe_results(client, run_id)

    assert note(run_id) == changed


def test_run_that_goes_on_is_described_anew(run_id):
    client = mlflow.MlflowClient()
    describe_start(client, run_id, CONFIG, FACTS)
    describe_failure(client, run_id, RuntimeError("out of memory"))

    describe_start(client, run_id, {**CONFIG, "seed_everything": 8}, FACTS)

    assert note(run_id).startswith("**No results**")
    assert note(run_id).count("| Seed | 8 |") == 1


def test_credentials_in_an_error_are_masked(run_id):
    client = mlflow.MlflowClient()
    describe_start(client, run_id, CONFIG, FACTS)

    describe_failure(client, run_id, OSError(f"no answer from https://me:{SECRET}@data.org/x"))

    assert "no answer from" in note(run_id)
    assert SECRET not in note(run_id)


def test_description_that_cannot_be_made_costs_a_warning(cli, monkeypatch):
    monkeypatch.delattr(description, "seal")

    with pytest.warns(UserWarning, match="the description can't be made"):
        done = cli(f"train {SHAPES}")

    assert done.runs[0].info.status == "FINISHED"
    assert NOTE_TAG not in done.runs[0].data.tags
