"""The description of a run: its text, when it is written, and whose text stays."""

from pathlib import Path

import mlflow
import pytest
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from pyclassify.tracking import description
from pyclassify.tracking.description import (
    ClassCounts,
    describe_failure,
    describe_results,
    describe_start,
    format_results,
    format_run,
)
from tests.support.phrases import mentions
from tests.support.runs import CONFIG, FACTS, PAGE, TAGS, record
from tests.support.trainings import SHAPES

DESCRIBED = Path(__file__).with_name("described.md")
METRICS = {
    "test_accuracy": 81 / 263,
    "best_val_accuracy": 0.5,
    "val_accuracy": 0.25,
    "test_loss": 1.5,
    "test_ece": 0.03125,
    "parameters": 57044810,
    "wall_seconds": 723.4,
}
SCORES = ClassCounts(["*one*", "two"], total=[200, 63], correct=[60, 21])
SECRET = "hunter2-and-more"


def test_description_has_results_and_what_was_run():
    parts = (format_results(METRICS, SCORES, epochs=10), format_run(CONFIG, FACTS, TAGS, PAGE))

    assert "\n\n".join(parts) + "\n" == DESCRIBED.read_text()


@pytest.mark.parametrize(
    ("metrics", "first"),
    [
        ({"best_val_accuracy": 0.5, "val_accuracy": 0.25}, "**Best validation accuracy 0.5000**"),
        ({"val_accuracy": 0.25, "val_loss": 2}, "**Validation accuracy 0.2500**"),
        ({"its_own": 1}, "**Finished**"),
    ],
)
def test_results_without_a_test_start_with_the_best_metric(metrics, first):
    assert format_results(metrics, None, 0).split("\n\n")[0] == first


def test_results_name_the_flip_accuracy_apart():
    text = format_results({"test_flip_tta_accuracy": 0.93, "test_accuracy": 0.92}, None, epochs=0)

    first, rest = text.split("\n\n")
    assert first == "**Test accuracy 0.9200**"
    assert mentions(rest, "Test accuracy", "0.9300")


def test_results_of_many_classes_name_the_best_and_the_worst():
    scores = ClassCounts(list("abcdefgh"), total=[10] * 7 + [0], correct=[3, 9, 5, 1, 7, 2, 4, 0])

    text = format_results({}, scores, epochs=0)

    assert mentions(text, "b 0.90, e 0.70, c 0.50. ", "d 0.10, f 0.20, a 0.30.")


@pytest.fixture
def run_id(cli):
    return record()


def note(run_id):
    return mlflow.MlflowClient().get_run(run_id).data.tags.get(MLFLOW_RUN_NOTE)


def test_description_of_long_texts_fits_a_tag(cli, run_id):
    long = "|*`" * 5000
    config = {**CONFIG, "data": {"class_path": long}, "ckpt_path": long}
    git = {"missing": long}
    facts = {**FACTS, "command": [long], "data": {**FACTS["data"], "name": long}, "git": git}

    describe_start(mlflow.MlflowClient(), run_id, config, facts)
    describe_results(mlflow.MlflowClient(), run_id, ClassCounts([long] * 9, [1] * 9, [0] * 9))

    assert "**Test accuracy" in note(run_id)


def test_training_writes_its_description(cli):
    (run,) = cli(f"train {SHAPES}").runs

    text = run.data.tags[MLFLOW_RUN_NOTE]
    assert text.startswith(f"**Test accuracy {run.data.metrics['test_accuracy']:.4f}** (")
    assert "1 epoch in " in text
    assert "`tests.support.networks.Linear`" in text
    assert "40 training images" in text
    assert f"pyclassify rerun {run.info.run_id}\n" in text
    figure = "description/confusion_matrix.png"
    assert f"(get-artifact?path={figure}&run_uuid={run.info.run_id})" in text
    artifacts = mlflow.MlflowClient().list_artifacts(run.info.run_id, "description")
    assert [artifact.path for artifact in artifacts] == [figure]


def test_failed_training_describes_its_error(cli):
    with pytest.raises(ZeroDivisionError):
        cli(f"fit {SHAPES}", "--trainer.callbacks+=tests.support.networks.Bug")

    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.data.tags[MLFLOW_RUN_NOTE].startswith("**Failed**: ZeroDivisionError: ")
    assert "`tests.support.networks.Linear`" in run.data.tags[MLFLOW_RUN_NOTE]
    assert run.info.status == "FAILED"


def test_training_leaves_a_persons_note(cli):
    given = f'--trainer.logger.tags={{"{MLFLOW_RUN_NOTE}": "mine"}}'
    (run,) = cli(f"train {SHAPES}", given).runs

    assert run.data.tags[MLFLOW_RUN_NOTE] == "mine"


def test_results_keep_a_persons_text_after_the_seal(run_id):
    client = mlflow.MlflowClient()
    describe_start(client, run_id, CONFIG, FACTS)
    client.set_tag(run_id, MLFLOW_RUN_NOTE, note(run_id) + "\nI like it.")

    describe_results(client, run_id)

    assert note(run_id).startswith("**Test accuracy 0.5000**")
    assert note(run_id).endswith("\nI like it.")


@pytest.mark.parametrize("edit", [lambda text: text.replace("Seed", "Luck"), lambda text: ""])
def test_results_leave_an_edited_description_alone(edit, run_id):
    client = mlflow.MlflowClient()
    describe_start(client, run_id, CONFIG, FACTS)
    changed = edit(note(run_id))
    client.set_tag(run_id, MLFLOW_RUN_NOTE, changed)

    describe_results(client, run_id)

    assert note(run_id) == changed


def test_resumed_run_gets_a_new_description(run_id):
    client = mlflow.MlflowClient()
    describe_start(client, run_id, CONFIG, FACTS)
    describe_failure(client, run_id, "RuntimeError: out of memory")

    describe_start(client, run_id, {**CONFIG, "seed_everything": 8}, FACTS)

    assert note(run_id).startswith("**No results yet**")
    assert note(run_id).count("| Seed | 8 |") == 1


def test_failure_masks_credentials(run_id):
    client = mlflow.MlflowClient()
    describe_start(client, run_id, CONFIG, FACTS)

    describe_failure(client, run_id, f"OSError: no answer from https://me:{SECRET}@data.org/x")

    assert "no answer from" in note(run_id)
    assert SECRET not in note(run_id)


def test_description_with_an_error_costs_only_a_warning(cli, monkeypatch):
    monkeypatch.delattr(description, "seal")

    with pytest.warns(UserWarning, match="could not write the description"):
        done = cli(f"train {SHAPES}")

    assert done.runs[0].info.status == "FINISHED"
    assert MLFLOW_RUN_NOTE not in done.runs[0].data.tags
