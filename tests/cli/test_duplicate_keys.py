"""A key that is given twice, in whatever way settings reach a command."""

import pytest

from tests.support.phrases import mentions
from tests.support.trainings import SHAPES, refusal

DATA = "class_path: SyntheticDataModule\ninit_args:\n  train_size: 8\n  train_size: 16\n"
RECIPE = "trainer:\n  max_epochs: 1\ndata:\n  class_path: SyntheticDataModule\ntrainer: {}\n"


@pytest.mark.parametrize(
    "command", ["train", "fit", "test", "predict", "prepare", "train --seeds 2"]
)
def test_command_with_a_key_twice_in_its_recipe_names_both_lines(command, cli, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    message = refusal(done := cli(f"{command} --config recipe.yaml"), code=2)

    assert mentions(message, "recipe.yaml", "trainer", 1, 5)
    assert done.runs == []


@pytest.mark.parametrize("options", [["--data", "data.yaml"], ["--data=data.yaml"]])
def test_fit_with_a_key_twice_in_a_file_of_an_option_names_both_lines(options, cli, tmp_path):
    (tmp_path / "data.yaml").write_text(DATA)

    message = refusal(cli("fit", *options), code=2)

    assert mentions(message, "data.yaml", "init_args.train_size", 3, 4)


@pytest.mark.parametrize("text", [DATA, "{class_path: A, init_args: {a: 1,\n a: 2}}"])
def test_fit_with_a_key_twice_in_an_option_is_refused(text, cli):
    message = refusal(cli("fit", f"--data={text}"), code=2)

    assert mentions(message, "init_args.", "twice", "line")


def test_fit_with_an_anchor_and_a_merge_key_trains(cli, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "trainer: &trainer {max_epochs: 1, limit_val_batches: 1}\ncheckpoint: {monitor: val_loss}\n"
    )

    assert cli(f"fit {SHAPES} --config recipe.yaml").code == 0


@pytest.mark.parametrize("form", ["file", "inline"])
def test_slurm_render_with_a_key_twice_in_its_config_is_refused(form, cli, tmp_path):
    text = '{\n\t"time": "1:00",\n\t"time": "2:00"\n}'
    (tmp_path / "config.json").write_text(text)
    given = {"file": "config.json", "inline": text}[form]

    message = refusal(cli("slurm render .", "--backend-config", given), code=2)

    assert mentions(message, "key 'time'", 2, 3)
