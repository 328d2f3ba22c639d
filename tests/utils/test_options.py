"""Command lines and configurations, flattened to settings."""

from pyclassify.utils.options import (
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
