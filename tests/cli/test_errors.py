"""What is said of a wrong command line: one line, and no run that looks as if it went well."""

import mlflow
import pytest

from tests.support.phrases import mentions
from tests.support.trainings import QUIET, SHAPES, last_error, refusal

SETTINGS = {
    "broken.yaml": "trainer: [",
    "list.yaml": "- trainer",
    "binary.yaml": b"\xff\xfe\x00",
    "misspelt.yaml": "trainer:\n  max_epoch: 3",
    "misspelt_part.yaml": "modle:\n  class_path: Classifier",
    "misspelt_argument.yaml": "data:\n  class_path: MNISTDataModule\n  init_args: {batchsize: 3}",
    "wrong_type.yaml": "data:\n  class_path: MNISTDataModule\n  init_args: {batch_size: many}",
    "scalar.yaml": "trainer: 3",
}
UNKNOWN_RUN = "0123456789abcdef" * 2

# The form of each kind of message, as it begins.
FORMS = {
    "": "no command was given; give one of train, fit, validate, test, predict, prepare, compare",
    "trian": "there is no command 'trian' (nearest: train); give one of train, fit",
    "fit now": "'now' is no option's value; options are given as --name value",
    "fit --max_epoch 3": "there is no option 'max_epoch'; nearest: max_epochs, ",
    "fit --model.model.droput 0": "AlexNet has no option 'model.model.droput'; nearest: "
    "model.model.dropout",
    "fit --optimizer.lr 1": "optimizer.lr is given and no optimizer; name its class by --optimizer",
    "fit --data=ImageFolderDataModule": "ImageFolderDataModule needs data_path; give "
    "--data.data_path (or --data_path)",
    "fit --data=MNISTDataModul": "data is 'MNISTDataModul', which can't be imported; it takes the "
    "import path of a class or function, package.module.name (nearest: MNISTDataModule",
    "fit --max_epochs three": "trainer.max_epochs is 'three'; it takes int",
    "fit --max_epochs": "--trainer.max_epochs was given no value; give it as --trainer.max_epochs=",
    "fit --devices 0": "devices is 0; give 1 or more, a list of GPU indices, or auto",
    f"fit {SHAPES} --num_nodes 0": "the trainer can't be made: `num_nodes` must be a positive",
    "fit --config": "--config was given no file; --config takes a YAML file, such as configs/",
    "fit --config none.yaml": "none.yaml can't be read (No such file or directory); --config takes",
    "fit --config broken.yaml": "broken.yaml is no YAML file (while parsing",
    "fit --config list.yaml": "list.yaml holds list where settings are expected, `trainer:` and",
    "test": "test scores a trained network; give --ckpt_path, a checkpoint file or a run's id",
    "test --ckpt_path no.ckpt": "ckpt_path no.ckpt is neither a file nor a run's id (32 hexadec",
    "train --ckpt_path no.ckpt": "ckpt_path no.ckpt is no file; train goes on from a checkpoint",
}
# Of the same kinds: what each has to name.
FACTS = {
    "--max_epochs 3": ["train", "fit", "validate", "test", "predict", "prepare", "compare"],
    "cook --max_epochs 3": ["'cook'", "train", "fit"],
    "fit --trainer.max_epoch=3": ["'trainer.max_epoch'", "trainer.max_epochs"],
    "fit --data.batchsize 3": ["CIFAR10DataModule", "'data.batchsize'", "data.batch_size"],
    "fit --optimizer SGD --optimizer.momentun 1": [
        "SGD",
        "'optimizer.momentun'",
        "optimizer.momentum",
    ],
    "fit --optimizer Adam --lr_scheduler StepLR": ["StepLR", "--lr_scheduler.step_size"],
    "fit --model.model=torchvision.models.resnet19": [
        "model.model",
        "'torchvision.models.resnet19'",
        "torchvision.models.resnet18",
    ],
    "fit --model=nowhere.Net": ["model", "'nowhere.Net'", "import"],
    "fit --batch_size=x": ["data.batch_size", "'x'", "int"],
    "fit --learning_rate x": ["model.learning_rate", "'x'", "float"],
    "fit --optimizer SGD --learning_rate x": ["optimizer.lr", "'x'", "float"],
    "fit --seed -1": ["seed", "-1", "0 to 2^32 - 1"],
    "fit --seed x": ["seed_everything", "'x'", "bool", "int"],
    "fit --precision 17": ["trainer.precision", "'17'", "64", "32", "16", "'transformer-engine'"],
    "fit --devices=-3": ["devices", "-3", "1 or more"],
    "fit --devices two": ["devices", "two", "1 or more"],
    "fit --devices 99 --accelerator gpu": ["devices", "99", "this machine"],
    f"fit {SHAPES} --accelerator abacus": ["trainer", "invalid accelerator", "abacus"],
    "fit --config .": ["--config", ". can't be read", "Is a directory", "YAML"],
    "fit --config binary.yaml": ["binary.yaml", "YAML"],
    "fit --config misspelt.yaml": ["'trainer.max_epoch'", "trainer.max_epochs"],
    "fit --config misspelt_part.yaml": ["'modle'", "model"],
    "fit --config misspelt_argument.yaml": [
        "MNISTDataModule",
        "'data.batchsize'",
        "data.batch_size",
    ],
    "fit --data=ImageFolderDataModule --data_path=. --data.classes=[0,1]": [
        "data.classes is [0, 1]",
        """--data.classes='["0", "1"]'""",
    ],
    "fit --data=ImageFolderDataModule --data_path=. --data.classes=[cat,true]": [
        """--data.classes='["cat", "true"]'""",
    ],
    "fit --data=ImageFolderDataModule --data_path=. --data.classes=0,1": [
        "data.classes is '0,1'",
        """--data.classes='["a", "b"]'""",
    ],
    "fit --config wrong_type.yaml": ["data.batch_size", "'many'", "int"],
    "fit --config scalar.yaml": ["trainer", "3", "trainer.max_epochs"],
    "validate": ["validate", "--ckpt_path"],
    "predict": ["predict", "--ckpt_path"],
    "test --ckpt_path list.yaml": ["ckpt_path", "list.yaml", "checkpoint"],
    f"test --ckpt_path {UNKNOWN_RUN}": [UNKNOWN_RUN, "weights/best.ckpt", "sqlite:///"],
}


@pytest.fixture
def settings_files(tmp_path):
    for name, content in SETTINGS.items():
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)


@pytest.mark.parametrize("line", FORMS)
def test_mistake_is_answered_in_one_line(line, settings_files, cli):
    done = cli(line)

    assert done.runs == []
    assert refusal(done).startswith(FORMS[line])


@pytest.mark.parametrize("line", FACTS)
def test_mistake_is_named_with_the_way_out(line, settings_files, cli):
    done = cli(line)

    assert done.runs == []
    assert mentions(refusal(done), *FACTS[line])


@pytest.mark.parametrize("line", ["fit --max_epochs three", "", "trian"])
def test_run_of_mlflow_run_fails_with_the_mistake(line, cli, monkeypatch):
    made = mlflow.MlflowClient().create_run(mlflow.get_experiment_by_name("tested").experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)

    assert [run.info.status for run in cli(line).runs] == ["FAILED"]


def test_folder_that_cannot_be_made_is_named(cli, tmp_path):
    (tmp_path / "file").touch()

    done = cli(f"train --data=MNISTDataModule --data_path {tmp_path}/file/data {QUIET}")

    assert mentions(last_error(done), "data_path", f"{tmp_path}/file/data")
    assert "RUNNING" not in [run.info.status for run in done.runs]


def test_folder_without_images_is_named(cli, tmp_path):
    (tmp_path / "train" / "cats").mkdir(parents=True)

    done = cli(f"train --data=ImageFolderDataModule --data_path {tmp_path} {QUIET}")

    assert mentions(last_error(done), f"{tmp_path}/train", "no images")
    assert "FINISHED" not in [run.info.status for run in done.runs]


def test_broken_image_is_named_and_its_run_fails(cli, tmp_path):
    for name in ("cats/tim.png", "cats/tom.png", "dogs/rex.png", "dogs/max.png"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).write_bytes(b"no image")
    data = f"--data=ImageFolderDataModule --data_path {tmp_path} --data.val_size 0.5"

    done = cli(f"fit {data} --model.model=tests.support.networks.Linear --max_epochs 1 {QUIET}")

    assert done.code == 1
    assert f"{tmp_path}/train/" in last_error(done)
    assert "Traceback" not in done.err
    assert [run.info.status for run in done.runs] == ["FAILED"]


def test_weights_of_another_network_are_refused_in_one_line(cli):
    run_id = cli(f"fit {SHAPES}").runs[0].info.run_id

    done = cli(f"test {SHAPES} --model.model.side 4 --ckpt_path {run_id}")

    assert mentions(last_error(done), "checkpoint", "network", "size")
    assert [run.info.status for run in done.runs] == ["FAILED", "FINISHED"]


def test_run_without_weights_cannot_be_scored(cli):
    run_id = cli(f"fit {SHAPES} --trainer.enable_checkpointing=false").runs[0].info.run_id

    done = cli(f"test {SHAPES} --ckpt_path {run_id}")

    assert mentions(last_error(done), run_id, "weights/best.ckpt", "sqlite:///")
    assert len(done.runs) == 1


def test_unexpected_exception_keeps_its_stack_trace_and_fails_the_run(cli):
    with pytest.raises(ZeroDivisionError):
        cli(f"fit {SHAPES} --trainer.callbacks+=tests.support.networks.Bug")

    assert [run.info.status for run in mlflow.search_runs(output_format="list")] == ["FAILED"]
