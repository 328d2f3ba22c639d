"""Any network, module and data with any other, named on the command line alone."""

import mlflow
import pytest

from tests.support import images
from tests.support.trainings import QUIET, SHAPES, TINY


def test_network_of_torchvision_trains_on_mnist(cli, tmp_path):
    folder = images.make_mnist(tmp_path / "data")
    data = f"--data=MNISTDataModule --data_path {folder} --data.val_size 10"
    network = "--model=Classifier --model.model torchvision.models.resnet18"
    small = "--data.resize=32 --data.crop=28 --batch_size=10 --max_epochs=1"

    done = cli(f"train {data} {network} {small} {QUIET}")

    assert done.code == 0
    params = done.runs[0].data.params
    assert params["model/model"] == "torchvision.models.resnet18"
    assert params["data/class"] == "pyclassify.datamodule.MNISTDataModule"


def test_module_of_another_trains_on_data_of_ours(cli):
    model = "--model=tests.support.networks.Module --learning_rate 0.25"

    done = cli(f"train --data=pyclassify.datamodule.SyntheticDataModule {TINY} {model} {QUIET}")

    assert done.code == 0
    assert done.runs[0].data.params["model/learning_rate"] == "0.25"
    assert "its_own_loss" in done.runs[0].data.metrics


def test_module_of_ours_trains_on_data_of_another(cli):
    network = (
        "--model=Classifier --model.model=tests.support.networks.Linear --model.num_classes=12"
    )

    done = cli(f"train --data=tests.support.networks.Data {network} --max_epochs 1 {QUIET}")

    assert done.code == 0
    assert "test_accuracy" in done.runs[0].data.metrics
    assert done.runs[0].data.params["model/num_classes"] == "12"


def test_data_of_another_that_hold_one_stage_train_on_the_training_images(cli, capsys):
    network = "--model=Classifier --model.model=tests.support.networks.Linear"

    done = cli(f"train --data=tests.support.networks.StagedData {network} --max_epochs 1 {QUIET}")

    assert done.code == 0
    history = mlflow.MlflowClient().get_metric_history(done.runs[0].info.run_id, "val_loss")
    assert [point.step for point in history] == [3]  # four steps of training


def test_classes_follow_the_data_and_a_contradiction_is_said_to_be_ignored(cli):
    with pytest.warns(UserWarning, match=r"--model\.num_classes 7 .*10 classes"):
        done = cli(f"fit {SHAPES} --model.num_classes 7")

    assert done.code == 0
    assert done.runs[0].data.params["model/num_classes"] == "10"
