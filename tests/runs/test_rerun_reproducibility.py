"""Whether two runs are the same, and what they are said to differ in."""

import json

import pytest
import yaml

from pyclassify.runs import rerun
from tests.support.phrases import mentions
from tests.support.stores import experiment_id

LOSSES = {"train_loss": [0.1 + 0.2, 0.25, 0.125]}


@pytest.fixture
def log(module_store):
    """Log a run with these metrics, and give its id."""
    client = module_store
    experiment = experiment_id(client)

    def make(metrics):
        run_id = client.create_run(experiment).info.run_id
        for name, values in metrics.items():
            for step, value in enumerate(values):
                client.log_metric(run_id, name, value, step=step)
        return run_id

    make.client = client
    return make


@pytest.mark.parametrize(
    ("then", "now", "is_same", "facts"),
    [
        # the forms of these messages
        (LOSSES, LOSSES, True, ["the same as {id} to the last bit: train_loss at all 3 steps"]),
        (
            LOSSES,
            {"train_loss": [0.3, 0.25, 0.375]},
            False,
            [
                "not the same as {id}: train_loss differs at 2 of 3 steps, first at step 0 "
                "(0.30000000000000004 then, 0.3 now), by 0.25 at most"
            ],
        ),
        # of the same kinds
        (
            LOSSES,
            {"train_loss": [0.1 + 0.2, 0.25]},
            True,
            ["the same as {id}", "train_loss at 2 of 3 steps"],
        ),
        (
            {"train_loss": [float("nan")]},
            {"train_loss": [float("nan")]},
            True,
            ["the same as {id}", "train_loss at all 1 steps"],
        ),
        (
            {"test_loss": [0.5], "test_accuracy": [0.75], "seconds": [3]},
            {"test_loss": [0.5], "test_accuracy": [0.75], "seconds": [4]},
            True,
            ["the same as {id}", "test_accuracy and test_loss at all 2 steps"],
        ),
        ({"x": [1]}, {"x": [1]}, False, ["{id}", "{other}", "no loss"]),
    ],
)
def test_losses_are_compared_to_the_last_bit(then, now, is_same, facts, log):
    run_id, other = log(then), log(now)

    same, said = rerun.compare_metrics(log.client, run_id, other)

    assert mentions(said, *(each.format(id=run_id, other=other) for each in facts))
    assert same == is_same


def write_capsule(folder, facts=(), config=(), packages="torch==2.11.0\n"):
    folder.mkdir()
    hardware = {"cpu": "x", "threads": 2, "memory_gb": 8}
    sets = {"train": {"images": 1, "digest": "abc"}}
    whole = {"git": {"left_out": {}}, "package": "1", "python": "3.11.2", "hardware": hardware}
    whole |= {"data": {"sets": sets}, **dict(facts)}
    (folder / "capsule.json").write_text(json.dumps(whole))
    settings = {"model": {"init_args": {"learning_rate": 0.1}}, **dict(config)}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "packages.txt").write_text(packages)
    return folder


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({}, None),
        (
            {"packages": "torch==2.12.0\nnumpy==2.0\n"},
            # the form of this message
            ["versions: torch 2.11.0 then, 2.12.0 now, numpy none then, 2.0 now"],
        ),
        (
            {"facts": {"hardware": {"cpu": "x", "threads": 4, "memory_gb": 9}}},
            ["hardware", "threads 2 ", " 4 "],
        ),
        ({"facts": {"python": "3.12.0"}}, ["python", "3.11.2", "3.12.0"]),
        (
            {"facts": {"data": {"sets": {"train": {"images": 1, "digest": "def"}}}}},
            ["data", "train", "abc", "def"],
        ),
        ({"facts": {"data": None}}, ["data", "train", "abc", "none"]),
        ({"facts": {"package": "2"}}, ["code", " 1 ", " 2 "]),
        (
            {"config": {"model": {"init_args": {"learning_rate": 0.2}}}},
            ["settings", "model.learning_rate", "0.1", "0.2"],
        ),
        ({"config": {"trainer": {"logger": {"init_args": {"save_dir": "/x"}}}}}, None),
        ({"config": {"data": {"init_args": {"data_path": "/x"}}}}, None),
        (
            {
                "facts": {"weights": {"sha256": "7be5"}},
                "config": {"model": {"init_args": {"learning_rate": 0.1, "weights": "/x"}}},
            },
            ["weights", "none", "7be5"],
        ),
    ],
)
def test_capsules_are_compared_by_what_decides_a_loss(changed, facts, tmp_path):
    then, now = write_capsule(tmp_path / "then"), write_capsule(tmp_path / "now", **changed)

    lines = [*rerun.compare_capsules(then, now)]

    assert len(lines) == (facts is not None)
    assert facts is None or mentions(lines[0], *facts)
    assert "memory_gb" not in str(lines)


def test_files_that_the_capsule_lacks_are_named(tmp_path):
    facts = {"git": {"left_out": {"a.bin": "is over the limit"}}}
    then, now = write_capsule(tmp_path / "then", facts), write_capsule(tmp_path / "now")

    (line,) = rerun.compare_capsules(then, now)
    assert mentions(line, "files", "lacks a.bin")


@pytest.mark.parametrize(
    ("packages", "overridden", "facts"),
    [
        ("torch==2.11.0\n", "", ["nothing", "code", "configuration", "versions", "data"]),
        ("torch==2.11.0\n", "--seed 1", ["overridden: --seed 1"]),
        ("torch==3.0\n", "", ["versions: torch 2.11.0 then, 3.0 now"]),
    ],
)
def test_runs_that_differ_are_told_with_what_may_be_why(packages, overridden, facts, log, tmp_path):
    runs = log(LOSSES), log({"train_loss": [0.5]})
    then = write_capsule(tmp_path / "then")
    now = write_capsule(tmp_path / "now", packages=packages)

    first, line = rerun.format_reproducibility_check(log.client, *runs, then, now, overridden)

    assert first.startswith("not the same as ")
    assert mentions(line, *facts)


def test_override_of_a_run_that_is_the_same_so_far_is_named(log, tmp_path):
    runs = log(LOSSES), log({"train_loss": LOSSES["train_loss"][:2]})
    folders = [write_capsule(tmp_path / name) for name in ("then", "now")]

    lines = rerun.format_reproducibility_check(log.client, *runs, *folders, "--max_epochs 1")

    assert lines[0].endswith("train_loss at 2 of 3 steps")
    assert lines[1:] == ["overridden: --max_epochs 1"]
