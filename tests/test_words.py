"""What is said of a wrong command line: one line, and no run that looks as if it went well."""

import mlflow
import pytest

from tests.support.command_lines import QUIET, SHAPES

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

WRONG = {
    "": "no verb was given; give one of train, fit, validate, test, predict, prepare, compare",
    "--max_epochs 3": "no verb was given; give one of train",
    "trian": "there is no verb 'trian' (nearest: train); give one of train, fit",
    "cook --max_epochs 3": "there is no verb 'cook'; give one of train, fit",
    "fit now": "'now' is no option's value; options are given as --name value",
    "fit --max_epoch 3": "there is no option 'max_epoch'; nearest: max_epochs, ",
    "fit --trainer.max_epoch=3": "there is no option 'trainer.max_epoch'; nearest: trainer.max_e",
    "fit --data.batchsize 3": "CIFAR10DataModule has no option 'data.batchsize'; nearest: "
    "data.batch_size",
    "fit --model.model.droput 0": "AlexNet has no option 'model.model.droput'; nearest: "
    "model.model.dropout",
    "fit --optimizer SGD --optimizer.momentun 1": "SGD has no option 'optimizer.momentun'; "
    "nearest: optimizer.momentum",
    "fit --optimizer.lr 1": "optimizer.lr is given and no optimizer; name its class by --optimizer",
    "fit --optimizer Adam --lr_scheduler StepLR": "StepLR needs step_size; give "
    "--lr_scheduler.step_size",
    "fit --data=ImageFolderDataModule": "ImageFolderDataModule needs data_path; give "
    "--data.data_path (or --data_path)",
    "fit --data=MNISTDataModul": "data is 'MNISTDataModul', which can't be imported; it takes the "
    "import path of a class or function, package.module.name (nearest: MNISTDataModule",
    "fit --model.model=torchvision.models.resnet19": "model.model is 'torchvision.models.resnet19',"
    " which can't be imported; it takes the import path of a class or function, "
    "package.module.name (nearest: torchvision.models.resnet18",
    "fit --model=nowhere.Net": "model is 'nowhere.Net', which can't be imported",
    "fit --max_epochs three": "trainer.max_epochs is 'three'; it takes int",
    "fit --batch_size=x": "data.batch_size is 'x'; it takes int",
    "fit --learning_rate x": "model.learning_rate is 'x'; it takes float",
    "fit --optimizer SGD --learning_rate x": "optimizer.lr is 'x'; it takes float",
    "fit --seed -1": "seed is -1; give a whole number from 0 to 2^32 - 1",
    "fit --seed x": "seed_everything is 'x'; it takes bool or int",
    "fit --precision 17": "trainer.precision is '17'; it takes 64 or 32 or 16 or 'transf",
    "fit --max_epochs": "--trainer.max_epochs was given no value; give it as --trainer.max_epochs=",
    "fit --devices 0": "devices is 0; give 1 or more, a list of GPU indices, or auto",
    "fit --devices=-3": "devices is -3; give 1 or more",
    "fit --devices two": "devices is two; give 1 or more",
    "fit --devices 99 --accelerator gpu": "devices is 99 and this machine has ",
    f"fit {SHAPES} --num_nodes 0": "the trainer can't be made: `num_nodes` must be a positive",
    f"fit {SHAPES} --accelerator abacus": "the trainer can't be made: You selected an invalid acc",
    "fit --config": "--config was given no file; --config takes a YAML file, such as configs/",
    "fit --config none.yaml": "none.yaml can't be read (No such file or directory); --config takes",
    "fit --config .": ". can't be read (Is a directory); --config takes a YAML file",
    "fit --config broken.yaml": "broken.yaml is no YAML file (while parsing",
    "fit --config binary.yaml": "binary.yaml is no YAML file (",
    "fit --config list.yaml": "list.yaml holds list where settings are expected, `trainer:` and",
    "fit --config misspelt.yaml": "there is no option 'trainer.max_epoch'; nearest: trainer.max_",
    "fit --config misspelt_part.yaml": "there is no option 'modle'; nearest: model; ",
    "fit --config misspelt_argument.yaml": "MNISTDataModule has no option 'data.batchsize'; near",
    "fit --config wrong_type.yaml": "data.batch_size is 'many'; it takes int",
    "fit --config scalar.yaml": "trainer is 3; it takes settings of its own, such as trainer.max_",
    "test": "test scores a trained network; give --ckpt_path, a checkpoint file or a run's id",
    "validate": "validate scores a trained network; give --ckpt_path",
    "predict": "predict scores a trained network; give --ckpt_path",
    "test --ckpt_path no.ckpt": "ckpt_path no.ckpt is neither a file nor a run's id (32 hexadec",
    "test --ckpt_path list.yaml": "ckpt_path list.yaml is no checkpoint; give a file that a run",
    f"test --ckpt_path {UNKNOWN_RUN}": f"run {UNKNOWN_RUN} has no weights/best.ckpt at sqlite:///",
    "train --ckpt_path no.ckpt": "ckpt_path no.ckpt is no file; train goes on from a checkpoint",
}


@pytest.fixture
def settings_files(tmp_path):
    for name, content in SETTINGS.items():
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)


@pytest.mark.parametrize("line", WRONG)
def test_mistake_is_answered_in_one_line(line, settings_files, cli):
    done = cli(line)

    assert done.code == 1
    assert done.err.startswith(f"pyclassify: error: {WRONG[line]}")
    assert done.err.count("\n") == 1
    assert done.runs == []


@pytest.mark.parametrize("line", ["fit --max_epochs three", "", "trian"])
def test_run_of_mlflow_run_fails_with_the_mistake(line, cli, monkeypatch):
    made = mlflow.MlflowClient().create_run(mlflow.get_experiment_by_name("tested").experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)

    assert [run.info.status for run in cli(line).runs] == ["FAILED"]


def last_line(text):
    return text.splitlines()[-1]


def test_folder_that_cannot_be_made_is_named(cli, tmp_path):
    (tmp_path / "file").touch()

    done = cli(f"train --data=MNISTDataModule --data_path {tmp_path}/file/data {QUIET}")

    assert last_line(done.err).startswith(f"pyclassify: error: data_path {tmp_path}/file/data can")
    assert "RUNNING" not in [run.info.status for run in done.runs]


def test_folder_without_images_is_named(cli, tmp_path):
    (tmp_path / "train" / "cats").mkdir(parents=True)

    done = cli(f"train --data=ImageFolderDataModule --data_path {tmp_path} {QUIET}")

    assert last_line(done.err).startswith(f"pyclassify: error: {tmp_path}/train has no images in")
    assert "FINISHED" not in [run.info.status for run in done.runs]


def test_broken_image_is_named_and_its_run_fails(cli, tmp_path):
    folder = tmp_path / "train" / "cats"
    folder.mkdir(parents=True)
    for name in ("tim.png", "tom.png"):
        (folder / name).write_bytes(b"no image")
    data = f"--data=ImageFolderDataModule --data_path {tmp_path} --data.val_size 0.5"

    done = cli(f"fit {data} --model.model=tests.support.foreign.Linear --max_epochs 1 {QUIET}")

    assert done.code == 1
    assert f"pyclassify: error: {folder}/" in last_line(done.err)
    assert "Traceback" not in done.err
    assert [run.info.status for run in done.runs] == ["FAILED"]


def test_weights_of_another_network_are_refused_in_one_line(cli):
    run_id = cli(f"fit {SHAPES}").runs[0].info.run_id

    done = cli(f"test {SHAPES} --model.model.side 4 --ckpt_path {run_id}")

    assert "pyclassify: error: the checkpoint's weights are another network's (size" in done.err
    assert [run.info.status for run in done.runs] == ["FAILED", "FINISHED"]


def test_run_without_weights_cannot_be_scored(cli):
    run_id = cli(f"fit {SHAPES} --trainer.enable_checkpointing=false").runs[0].info.run_id

    done = cli(f"test {SHAPES} --ckpt_path {run_id}")

    assert f"pyclassify: error: run {run_id} has no weights/best.ckpt at sqlite:///" in done.err
    assert len(done.runs) == 1


def test_unexpected_exception_keeps_its_stack_trace_and_fails_the_run(cli):
    with pytest.raises(ZeroDivisionError):
        cli(f"fit {SHAPES} --trainer.callbacks+=tests.support.foreign.Bug")

    assert [run.info.status for run in mlflow.search_runs(output_format="list")] == ["FAILED"]
