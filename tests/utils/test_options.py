"""Command lines and configurations, flattened to settings."""

import pytest

from pyclassify.utils.options import (
    CommandParser,
    UsageError,
    find_logger_settings,
    flatten_config,
    format_options,
    split_options,
    walk_config,
)

CONFIG = {
    "model": {"class_path": "Net", "init_args": {"width": 2, "inner": {"class_path": "In"}}},
    "trainer": {"logger": {"init_args": {"save_dir": "runs"}}, "max_epochs": None, "devices": [0]},
}


def test_flatten_config_names_a_class_by_its_option_and_its_arguments_below():
    assert dict(flatten_config(CONFIG)) == {
        "model": "Net",
        "model.width": 2,
        "model.inner": "In",
        "trainer.logger.save_dir": "runs",
        "trainer.max_epochs": None,
        "trainer.devices": [0],
    }


def test_format_options_leaves_out_the_logger_and_unset_values():
    assert dict(format_options(CONFIG)) == {
        "model": "Net",
        "model.width": "2",
        "model.inner": "In",
        "trainer.devices": "[0]",
    }


def test_walk_config_yields_the_keys_of_classes_too():
    assert (("model", "init_args", "inner", "class_path"), "In") in list(walk_config(CONFIG))


def test_split_options_groups_each_option_with_its_value():
    argv = ["fit", "--seed", "3", "--a=b", "--print_config", "c", "-c", "file"]
    groups = [["fit"], ["--seed", "3"], ["--a=b"], ["--print_config"], ["c"], ["-c", "file"]]
    assert list(split_options(argv)) == groups


def test_find_logger_settings_alone_and_among_others():
    ours = {"class_path": "pyclassify.tracking.logger.RunLogger", "init_args": {"run_name": "a"}}
    others = {"class_path": "TensorBoardLogger", "init_args": {"name": "b"}}

    assert find_logger_settings({"trainer.logger": [others, ours]}) == {"run_name": "a"}
    assert find_logger_settings(
        {"trainer.logger": "RunLogger", "trainer.logger.run_name": "c"}
    ) == {"run_name": "c"}
    assert find_logger_settings({}) == {}


@pytest.fixture
def parser():
    parser = CommandParser("tool", description="Do it.", examples=["tool status 1", "tool -h"])
    parser.add_argument("--last", type=int, default=5, help="the number of runs")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    status = commands.add_parser("status", help="show a run", examples=["tool status 2"])
    status.add_argument("run", type=int)
    status.add_argument("--follow", action="store_true", help="wait for its end")
    return parser


def test_help_of_a_command_ends_with_its_examples_and_shows_defaults(parser):
    text = parser.format_help()

    assert text.endswith("examples:\n  tool status 1\n  tool -h\n")
    assert "The number of runs (default: 5)." in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("stauts 1", "unknown command 'stauts'. Did you mean 'status'? See `tool --help`"),
        ("status 1 --folow", "unknown option '--folow'. Did you mean '--follow'? See `tool"),
        ("status 1 --xyz=3", "unknown option '--xyz'; see `tool"),
        ("status 1 2", "unexpected argument '2'; see `tool"),
        ("status x", "argument run: invalid int value: 'x'; see `tool status --help`"),
        ("--last x status 1", "argument --last: invalid int value: 'x'; see `tool --help`"),
        ("status", "the following arguments are required: run; see `tool status --help`"),
        ("status 1 --follow=2", "argument --follow: ignored explicit argument '2'; see `tool"),
    ],
)
def test_parse_args_of_an_invalid_command_line_names_the_remedy(parser, words, message):
    with pytest.raises(UsageError) as error:
        parser.parse_args(words.split())

    assert str(error.value).startswith(message)


def test_parse_args_of_an_invalid_choice_lists_the_choices():
    parser = CommandParser("tool")
    parser.add_argument("recipe", choices=["a.yaml", "b.yaml"])
    parser.add_argument("--only", choices=["full disk", "scancel"])

    with pytest.raises(
        UsageError, match=r"^invalid recipe: 'c' \(expected a.yaml or b.yaml\); see"
    ):
        parser.parse_args(["c"])
    with pytest.raises(
        UsageError, match=r"^invalid --only: 'x' \(expected full disk or scancel\);"
    ):
        parser.parse_args(["a.yaml", "--only", "x"])
