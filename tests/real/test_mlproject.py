"""The file MLproject, read by MLflow's own parser."""

import shlex
from pathlib import Path

import pytest
import yaml
from mlflow.projects import _project_spec

from pyclassify.utils.options import SHORT_OPTIONS

ROOT = Path(__file__).parents[2]
PROJECT = _project_spec.load_project(str(ROOT))
ENTRY_POINTS = PROJECT._entry_points
VERBS = {"main": "train", "validate": "validate", "test": "test", "prepare": "prepare"}


def test_entry_points_are_these():
    assert ENTRY_POINTS.keys() == VERBS.keys()


@pytest.mark.parametrize("name", VERBS)
def test_every_declared_parameter_is_in_the_command_and_none_is_a_path(name):
    entry_point = ENTRY_POINTS[name]

    assert all(f"--{key}={{{key}}}" in entry_point.command for key in entry_point.parameters)
    # MLflow would make such a value absolute, and download it if it is an address.
    assert {parameter.type for parameter in entry_point.parameters.values()} <= {"string", "float"}


@pytest.mark.parametrize("name", VERBS)
def test_rendered_command_is_one_that_the_command_line_takes(name, cli, monkeypatch, tmp_path):
    (tmp_path / "some.ckpt").touch()
    monkeypatch.chdir(ROOT)
    given = {"max_epochs": "5", "trainer.limit_train_batches": "10"}
    if "ckpt_path" in ENTRY_POINTS[name].parameters:
        given["ckpt_path"] = str(tmp_path / "some.ckpt")
    command = PROJECT.get_entry_point(name).compute_command(given, storage_dir=None)
    python, m, package, verb, *options = shlex.split(command)

    printed = cli(shlex.join([verb, "--print_config"]), *options)

    assert [python, m, package, verb] == ["python", "-m", "pyclassify", VERBS[name]]
    trainer = yaml.safe_load(printed.out)["trainer"]
    assert (trainer["max_epochs"], trainer["limit_train_batches"]) == (5, 10)


def test_declared_defaults_are_those_of_the_command_line(cli):
    config = yaml.safe_load(cli("train --print_config").out)

    for entry_point in ENTRY_POINTS.values():
        for name, parameter in entry_point.parameters.items():
            if name not in ("config", "ckpt_path"):
                group, _, key = SHORT_OPTIONS[name].partition(".")
                default = config[group][key] if key else config[group]
                assert str(default) == str(parameter.default), name
