"""The predictions of a test, logged once for each image by any number of processes."""

import json
import os
from pathlib import Path

import mlflow
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import multiclass_calibration_error

from pyclassify.module import Classifier
from pyclassify.tracking import run
from pyclassify.tracking.logger import RunLogger
from pyclassify.tracking.predictions import PredictionLogger
from tests.support import forking_python, networks, processes, waiting
from tests.support.trainings import LINEAR, QUIET

PICTURES = {"class_accuracy.png", "confident_errors.png", "confusion_matrix.png"}
FOREIGN = "tests.support.networks"
RECIPE = f"--data=SyntheticDataModule {LINEAR} --batch_size=5 {QUIET}"
RECIPE += " --data.train_size=40 --data.val_size=10 --data.test_size=21"


def artifacts(run_id):
    return {each.path for each in mlflow.MlflowClient().list_artifacts(run_id)}


def table(run_id, folder):
    path = mlflow.artifacts.download_artifacts(None, run_id, "predictions.json", str(folder))
    return json.loads(Path(path).read_text())


def probabilities(classifier, dataset):
    with torch.no_grad():
        return classifier.eval().predict_step(dataset[:], 0)


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return Classifier(model=networks.network, num_classes=4)


@pytest.fixture
def score(cli):
    """Test a module in its own run: `score(module, loader)` returns the logger."""

    def test(module, loaders):
        logger = RunLogger()
        trainer = networks.trainer(logger=logger, callbacks=[PredictionLogger()])
        trainer.test(module, loaders, verbose=False)
        assert logger.spooled_run.upload_thread.wait_until_uploaded(waiting.scale(20))
        return logger

    yield test
    run.end_run("FINISHED")


def test_two_processes_log_the_predictions_of_one(cli, tmp_path):
    alone = cli(f"train {RECIPE} --max_epochs=1").runs[0]
    scoring = f"test {RECIPE} --devices=2 --accelerator=cpu --ckpt_path={alone.info.run_id}"
    variables = {**os.environ, "PYTHONPATH": str(processes.ROOT)}

    # Lightning itself starts the second process.
    forking_python.run("-m", "pyclassify", *scoring.split(), env=variables, check=True)
    experiment = alone.info.experiment_id
    together = mlflow.MlflowClient().search_runs([experiment])[0]

    ours, theirs = (
        table(each.info.run_id, tmp_path / name) for each, name in ((together, "2"), (alone, "1"))
    )
    assert [row[0] for row in ours["data"]] == list(range(21))
    assert [row[:3] for row in ours["data"]] == [row[:3] for row in theirs["data"]]
    assert [row[3] for row in ours["data"]] == pytest.approx([row[3] for row in theirs["data"]])
    assert together.data.metrics["test_ece"] == pytest.approx(alone.data.metrics["test_ece"])
    assert artifacts(together.info.run_id) >= PICTURES


def test_table_has_label_prediction_and_probability_of_each_image(classifier, score, tmp_path):
    dataset = networks.byte_images(7)
    logger = score(classifier, DataLoader(dataset, 3))
    labels = dataset[:][1]
    probability, predicted = probabilities(classifier, dataset).max(1)

    found = table(logger.run_id, tmp_path)

    assert found["columns"] == ["index", "label", "predicted", "probability"]
    index, *names, probabilities_in_table = zip(*found["data"], strict=True)
    assert list(index) == list(range(7))
    assert names == [tuple(map(str, each.tolist())) for each in (labels, predicted)]
    assert list(probabilities_in_table) == pytest.approx(probability.tolist(), abs=1e-6)


def test_calibration_error_matches_torchmetrics(classifier):
    dataset = networks.byte_images(50)
    trainer = networks.trainer(callbacks=[PredictionLogger()])

    (logged,) = trainer.test(classifier, DataLoader(dataset, 8), verbose=False)

    expected = multiclass_calibration_error(
        probabilities(classifier, dataset), dataset[:][1], num_classes=4
    )
    assert logged["test_ece"] == pytest.approx(float(expected))


def test_shuffled_test_set_gets_no_figure_of_errors(classifier, score):
    logger = score(classifier, DataLoader(networks.byte_images(7), 3, shuffle=True))

    assert artifacts(logger.run_id) == {*PICTURES, "predictions.json"} - {"confident_errors.png"}


def test_several_test_loaders_log_no_predictions(classifier, score):
    logger = score(classifier, [DataLoader(networks.byte_images(4), 2)] * 2)

    assert artifacts(logger.run_id) == set()


def test_module_without_logits_logs_no_predictions(cli):
    done = cli(f"train --model={FOREIGN}.Module --data={FOREIGN}.Data --max_epochs=1 {QUIET}")

    assert done.code == 0
    assert artifacts(done.runs[0].info.run_id) == {"capsule", "config.yaml", "weights"}
    assert "test_ece" not in done.runs[0].data.metrics


def test_figure_with_an_error_costs_only_a_warning(classifier, score):
    five_channels = TensorDataset(torch.rand(8, 5, 32, 32), torch.zeros(8, dtype=torch.long))
    classifier.model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(5 * 32 * 32, 4))

    with pytest.warns(UserWarning, match=r"confident_errors\.png"):
        logger = score(classifier, DataLoader(five_channels, 4))

    assert artifacts(logger.run_id) == {*PICTURES, "predictions.json"} - {"confident_errors.png"}


def test_diverged_network_logs_its_predictions(classifier, score, tmp_path):
    torch.nn.init.constant_(classifier.model[-1].bias, torch.nan)

    logger = score(classifier, DataLoader(networks.byte_images(4), 2))

    assert [row[3] for row in table(logger.run_id, tmp_path)["data"]] == [None] * 4
    assert artifacts(logger.run_id) >= PICTURES
