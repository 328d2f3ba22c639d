"""A run goes on without what tracking can't keep."""

import re

import mlflow

from pyclassify.cli.main import main
from tests.support.trainings import QUIET, SHAPES


def test_run_whose_files_can_not_be_stored_is_trained_and_tested_and_keeps_them_for_later(
    cli, tmp_path, monkeypatch, recwarn
):
    blocked = tmp_path / "blocked"
    blocked.touch()  # no folder can be made below a file, not even by root
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("full disk", f"{blocked}/artifacts")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "full disk")

    done = cli(f"train {SHAPES}")
    (run,) = client.search_runs([experiment])

    assert done.code == 0
    assert run.info.status == "FINISHED"
    assert {"train_loss", "val_accuracy", "test_accuracy"} < run.data.metrics.keys()
    assert run.data.params["model/learning_rate"] == "0.0001"
    (said,) = {str(each.message) for each in recwarn if "takes no file" in str(each.message)}
    assert "Not a directory" in said
    last = done.err.splitlines()[-1]
    assert re.search(r"^pyclassify: config.yaml, .+ and \d+ more ", last)
    assert run.info.run_id in last

    blocked.unlink()
    assert main(last.split("pyclassify ")[-1].split()) == 0
    kept = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "predictions.json", "confusion_matrix.png", "capsule"} < kept


def test_test_images_without_a_label_cost_a_picture_and_not_the_run(cli, recwarn):
    parts = "--model=tests.support.networks.Unlabelled --data=tests.support.networks.Data"
    (run,) = cli(f"train {parts} --max_epochs=1 {QUIET}").runs

    assert run.info.status == "FINISHED"
    said = " ".join(str(warning.message) for warning in recwarn)
    assert "accuracy by class" in said
