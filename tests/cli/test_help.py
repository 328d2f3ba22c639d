"""The help: static and without torch for the common options, complete for --help-all."""

import json
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
import yaml

from pyclassify.cli.help import COMMANDS, clean_docstring, format_help, make_training_parser
from pyclassify.utils.options import SHORT_OPTIONS, TRAINING_COMMANDS, flatten_config
from tests.support.phrases import mentions

# Options that no configuration has: of the command line alone.
FLAGS = {"config", "help", "help-all", "print_config", "seeds"}
LIGHT = [
    ["--help"],
    ["--version"],
    ["train", "--help"],
    ["predict", "--config", "none.yaml", "-h"],
    ["slurm", "status", "--help"],
    ["sync", "--help"],
]


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_main_without_a_command_lists_all_commands_in_groups(argv, cli):
    done = cli(" ".join(argv))

    assert done.code == 0
    assert done.err == ""
    headings = re.findall(r"^(\w+):$", done.out, re.MULTILINE)
    assert headings == ["Train", "Runs", "Models", "Cluster", "options", "examples"]
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", done.out, re.MULTILINE)
    assert max(map(len, done.out.splitlines())) <= 90
    assert mentions(done.out, "exit codes:", 75, "pyclassify COMMAND --help")


def test_version_is_the_one_of_the_package(cli):
    assert cli("--version").out == f"pyclassify {version('pyclassify')}\n"


@pytest.mark.parametrize("command", TRAINING_COMMANDS)
def test_help_of_a_training_command_has_common_options_and_examples(command, monkeypatch, cli):
    monkeypatch.setenv("COLUMNS", "80")

    done = cli(f"{command} --max_epochs 3 --help")

    assert done.code == 0
    assert done.out.startswith(f"usage: pyclassify {command} ")
    assert len(done.out.splitlines()) <= 60
    examples = done.out.partition("\nexamples:\n")[2].splitlines()
    assert [line.split()[:2] for line in examples] == [["pyclassify", command]] * 2
    assert mentions(done.out, COMMANDS[command].summary, "--help-all", "--data.help")
    assert cli(f"help {command}").out == done.out


def test_help_of_train_describes_every_short_option():
    text = format_help(["train", "--help"])

    assert mentions(text, *(f"--{name}" for name in (*SHORT_OPTIONS, "config", "seeds")))


def test_common_options_and_defaults_are_those_of_the_real_parser(cli):
    for command in ("train", "predict", "prepare"):
        printed = yaml.safe_load(cli(f"{command} --print_config").out)
        real = dict(flatten_config(printed))
        for action in make_training_parser(command)._actions:
            name = action.option_strings[-1].removeprefix("--")
            if name in FLAGS or name.endswith(".help"):
                continue
            full = SHORT_OPTIONS.get(name, name)
            value = real[full]
            if full == "trainer.precision":  # null is Lightning's 32-true
                assert (value, action.default) == (None, "32-true")
            elif full == "data":
                assert value.endswith(f".{action.default}")
            elif action.default is not None:
                assert str(value) == str(yaml.safe_load(action.default)), full
            elif full != "data.data_path":  # the user's cache folder, which the text names
                assert value is None, full


def test_help_loads_neither_torch_nor_mlflow():
    code = (
        "import contextlib, io, json, sys\n"
        "from pyclassify.cli.main import main\n"
        "for argv in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        main(argv)\n"
        "print(sorted({'torch', 'mlflow', 'lightning'} & sys.modules.keys()))\n"
    )

    out = subprocess.check_output([sys.executable, "-c", code, json.dumps(LIGHT)], text=True)

    assert out == "[]\n"


def test_complete_help_has_all_options_without_markup_of_sphinx(cli):
    out = cli("train --help-all").out

    assert out.startswith("usage: pyclassify train ")
    assert mentions(out, "--trainer.limit_train_batches", "--resume.", "--register.alpha")
    assert not re.search(r":\w+:`|``|^\s*\.\. ", out, re.MULTILINE)
    assert mentions(" ".join(out.split()), "--max_epochs for --trainer.max_epochs")


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("fit --model.help", ["--model.num_classes", "--model.label_smoothing"]),
        ("test --data=SyntheticDataModule --data.help", ["--data.train_size"]),
    ],
)
def test_help_of_a_class_lists_its_arguments(line, facts, cli):
    done = cli(line)

    assert done.code == 0
    assert mentions(done.out, *facts)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("See :class:`~a.b.Trainer` and :paramref:`~a.Trainer.logger`.", "See Trainer and logger."),
        ("If ``True``, stop. Default: ``None``.", "If True, stop."),
        ("Pass :func:`torch.no_grad`, :class:`x`", "Pass no_grad, x"),
        (".. note:: Use it.", "Note: Use it."),
    ],
)
def test_clean_docstring_removes_the_markup_of_sphinx(text, cleaned):
    assert clean_docstring(text) == cleaned
