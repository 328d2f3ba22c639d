"""Whether two runs are the same, and what they are said to differ in."""

import json
import shutil

import mlflow
import pytest
import yaml

from pyclassify.tracking import likeness

LOSSES = {"train_loss": [0.1 + 0.2, 0.25, 0.125]}
UNLIKE = (
    "nothing else differs that a capsule knows of: not the code, the configuration, the versions, "
    "the machine or the data"
)


@pytest.fixture
def log(empty_store, tmp_path):
    """Log a run with these metrics, and give its id."""
    client = mlflow.MlflowClient(f"sqlite:///{shutil.copy(empty_store, tmp_path)}")
    experiment = client.get_experiment_by_name("tested").experiment_id

    def make(metrics):
        run_id = client.create_run(experiment).info.run_id
        for name, values in metrics.items():
            for step, value in enumerate(values):
                client.log_metric(run_id, name, value, step=step)
        return run_id

    make.client = client
    return make


@pytest.mark.parametrize(
    ("then", "now", "verdict"),
    [
        (LOSSES, LOSSES, "the same as {id} to the last bit: train_loss at all 3 steps"),
        (
            LOSSES,
            {"train_loss": [0.1 + 0.2, 0.25]},
            "the same as {id} to the last bit: train_loss at 2 of 3 steps",
        ),
        (
            LOSSES,
            {"train_loss": [0.3, 0.25, 0.375]},
            "not the same as {id}: train_loss differs at 2 of 3 steps, first at step 0 "
            "(0.30000000000000004 then, 0.3 now), by 0.25 at most",
        ),
        (
            {"train_loss": [float("nan")]},
            {"train_loss": [float("nan")]},
            "the same as {id} to the last bit: train_loss at all 1 steps",
        ),
        (
            {"test_loss": [0.5], "test_accuracy": [0.75], "seconds": [3]},
            {"test_loss": [0.5], "test_accuracy": [0.75], "seconds": [4]},
            "the same as {id} to the last bit: test_accuracy and test_loss at all 2 steps",
        ),
        ({"x": [1]}, {"x": [1]}, "{id} and {other} can't be compared: they have no loss in common"),
    ],
)
def test_losses_are_compared_to_the_last_bit(then, now, verdict, log):
    run_id, other = log(then), log(now)

    same, said = likeness.compare_metrics(log.client, run_id, other)

    assert said == verdict.format(id=run_id, other=other)
    assert same == said.startswith("the same")


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
    ("changed", "said"),
    [
        ({}, []),
        (
            {"packages": "torch==2.12.0\nnumpy==2.0\n"},
            ["versions: torch 2.11.0 then, 2.12.0 now, numpy none then, 2.0 now"],
        ),
        (
            {"facts": {"hardware": {"cpu": "x", "threads": 4, "memory_gb": 9}}},
            ["hardware: threads 2 then, 4 now"],
        ),
        ({"facts": {"python": "3.12.0"}}, ["python: version 3.11.2 then, 3.12.0 now"]),
        (
            {"facts": {"data": {"sets": {"train": {"images": 1, "digest": "def"}}}}},
            ["data: train abc then, def now"],
        ),
        ({"facts": {"data": None}}, ["data: train abc then, none now"]),
        ({"facts": {"package": "2"}}, ["code: digest 1 then, 2 now"]),
        (
            {"config": {"model": {"init_args": {"learning_rate": 0.2}}}},
            ["settings: model.learning_rate 0.1 then, 0.2 now"],
        ),
        ({"config": {"trainer": {"logger": {"init_args": {"save_dir": "/x"}}}}}, []),
        ({"config": {"data": {"init_args": {"data_path": "/x"}}}}, []),
        (
            {
                "facts": {"weights": {"sha256": "7be5"}},
                "config": {"model": {"init_args": {"learning_rate": 0.1, "weights": "/x"}}},
            },
            ["weights: sha256 none then, 7be5 now"],
        ),
    ],
)
def test_capsules_are_compared_by_what_decides_a_loss(changed, said, tmp_path):
    then, now = write_capsule(tmp_path / "then"), write_capsule(tmp_path / "now", **changed)

    assert [*likeness.compare_capsules(then, now)] == said


def test_files_that_the_capsule_lacks_are_named(tmp_path):
    facts = {"git": {"left_out": {"a.bin": "is over the limit"}}}
    then, now = write_capsule(tmp_path / "then", facts), write_capsule(tmp_path / "now")

    assert [*likeness.compare_capsules(then, now)] == ["files: the capsule lacks a.bin"]


@pytest.mark.parametrize(
    ("packages", "overridden", "rest"),
    [
        ("torch==2.11.0\n", "", [UNLIKE]),
        ("torch==2.11.0\n", "--seed 1", ["overridden: --seed 1"]),
        ("torch==3.0\n", "", ["may be why: versions: torch 2.11.0 then, 3.0 now"]),
    ],
)
def test_runs_that_differ_are_told_with_what_may_be_why(packages, overridden, rest, log, tmp_path):
    runs = log(LOSSES), log({"train_loss": [0.5]})
    then = write_capsule(tmp_path / "then")
    now = write_capsule(tmp_path / "now", packages=packages)

    lines = likeness.tell(log.client, *runs, then, now, overridden)

    assert lines[0].startswith("not the same as ")
    assert lines[1:] == rest


def test_override_of_a_run_that_is_the_same_so_far_is_named(log, tmp_path):
    runs = log(LOSSES), log({"train_loss": LOSSES["train_loss"][:2]})
    folders = [write_capsule(tmp_path / name) for name in ("then", "now")]

    lines = likeness.tell(log.client, *runs, *folders, "--max_epochs 1")

    assert lines[0].endswith("train_loss at 2 of 3 steps")
    assert lines[1:] == ["overridden: --max_epochs 1"]
