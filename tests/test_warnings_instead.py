"""A run goes on without what tracking can't keep."""

import re

import mlflow
from command_lines import QUIET, SHAPES


def test_run_whose_artifacts_can_not_be_written_is_trained_and_tested_all_the_same(
    cli, tmp_path, monkeypatch, recwarn
):
    # No folder can be made below a file, not even by root.
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("full disk", f"{tmp_path}/mlflow.db/artifacts")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "full disk")

    done = cli(f"train {SHAPES}")
    (run,) = client.search_runs([experiment])

    assert done.code == 0
    assert run.info.status == "FINISHED"
    assert {"train_loss", "val_accuracy", "test_accuracy"} < run.data.metrics.keys()
    assert run.data.params["model/learning_rate"] == "0.0001"
    said = " ".join(str(warning.message) for warning in recwarn)
    missing = set(re.findall(r"([\w.]+) can't be made", said))
    assert {"config.yaml", "predictions.json", "confusion_matrix.png"} < missing
    assert "the run has no capsule" in said
    assert "the best weights are not in the run" in said


def test_test_images_without_a_label_cost_a_picture_and_not_the_run(cli, recwarn):
    parts = "--model=foreign.Unlabelled --data=foreign.Data --max_epochs=1"
    (run,) = cli(f"train {parts} {QUIET}").runs

    assert run.info.status == "FINISHED"
    said = " ".join(str(warning.message) for warning in recwarn)
    assert "the accuracy by class can't be made (" in said
