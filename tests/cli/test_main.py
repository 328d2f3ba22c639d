"""Whole command lines, one run each: what is trained, on what data, and the summary at the end."""

import re
import shlex
import shutil
import tomllib
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from unittest.mock import Mock

import mlflow
import pytest
import torch
import yaml

from pyclassify.cli.main import _format_error, main
from pyclassify.cli.summary import write_summary
from pyclassify.tracking.description import format_interval
from pyclassify.tracking.logger import RunLogger
from pyclassify.tracking.ui import (
    BEST_VIEW,
    RECIPE_VIEW,
    format_fast_ui_command,
    format_ui_command,
)
from tests.support import processes
from tests.support.phrases import mentions
from tests.support.stores import list_runs, using
from tests.support.trainings import ERROR, LINEAR, QUIET, SHAPES, TINY, train_beside

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(module_store):
    """What was said by a training, which is one run, and that run."""
    before = len(list_runs(module_store))
    options = f"{SHAPES} --log_model=true --seed 3 --trainer.logger.system_metrics=false"
    done = train_beside(module_store, options)
    assert len(list_runs(module_store)) == before + 1
    return done


def find_checkpoint(run):
    """The checkpoint of a run from which it can be trained further, after its only epoch."""
    folder = Path(mlflow.get_tracking_uri().removeprefix("sqlite:///")).parent / "runs"
    (path,) = folder.glob(f"*/{run.info.run_id}/checkpoints/resume/*.ckpt")
    return path


@pytest.fixture
def store(module_store):
    """All tests of this module share a store, for the sake of the run that was trained."""
    with using(module_store):
        yield module_store


def test_train_fits_then_tests_the_best_checkpoint_as_one_run(trained):
    run = trained.run
    assert run.info.status == "FINISHED"
    assert {"train_loss", "val_accuracy", "test_accuracy"} <= run.data.metrics.keys()


def test_summary_has_results_links_and_next_commands(trained):
    run = trained.run
    run_id, experiment_id = run.info.run_id, run.info.experiment_id
    (model,) = mlflow.MlflowClient().search_logged_models([experiment_id])
    page = f"http://127.0.0.1:5000/#/experiments/{experiment_id}/runs"
    training = "workflowType=machine_learning"

    lines = trained.out[trained.out.rindex("\ntest_accuracy  ") :].splitlines()

    accuracy = run.data.metrics["test_accuracy"]
    interval = format_interval(round(20 * accuracy), 20)
    expected = [  # the form of this message
        "",
        f"test_accuracy  {accuracy:.4f} ({interval})",
        f"model          models:/{model.model_id}",
        f"run            {run_id}",
        "",
        f"look           {format_fast_ui_command('sqlite:///mlflow.db')}",
        f"this run       {page}/{run_id}?{training}",
        f"all runs       {page}?viewStateShareKey={BEST_VIEW.key}&{training}",
        f"recipes        {page}?viewStateShareKey={RECIPE_VIEW.key}&{training}",
        f"compare        pyclassify compare {run_id[:8]} OTHER_RUN_ID",
        f"register       pyclassify register {run_id[:8]} NAME",
    ]
    assert lines == expected


def test_summary_of_fit_has_the_command_that_tests_it(cli):
    done = cli(f"fit {SHAPES} --max_epochs 1")

    line = done.out.splitlines()[-1]
    assert line.startswith("test           pyclassify test --data=SyntheticDataModule ")
    command = shlex.split(line.removeprefix("test           pyclassify "))
    assert cli(shlex.join(command)).code == 0


def test_summary_of_an_offline_run_has_the_command_that_uploads_it(capsys):
    run = SimpleNamespace(server_id="a" * 32, folder=Path("/spool/a b"), is_offline=lambda: True)
    logger = Mock(RunLogger, run_id="a" * 32, spooled_run=run)
    trainer = SimpleNamespace(checkpoint_callback=None, callbacks=[], loggers=[logger])

    write_summary(trainer, ["train"], "test_accuracy", None)

    assert capsys.readouterr().out == (
        f"\nrun            {'a' * 32}\n\nsync           pyclassify sync '/spool/a b'\n"
    )


def test_training_in_a_pipe_has_a_line_an_epoch_and_no_bar(cli):
    options = "--trainer.enable_progress_bar=true --trainer.enable_model_summary=true"

    done = cli(f"train {SHAPES} {options} --max_epochs 2")

    lines = done.out[: done.out.index("\n\n")].splitlines()
    assert [line.partition(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2", "test"]
    assert mentions(lines[-1], "test_loss", "test_accuracy", "test_ece")
    assert "\r" not in done.out


@pytest.mark.parametrize(
    ("uri", "next_step"),
    [
        ("sqlite:///mlflow.db", "mlflow ui"),
        ("sqlite:///other.db", "mlflow ui --backend-store-uri sqlite:///other.db"),
        ("sqlite:////a b/mlflow.db", "mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db'"),
        ("file:./mlruns", "mlflow ui --backend-store-uri file:./mlruns"),
        ("https://runs.example.org/team", "open https://runs.example.org/team"),
        ("http://me:secret@runs.example.org:5000", "open http://runs.example.org:5000"),
        ("mysql://me:secret@db/runs", 'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"'),
    ],
)
def test_next_step_shows_the_runs_where_they_are_and_no_password(uri, next_step):
    assert format_ui_command(uri) == next_step


@pytest.mark.parametrize("command", ["validate", "test"])
def test_score_of_a_run_is_the_one_that_it_reported(command, trained, cli, store):
    run, before = trained.run, len(list_runs(store))
    metric = {"validate": "val_accuracy", "test": "test_accuracy"}[command]

    scored = cli(f"{command} {SHAPES} --ckpt_path {run.info.run_id}")

    assert scored.code == 0
    assert len(scored.runs) == before + 1
    assert scored.runs[0].data.metrics[metric] == run.data.metrics[metric]
    assert f"{metric:14} {run.data.metrics[metric]:.4f}" in scored.out


def test_score_by_mlflow_run_keeps_the_id_that_it_was_given(trained, cli, monkeypatch):
    run_id = trained.run.info.run_id
    client = mlflow.MlflowClient()
    made = client.create_run(trained.run.info.experiment_id)
    client.log_param(made.info.run_id, "ckpt_path", run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)

    scored = cli(f"test {SHAPES} --ckpt_path {run_id}")

    assert scored.code == 0, scored.err
    config = client.download_artifacts(made.info.run_id, "config.yaml")
    assert yaml.safe_load(Path(config).read_text())["ckpt_path"] == run_id
    assert client.get_run(made.info.run_id).info.status == "FINISHED"


def test_score_of_a_run_in_another_store_is_found(cli, tmp_path, empty_store):
    other = f"--trainer.logger.tracking_uri sqlite:///{tmp_path}/other.db"
    shutil.copy(empty_store, tmp_path / "other.db")
    run_id = re.search(r"^run +(\S+)", cli(f"fit {SHAPES} {other}").out, re.MULTILINE)[1]

    assert cli(f"test {SHAPES} {other} --ckpt_path {run_id}").code == 0


def test_score_of_a_file_is_that_of_its_run(trained, cli):
    path = find_checkpoint(trained.run)

    scored = cli(f"validate {SHAPES} --ckpt_path {path}")

    best = trained.run.data.metrics["val_accuracy"]
    assert scored.runs[0].data.metrics["val_accuracy"] == best


def test_configuration_that_a_run_keeps_makes_it_again(trained, cli):
    first = trained.run
    config = mlflow.artifacts.download_artifacts(
        run_id=first.info.run_id, artifact_path="config.yaml"
    )

    second = cli(f"train --config {config}").runs[0]

    assert second.data.params == first.data.params
    timed = {"epoch_seconds", "images_per_second", "wall_seconds"}
    found = [
        {k: v for k, v in run.data.metrics.items() if k not in timed} for run in (first, second)
    ]
    assert found[0] == found[1]
    assert timed < second.data.metrics.keys()


def test_fit_goes_on_from_a_checkpoint(trained, cli):
    path = find_checkpoint(trained.run)

    second = cli(f"fit {SHAPES} --max_epochs 2 --ckpt_path {path}")

    history = mlflow.MlflowClient().get_metric_history(second.runs[0].info.run_id, "val_loss")
    assert [point.step for point in history] == [9]  # five steps an epoch


def test_predict_hands_probabilities_to_a_callback(trained, cli):
    run_id = trained.run.info.run_id

    cli(f"predict {SHAPES} --ckpt_path {run_id} --trainer.callbacks+=tests.support.networks.Writer")

    predictions = torch.load("predictions.pt")
    assert predictions.shape == (20, 10)
    torch.testing.assert_close(predictions.sum(dim=1), torch.ones(20))


def test_prepare_trains_nothing_and_asks_for_no_devices(cli, store):
    before = len(list_runs(store))

    done = cli(f"prepare {SHAPES} --devices 64 --accelerator gpu --num_nodes 2")

    assert done.code == 0
    assert len(done.runs) == before
    assert done.out == (  # the form of this message
        "\nimages         train 40, val 20, test 20; 10 classes\n"
        "\ntrain          pyclassify train --data=SyntheticDataModule "
        f"{TINY} {LINEAR} {QUIET} --devices 64 --accelerator gpu --num_nodes 2\n"
    )


def test_module_runs_as_a_command():
    done = processes.run("-m", "pyclassify", "trian", cwd=ROOT)

    assert done.returncode == 2
    assert done.stderr.startswith(ERROR)
    assert mentions(done.stderr, "'trian'", "train")


def test_console_script_is_the_same_function():
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

    assert resolve_name(script["pyclassify"]) is main


def test_lost_data_worker_is_one_line_with_its_signal():
    cause = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    error = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    error.__cause__ = cause

    message = _format_error(error)

    assert mentions(message, "pid 7", "signal: Killed", "--data.num_workers")
    assert _format_error(RuntimeError("a bug")) is None
