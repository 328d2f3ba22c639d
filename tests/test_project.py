"""Ten `mlflow run`s, as people start and stop them: what each leaves behind."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
import torch
import yaml

from tests.support.folders import grow
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[1]
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"

SHAPES = {
    "config": "configs/synthetic.yaml",
    "data.train_size": 256,
    "data.val_size": 70,
    "data.test_size": 70,
}
SMALL = {
    **SHAPES,
    "model.model": "torchvision.models.squeezenet1_1",
    "max_epochs": 2,
    "trainer.log_every_n_steps": 1,
}
ENDLESS = {**SMALL, "max_epochs": 1_000_000}
PHOTOS = {"config": "configs/image-folder.yaml", "data_path": "photos"}
ALEXNET = {**SHAPES, "max_epochs": 1, "learning_rate": "1e-3", "trainer.limit_train_batches": 2}

# What is given by -P, who gets which signal once training is under way, and how the run ends.
RUNS = {
    "alexnet": ({**ALEXNET, "devices": 2, "register": "alexnet"}, None, FINISHED),
    "two devices": ({**SMALL, "devices": 2}, None, FINISHED),
    "SIGTERM to all": ({**ENDLESS, "devices": 2}, ("group", signal.SIGTERM), KILLED),
    "Ctrl-C": ({**ENDLESS, "devices": 2}, ("group", signal.SIGINT), KILLED),
    "broken image": ({**PHOTOS, "devices": 2}, None, FAILED),
    "one device": (SMALL, None, FINISHED),
    "one device again": (SMALL, None, FINISHED),
    "another seed": ({**SMALL, "seed": 1}, None, FINISHED),
    "SIGTERM to the training": (ENDLESS, ("training", signal.SIGTERM), KILLED),
    "SIGTERM to mlflow run": (ENDLESS, ("mlflow run", signal.SIGTERM), KILLED),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A tracking store, made before the ten of them open it at once."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    client = mlflow.MlflowClient(uri)
    client.create_experiment("ten", str(tmp_path_factory.mktemp("artifacts")))
    return client


@pytest.fixture(scope="module")
def ended(store, tmp_path_factory):
    """All ten, at once since each spends its time on imports, after the last has ended."""
    folder = tmp_path_factory.mktemp("runs")
    grow(folder / "photos", "train/cats", "val/cats", "test/cats")
    # The second of four validation images is the second process's.
    (folder / "photos" / "val" / "cats" / "1.png").write_bytes(b"no image")
    started = {name: start(folder, name, given, store) for name, (given, *_) in RUNS.items()}
    try:
        to_stop = {name: stop for name, (_, stop, _) in RUNS.items() if stop is not None}
        wait_until(lambda: stop_those_under_way(started, to_stop) == {})
        wait_until(lambda: all(run.process.poll() is not None for run in started.values()))
        # The other rank takes a moment more.
        wait_until(lambda: not any(processes_of(run.process.pid) for run in started.values()))
    finally:
        for run in started.values():
            for pid in processes_of(run.process.pid):
                os.kill(pid, signal.SIGKILL)
    return started


def start(folder, name, given, store):
    given = {key: folder / value if key == "data_path" else value for key, value in given.items()}
    given["trainer.logger.save_dir"] = folder / name
    options = [word for key, value in given.items() for word in ("-P", f"{key}={value}")]
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local"]
    log = folder / f"{name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--experiment-name", "ten", "--run-name", name, *options],
            cwd=folder,
            env={
                **os.environ,
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
                "MLFLOW_TRACKING_URI": store.tracking_uri,
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return SimpleNamespace(process=process, log=log, name=name)


def stop_those_under_way(started, to_stop):
    """Send the signals that are due; what is left to stop comes back."""
    for name, (whom, signum) in list(to_stop.items()):
        run = started[name]
        log = run.log.read_text()
        assert run.process.poll() is None, f"{name} ended by itself:\n{log}"
        if re.search(r"Epoch \d+:.* [1-9]\d*/\d", log):
            send(run.process, whom, signum)
            del to_stop[name]
    return to_stop


def send(process, whom, signum):
    if whom == "group":
        os.killpg(process.pid, signum)
    elif whom == "mlflow run":
        process.send_signal(signum)
    else:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        os.kill(int(children.split()[0]), signum)


def processes_of(session):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(int(pid)) == session:
                found.append(int(pid))
    return found


def run_of(name, store):
    experiment = store.get_experiment_by_name("ten").experiment_id
    (run,) = store.search_runs([experiment], f"attributes.run_name = '{name}'")
    return run


def test_ten_starts_are_ten_runs(ended, store):
    experiments = [each.experiment_id for each in store.search_experiments()]

    assert len(store.search_runs(experiments)) == len(RUNS) == 10


@pytest.mark.parametrize("name", RUNS)
def test_status_is_the_true_one(name, ended, store):
    status = RUNS[name][-1]

    # In a moment, since `mlflow run` calls it FAILED first (pyclassify/tracking/insist.py).
    wait_until(lambda: run_of(name, store).info.status == status, seconds=30)
    assert (ended[name].process.returncode == 0) == (status == FINISHED)


def test_failure_of_the_second_process_is_said_in_one_line(ended):
    log = ended["broken image"].log.read_text()

    assert len(re.findall(r"pyclassify \(rank 1\): error: .*1\.png does not decode", log)) == 1
    assert "Traceback" not in log


@pytest.mark.parametrize("name", ["SIGTERM to all", "Ctrl-C", "SIGTERM to the training"])
def test_stop_is_said_without_a_stack_trace(name, ended):
    signum = RUNS[name][1][1]

    assert f"pyclassify: error: stopped by {signum.name}" in ended[name].log.read_text()


def test_run_holds_what_was_asked_and_what_it_came_to(ended, store):
    params = run_of("alexnet", store).data.params

    assert params["learning_rate"] == "1e-3"
    assert params["model/learning_rate"] == "0.001"
    assert params["model/class"] == "pyclassify.module.Classifier"
    assert params["trainer/devices"] == params["devices"] == "2"


def test_two_processes_register_one_version(ended, store):
    (version,) = store.search_model_versions("name = 'alexnet'")

    assert version.run_id == run_of("alexnet", store).info.run_id
    assert re.search(
        "^model +alexnet version 1 is champion", ended["alexnet"].log.read_text(), re.M
    )


def test_metrics_are_of_every_step_and_epoch(ended, store):
    run_id = run_of("two devices", store).info.run_id
    steps = {
        key: [point.step for point in store.get_metric_history(run_id, key)]
        for key in run_of("two devices", store).data.metrics
    }

    # 256 images over two devices, 32 at a time, twice
    assert steps["train_loss"] == steps["train_accuracy"] == list(range(8))
    assert steps["val_loss"] == steps["val_accuracy"] == [3, 7]
    assert steps["test_loss"] == steps["test_accuracy"] == [0]


def test_best_weights_are_kept_once_and_alone(ended, store, tmp_path):
    run_id = run_of("two devices", store).info.run_id
    (weights,) = store.list_artifacts(run_id, "weights")
    kept = torch.load(store.download_artifacts(run_id, weights.path, tmp_path), weights_only=True)

    assert "optimizer_states" not in kept
    full = list(ended["two devices"].log.parent.glob("two devices/*/*/checkpoints/*.ckpt"))
    assert [path.name for path in full] == ["best.ckpt"]
    assert "optimizer_states" in torch.load(full[0], weights_only=True)


def test_resolved_configuration_is_kept(ended, store, tmp_path):
    run_id = run_of("another seed", store).info.run_id
    text = Path(store.download_artifacts(run_id, "config.yaml", tmp_path)).read_text()

    assert yaml.safe_load(text)["seed_everything"] == 1


def test_same_seed_gives_the_same_losses_and_another_seed_others(ended, store):
    losses = {
        name: [
            point.value
            for point in store.get_metric_history(run_of(name, store).info.run_id, "train_loss")
        ]
        for name in ("one device", "one device again", "another seed")
    }

    assert len(losses["one device"]) == 16
    assert losses["one device"] == losses["one device again"]
    assert losses["one device"] != losses["another seed"]
