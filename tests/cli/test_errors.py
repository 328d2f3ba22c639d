"""The error messages of training commands: one line, the exit code, and no run that succeeds."""

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
    "empty.yaml": "",
}
UNKNOWN_RUN = "0123456789abcdef" * 2

# The form of each kind of message, as it begins: of an invalid command line, exit code 2.
USAGE_FORMS = {
    "--versoin": "unknown option '--versoin'. Did you mean '--version'? See `pyclassify --help`",
    "--max_epochs 3": "missing command; see `pyclassify --help`",
    "trian": "unknown command 'trian'. Did you mean 'train'? See `pyclassify --help`",
    "cook --max_epochs 3": "unknown command 'cook'; see `pyclassify --help`",
    "--json=1 compare": "give the options of compare after it: pyclassify compare ...",
    "fit now": "unexpected argument 'now'; give options as --NAME VALUE",
    "fit --max_epoch 3": "unknown option '--max_epoch'. Did you mean '--max_epochs'? See "
    "`pyclassify fit --help-all`",
    "test --zzz=3": "unknown option '--zzz'; see `pyclassify test --help-all`",
    "fit --config misspelt.yaml": "unknown setting 'trainer.max_epoch'. Did you mean "
    "'trainer.max_epochs'? See `pyclassify fit --help-all`",
    "fit --model.model.droput 0": "AlexNet has no option 'model.model.droput'. Did you mean "
    "'model.model.dropout'? See `--model.model.help`",
    "fit --optimizer.lr 1": "--optimizer.lr requires --optimizer; give --optimizer CLASS",
    "fit --data=ImageFolderDataModule": "ImageFolderDataModule requires data_path; give "
    "--data_path VALUE",
    "fit --model torchvision.models.resnet18": "invalid model: 'torchvision.models.resnet18' is a "
    "network, not a LightningModule; give --model.model torchvision.models.resnet18",
    "fit --data=MNISTDataModul": "invalid data: 'MNISTDataModul' can't be imported (expected the "
    "import path of a class or function, package.module.Name). Did you mean 'MNISTDataModule'?",
    "fit --max_epochs three": "invalid trainer.max_epochs: 'three' (expected int)",
    "fit --max_epochs": "option --max_epochs requires a value: --max_epochs VALUE",
    "fit --trainer.max_steps": "option --trainer.max_steps requires a value: --trainer.max_steps "
    "VALUE",
    "fit --batch_size": "option --batch_size requires a value: --batch_size VALUE",
    "fit --data.crop --max_epochs 3": "option --data.crop requires a value: --data.crop VALUE",
    "fit --devices 0": "invalid devices: 0 (expected 1 or more, a list of GPU indices, or auto)",
    f"fit {SHAPES} --num_nodes 0": "invalid trainer settings: `num_nodes` must be a positive",
    f"fit {SHAPES} --optimizer SGD --learning_rate -1": "invalid optimizer or lr_scheduler: ",
    "fit --config": "option --config requires a value: a YAML file, such as configs/",
    "fit --config none.yaml": "can't read --config none.yaml: No such file or directory (expected "
    "a YAML file",
    "fit --config broken.yaml": "--config broken.yaml is not YAML: while parsing",
    "fit --config list.yaml": "invalid --config list.yaml: the file holds a value of type list "
    "(expected settings, such as `trainer: {max_epochs: 5}`)",
    "fit --config empty.yaml": "invalid --config empty.yaml: the file holds nothing (expected",
    "test": "test requires --ckpt_path: a checkpoint file or the first 4 to 32 hexadecimal digits "
    "of a run's ID",
}
# Of the same kinds: what each has to name.
USAGE_FACTS = {
    "fit --trainer.max_epoch=3": ["'--trainer.max_epoch'", "--trainer.max_epochs"],
    "fit --data.batchsize 3": ["CIFAR10DataModule", "'data.batchsize'", "data.batch_size"],
    "fit --optimizer SGD --optimizer.momentun 1": [
        "SGD",
        "'optimizer.momentun'",
        "optimizer.momentum",
    ],
    "fit --optimizer Adam --lr_scheduler StepLR": ["StepLR", "--lr_scheduler.step_size"],
    "fit --lr_scheduler StepLR --lr_scheduler.step_size 1": ["--lr_scheduler", "--optimizer"],
    "fit --model.model=torchvision.models.resnet19": [
        "model.model",
        "'torchvision.models.resnet19'",
        "torchvision.models.resnet18",
    ],
    "fit --model=nowhere.Net": ["model", "'nowhere.Net'", "import"],
    "fit --batch_size=x": ["data.batch_size", "'x'", "int"],
    f"fit {SHAPES} --batch_size 0": ["batch_size", "0"],
    f"fit {SHAPES} --model.label_smoothing 1": ["label_smoothing", "1"],
    f"fit {SHAPES} --freeze nothing": ["freeze", "'nothing'", "Linear"],
    f"fit {SHAPES} --checkpoint.save_top_k=-3": ["save_top_k", "-3"],
    f"fit {SHAPES} --data.crop 3 --model.model pyclassify.model.AlexNet": ["AlexNet", "3"],
    "fit --learning_rate x": ["model.learning_rate", "'x'", "float"],
    "fit --optimizer SGD --learning_rate x": ["optimizer.lr", "'x'", "float"],
    "fit --seed -1": ["seed", "-1", "0 to 2^32 - 1"],
    "fit --seed x": ["seed_everything", "'x'", "bool", "int"],
    "train --seeds 0": ["seeds", "0"],
    "train --seeds": ["seeds", "value"],
    "test --seeds 2": ["seeds", "test", "train"],
    "fit --precision 17": ["trainer.precision", "'17'", "64", "32", "16", "'transformer-engine'"],
    "fit --devices=-3": ["devices", "-3", "1 or more"],
    "fit --devices two": ["devices", "two", "1 or more"],
    "fit --accelerator cpu --devices [0]": ["devices", "[0]", "CPU"],
    f"fit {SHAPES} --accelerator abacus": ["trainer", "invalid accelerator", "abacus"],
    "fit --config .": ["--config", "can't read --config .", "Is a directory", "YAML"],
    "fit --config binary.yaml": ["binary.yaml", "YAML"],
    "fit --config misspelt_part.yaml": ["'modle'", "model"],
    "fit --config misspelt_argument.yaml": [
        "MNISTDataModule",
        "'data.batchsize'",
        "data.batch_size",
    ],
    "fit --data=ImageFolderDataModule --data_path=. --data.classes=[0,1]": [
        "data.classes: [0, 1]",
        """--data.classes='["0", "1"]'""",
    ],
    "fit --data=ImageFolderDataModule --data_path=. --data.classes=[cat,true]": [
        """--data.classes='["cat", "true"]'""",
    ],
    "fit --data=ImageFolderDataModule --data_path=. --data.classes=0,1": [
        "data.classes: '0,1'",
        """--data.classes='["a", "b"]'""",
    ],
    "fit --config wrong_type.yaml": ["data.batch_size", "'many'", "int"],
    "fit --config scalar.yaml": ["trainer", "3", "trainer.max_epochs"],
    "validate": ["validate", "--ckpt_path"],
    "predict": ["predict", "--ckpt_path", "models:/NAME@ALIAS"],
    "predict --ckpt_path models:/a@b --output t.txt": ["output", "t.txt", ".parquet"],
    "test --ckpt_path models:/alexnet@champion": ["models:/alexnet@champion", "predict"],
    # of the other commands
    "compare --bset 3": ["'--bset'", "--best", "pyclassify compare --help"],
    "compare --metric": ["--metric", "pyclassify compare --help"],
    "resume": ["pyclassify resume --help"],
    "rerun": ["pyclassify rerun --help"],
    "sync --folow": ["'--folow'", "--follow", "pyclassify sync --help"],
    "promote alexnet": ["VERSION", "pyclassify promote --help"],
    "promote alexnet 1 --alpha x": ["--alpha", "'x'"],
    "rollback": ["NAME", "pyclassify rollback --help"],
    "slurm": ["pyclassify slurm --help"],
    "slurm stauts": ["'stauts'", "status"],
    "slurm clear --days x": ["--days", "'x'"],
}
# What is known only from files, the store or the machine is a failure, exit code 1.
FAILURES = {
    "test --ckpt_path no.ckpt": ["no.ckpt", "is not a file", "32 hexadecimal digits", "first 4"],
    "train --ckpt_path no.ckpt": ["no.ckpt", "is not a file", "pyclassify resume RUN_ID"],
    "test --ckpt_path list.yaml": ["list.yaml", "is not a checkpoint"],
    f"test --ckpt_path {UNKNOWN_RUN}": [UNKNOWN_RUN, "there is no run", "sqlite:///"],
    "fit --devices 99 --accelerator gpu": ["devices", "99", "this machine"],
    f"fit {SHAPES} --accelerator tpu": ["trainer", "torch_xla"],
    f"fit --data=ImageFolderDataModule --data_path nowhere {QUIET}": ["nowhere"],
}


@pytest.fixture
def settings_files(tmp_path):
    for name, content in SETTINGS.items():
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)


@pytest.mark.parametrize("line", USAGE_FORMS)
def test_invalid_command_line_exits_2_with_one_line(line, settings_files, cli):
    done = cli(line)

    assert done.runs == []
    assert refusal(done, code=2).startswith(USAGE_FORMS[line])


@pytest.mark.parametrize("line", USAGE_FACTS)
def test_invalid_command_line_exits_2_and_names_the_remedy(line, settings_files, cli):
    done = cli(line)

    assert done.runs == []
    assert mentions(refusal(done, code=2), *USAGE_FACTS[line])


@pytest.mark.parametrize("line", FAILURES)
def test_missing_file_or_device_exits_1_and_names_the_remedy(line, settings_files, cli):
    done = cli(line)

    assert done.runs == []
    assert mentions(refusal(done, code=1), *FAILURES[line])


@pytest.mark.parametrize("line", ["fit --max_epochs three", "trian"])
def test_run_of_mlflow_run_with_an_invalid_command_line_fails(line, cli, monkeypatch):
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
