"""Short options, their order, and what files and defaults add to them."""

import pytest
import yaml

from pyclassify.cli.options import expand_options
from pyclassify.utils.options import SHORT_OPTIONS, UsageError

DEFAULTS = [
    "--data=pyclassify.datamodule.CIFAR10DataModule",
    "--model=pyclassify.module.Classifier",
]


@pytest.mark.parametrize(("short", "full"), SHORT_OPTIONS.items())
def test_short_option_stands_for_the_full_one(short, full):
    assert expand_options(["fit", f"--{short}=7"]) == ["fit", *DEFAULTS, f"--{full}=7"]
    assert expand_options(["fit", f"--{short}", "7"]) == ["fit", *DEFAULTS, f"--{full}", "7"]


def test_full_option_passes_as_it_is():
    given = ["fit", "--trainer.limit_train_batches=10", "--seed_everything", "3"]

    assert expand_options(given) == ["fit", *DEFAULTS, *given[1:]]


@pytest.mark.parametrize("optimizer", [["--optimizer", "SGD"], ["--optimizer.class_path=SGD"]])
def test_learning_rate_is_that_of_a_named_optimizer_before_or_after(optimizer):
    rate = ["--learning_rate", "0.1"]

    assert "--optimizer.lr" in expand_options(["fit", *optimizer, *rate])
    assert "--optimizer.lr" in expand_options(["fit", *rate, *optimizer])


@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [({"class_path": "SGD"}, "--optimizer.lr=0.1"), (None, "--model.learning_rate=0.1")],
)
def test_learning_rate_follows_the_optimizer_of_a_file(optimizer, rate, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"optimizer": optimizer}))

    assert rate in expand_options(["fit", "--config", str(file), "--learning_rate=0.1"])


def test_part_that_is_named_has_no_default(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("data:\n  class_path: MNISTDataModule")

    spelled = expand_options(["fit", f"--config={file}", "--model=tests.support.networks.Module"])

    assert spelled == ["fit", f"--config={file}", "--model=tests.support.networks.Module"]


def test_files_come_first_then_classes_then_their_arguments(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("seed_everything: 1")
    given = ["--model.model.dropout", "0", "--batch_size=3", "--model.model", "a.Net"]

    spelled = expand_options(
        [*given, "--data=b.Data", "fit", "--model", "c.Module", "-c", str(file)]
    )

    assert spelled == [
        *["fit", "-c", str(file), "--data=b.Data", "--model", "c.Module"],
        *["--data.batch_size=3", "--model.model", "a.Net", "--model.model.dropout", "0"],
    ]


def test_options_of_equal_depth_keep_their_order():
    callbacks = ["--trainer.callbacks+=A", "--trainer.callbacks.a=1", "--trainer.callbacks+=B"]

    assert expand_options(["fit", *callbacks])[-3:] == callbacks


def test_value_is_not_the_command():
    assert expand_options(["--data_path", "train", "fit"])[0] == "fit"


def test_schedule_without_an_optimizer_is_refused():
    with pytest.raises(UsageError, match=r"--lr_scheduler requires --optimizer"):
        expand_options(["fit", "--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1"])


def test_negative_number_is_a_value():
    assert expand_options(["--seed", "-1", "fit"]) == ["fit", *DEFAULTS, "--seed_everything", "-1"]


def test_help_without_a_class_is_about_the_chosen_one():
    assert "pyclassify.module.Classifier" in expand_options(["fit", "--model.help"])
    assert expand_options(["fit", "--data=b.Data", "--data.help"])[-2:] == ["--data.help", "b.Data"]


def shown(cli, line):
    return yaml.safe_load(cli(f"{line} --print_config").out)


def test_fit_alone_is_alexnet_on_cifar10(cli):
    config = shown(cli, "fit")

    assert config["model"]["init_args"]["model"]["class_path"] == "pyclassify.model.AlexNet"
    assert config["model"]["init_args"]["learning_rate"] == 1e-4
    assert config["data"]["class_path"] == "pyclassify.datamodule.CIFAR10DataModule"
    assert config["data"]["init_args"]["batch_size"] == 64


@pytest.mark.parametrize("command", ["fit", "train", "prepare"])
def test_printed_config_can_be_given_back(command, cli, tmp_path):
    options = "--optimizer SGD --learning_rate=0.1 --data=MNISTDataModule --max_epochs 3"
    printed = cli(f"fit {options} --print_config").out
    (tmp_path / "printed.yaml").write_text(printed)

    again = shown(cli, f"{command} --config printed.yaml")

    assert again == yaml.safe_load(printed)


def test_later_file_wins_and_an_option_wins_over_both(cli, tmp_path):
    (tmp_path / "first.yaml").write_text("trainer: {max_epochs: 1, precision: 32, min_epochs: 1}")
    (tmp_path / "second.yaml").write_text("trainer: {max_epochs: 2, devices: 4}")

    line = "fit --precision 64 --config first.yaml --devices 5 --config second.yaml"
    trainer = shown(cli, line)["trainer"]

    assert (trainer["min_epochs"], trainer["max_epochs"]) == (1, 2)
    assert (trainer["precision"], trainer["devices"]) == (64, "5")


def test_limit_of_one_is_one_batch_and_not_all_of_them(cli):
    limits = "--trainer.limit_train_batches=1 --trainer.limit_val_batches=1.0"
    printed = yaml.safe_load(cli(f"fit {limits} --print_config").out)["trainer"]

    assert printed["limit_train_batches"] == 1
    assert isinstance(printed["limit_train_batches"], int)
    assert isinstance(printed["limit_val_batches"], float)


def test_optimizer_and_schedule_are_chosen_as_lightning_has_it(cli):
    schedule = "--lr_scheduler CosineAnnealingLR --lr_scheduler.T_max 5"

    config = shown(cli, f"fit --optimizer SGD --optimizer.lr 0.1 {schedule}")

    assert config["optimizer"]["class_path"] == "torch.optim.SGD"
    assert config["optimizer"]["init_args"]["lr"] == 0.1
    assert config["lr_scheduler"]["init_args"]["T_max"] == 5


@pytest.mark.parametrize("name", ["MNISTDataModule", "pyclassify.datamodule.MNISTDataModule"])
def test_class_is_named_barely_or_in_full(name, cli):
    assert shown(cli, f"fit --data={name}")["data"]["class_path"].endswith(".MNISTDataModule")
