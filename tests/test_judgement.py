"""A trained network is compared with the champion when it is registered."""

import json
import re

import mlflow
import pytest

from pyclassify.datamodule import SyntheticDataModule
from pyclassify.registry.judgement import answer
from tests.support.command_lines import LINEAR, QUIET

SET = "--data=SyntheticDataModule --data.train_size=400 --data.val_size=200 --data.test_size=300"
FAST = f"--batch_size=50 --trainer.log_every_n_steps=1 {QUIET}"
GOOD = f"train {SET} {FAST} {LINEAR} --max_epochs=3 --learning_rate=0.01"
BAD = f"train {SET} {FAST} {LINEAR} --max_epochs=1 --learning_rate=0"
REGISTER = "--register=shapes"


def standing():
    model = mlflow.MlflowClient().get_registered_model("shapes")
    return {alias: str(version) for alias, version in model.aliases.items()}


def decision(version):
    return mlflow.MlflowClient().get_model_version("shapes", version).tags["decision"]


def test_better_network_becomes_champion_and_a_worse_one_does_not(cli):
    first = cli(f"{BAD} {REGISTER}")
    second = cli(f"{GOOD} {REGISTER}")
    third = cli(f"{BAD} {REGISTER}")

    told = [re.search("^model +shapes (.+)", each.out, re.M)[1] for each in (first, second, third)]
    assert told[0].startswith("version 1 is champion: the first")
    assert re.match("version 2 is champion: .*better than version 1 ", told[1])
    assert re.match("version 2 stays champion: version 3 is .+ than version 2 ", told[2])
    assert standing() == {"champion": "2", "challenger": "3"}


def test_first_version_below_min_accuracy_is_no_champion(cli):
    said = cli(f"{BAD} {REGISTER} --register.min_accuracy=0.9")

    assert "is below min_accuracy 0.9" in said.out
    assert standing() == {"challenger": "1"}


def test_champion_of_other_images_is_evaluated_on_those_of_the_new_one(cli):
    cli(f"{BAD} {REGISTER}")
    said = cli(f"{GOOD} --data.test_size=200 {REGISTER}")

    assert re.search("shapes version 2 is champion: .*better than version 1 ", said.out)
    assert "on 200 images" in said.out


def test_validation_images_judge_where_they_are_named(cli):
    cli(f"{BAD} {REGISTER}")
    said = cli(f"{GOOD} {REGISTER} --register.judge_by=val")

    assert "on 200 images" in said.out
    assert standing()["champion"] == "2"


def test_version_answers_as_its_own_test_did(cli):
    (run,) = cli(f"{GOOD} {REGISTER}").runs
    table = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/predictions.json"))
    place, label, guess = (table["columns"].index(each) for each in ("index", "label", "predicted"))
    data = SyntheticDataModule(train_size=400, val_size=200, test_size=300)
    data.setup("test")
    answers = answer(mlflow.MlflowClient(), "shapes", "1", data.test, data.classes)

    assert answers == {row[place]: (row[label], row[label] == row[guess]) for row in table["data"]}


def test_network_for_other_classes_is_not_judged(cli):
    cli(f"{BAD} {REGISTER}")
    client = mlflow.MlflowClient()
    with pytest.raises(
        ValueError, match=r"version 1 tells 10 classes apart .+ are of 2 \(cat, dog"
    ):
        answer(client, "shapes", "1", [], ["cat", "dog"])
