"""`mlflow run`, as people start and stop it: what each run leaves behind."""

import contextlib
import os
import re
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.support import forking_python, processes
from tests.support.images import grow
from tests.support.processes import ROOT, STDOUT
from tests.support.stores import experiment_id, list_runs
from tests.support.waiting import scale, wait_until

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"

SHAPES = {
    "config": "configs/synthetic.yaml",
    "data.train_size": 64,
    "data.val_size": 20,
    "data.test_size": 20,
    "trainer.logger.system_metrics": "false",
    "trainer.log_every_n_steps": 1,
}
SMALL = {
    **SHAPES,
    "model.model": "tests.support.networks.Linear",
    "batch_size": 8,
    "max_epochs": 2,
}
ENDLESS = {**SMALL, "model.model": "tests.support.networks.Paced", "max_epochs": 1_000_000}
PHOTOS = {
    "config": "configs/image-folder.yaml",
    "data_path": "photos",
    "model.model": "tests.support.networks.Linear",
}
REGISTER = {"devices": 2, "learning_rate": "1e-3"}
ALEXNET = {**SHAPES, **REGISTER, "max_epochs": 1, "trainer.limit_train_batches": 2}

# What is given by -P, who gets which signal once training is under way, and how the run ends.
RUNS = {
    "two devices": ({**SMALL, **REGISTER, "register": "shapes"}, None, FINISHED),
    "Ctrl-C": ({**ENDLESS, "devices": 2}, ("group", signal.SIGINT), KILLED),
    "broken image": ({**PHOTOS, "devices": 2}, None, FAILED),
    "one device": (SMALL, None, FINISHED),
    "one device again": (SMALL, None, FINISHED),
    "another seed": ({**SMALL, "seed": 1}, None, FINISHED),
    "SIGTERM to the training": (ENDLESS, ("training", signal.SIGTERM), KILLED),
    "SIGTERM to mlflow run": (ENDLESS, ("mlflow run", signal.SIGTERM), KILLED),
}
BATCH_SYSTEM = {"SIGTERM to all": ({**ENDLESS, "devices": 2}, ("group", signal.SIGTERM), KILLED)}
# Where it matters who is whose child, and in whose group: a fork is in neither (forking_python).
NOT_FORKED = ("SIGTERM to all", "Ctrl-C", "SIGTERM to mlflow run")


@pytest.fixture(scope="module")
def store(module_store):
    return module_store


@pytest.fixture(scope="module")
def ended(store, tmp_path_factory):
    """All of them, at once since each waits for its processes, after the last has ended."""
    return run_all(RUNS, tmp_path_factory.mktemp("runs"))


def run_all(runs, folder):
    splits = ("train", "val", "test")
    grow(folder / "photos", *(f"{split}/{name}" for split in splits for name in ("cats", "dogs")))
    # The second of the validation images is the second process's.
    (folder / "photos" / "val" / "cats" / "1.png").write_bytes(b"no image")
    started = {name: start(folder, name, given) for name, (given, *_) in runs.items()}
    try:
        to_stop = {name: stop for name, (_, stop, _) in runs.items() if stop is not None}
        wait_until(
            lambda: stop_those_under_way(started, to_stop) == {},
            "progress of those to be stopped",
            seconds=200,
        )
        for run in started.values():
            run.process.wait()
        # The other rank takes a moment more.
        wait_until(
            lambda: not any(processes_of(run.process.pid) for run in started.values()),
            "all processes have ended",
        )
    finally:
        for run in started.values():
            for pid in processes_of(run.process.pid):
                os.kill(pid, signal.SIGKILL)
    return started


def start(folder, name, given, fresh=False):
    given = {key: folder / value if key == "data_path" else value for key, value in given.items()}
    given["trainer.logger.save_dir"] = folder / name
    options = [word for key, value in given.items() for word in ("-P", f"{key}={value}")]
    command = ["-m", "mlflow", "run", str(ROOT), "--env-manager", "local"]
    python = sys.executable if fresh or name in NOT_FORKED else forking_python.program()
    environ = {**os.environ, "PACE": "0.05"}
    environ["PATH"] = os.pathsep.join([str(Path(python).parent), os.environ["PATH"]])
    del environ["MLFLOW_EXPERIMENT_NAME"]
    log = folder / f"{name}.log"
    with log.open("w") as output:
        begin = partial(processes.start, fresh=True) if fresh else forking_python.start
        process = begin(
            *(*command, "--experiment-name", "tested", "--run-name", name, *options),
            cwd=folder,
            env=environ,
            stdout=output,
            stderr=STDOUT,
        )
    return SimpleNamespace(process=process, log=log, name=name)


def stop_those_under_way(started, to_stop):
    """Send the signals that are due; what is left to stop comes back."""
    for name, (whom, signum) in list(to_stop.items()):
        run = started[name]
        log = run.log.read_text()
        assert run.process.poll() is None, f"{name} ended by itself:\n{log}"
        if re.search(r"^epoch \d+/\d+: ", log, re.MULTILINE):
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
    (run,) = store.search_runs([experiment_id(store)], f"attributes.run_name = '{name}'")
    return run


def test_each_start_is_one_run(ended, store):
    experiments = [each.experiment_id for each in store.search_experiments()]

    assert len(store.search_runs(experiments)) == len(list_runs(store)) == len(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_status_is_the_true_one(name, ended, store):
    status = RUNS[name][-1]

    # In a moment, since `mlflow run` calls it FAILED first (pyclassify/tracking/monitor.py).
    wait_until(lambda: run_of(name, store).info.status == status, f"the run is {status}")
    assert (ended[name].process.returncode == 0) == (status == FINISHED)


def test_failure_of_the_second_process_is_said_in_one_line(ended):
    log = ended["broken image"].log.read_text()

    assert len(re.findall(r"pyclassify \(rank 1\): error: .*1\.png does not decode", log)) == 1
    assert "Traceback" not in log
    assert "frame #0" not in log  # of a stack trace in C++


@pytest.mark.parametrize("name", ["Ctrl-C", "SIGTERM to the training"])
def test_stop_is_said_without_a_stack_trace(name, ended):
    signum = RUNS[name][1][1]

    assert f"pyclassify: error: stopped by {signum.name}" in ended[name].log.read_text()


def check_params(run):
    params = run.data.params
    assert params["learning_rate"] == "1e-3"
    assert params["model/learning_rate"] == "0.001"
    assert params["model/class"] == "pyclassify.module.Classifier"
    assert params["trainer/devices"] == params["devices"] == "2"


def check_registered(model, run, log, store):
    (version,) = store.search_model_versions(f"name = '{model}'")
    assert version.run_id == run.info.run_id
    assert re.search(f"^model +{model} version 1 is champion", log, re.M)


def test_run_holds_what_was_asked_and_what_it_came_to(ended, store):
    check_params(run_of("two devices", store))


def test_two_processes_register_one_version(ended, store):
    log = ended["two devices"].log.read_text()
    check_registered("shapes", run_of("two devices", store), log, store)


@pytest.mark.slow
def test_sigterm_to_all_of_two_processes_is_a_stop(store, tmp_path):
    (ended,) = run_all(BATCH_SYSTEM, tmp_path).values()

    run = partial(run_of, ended.name, store)
    wait_until(lambda: run().info.status == KILLED, "the run is KILLED")
    assert ended.process.returncode != 0
    assert "pyclassify: error: stopped by SIGTERM" in ended.log.read_text()


@pytest.mark.slow
def test_alexnet_in_two_processes_is_trained_and_registered_by_the_programs_themselves(
    store, tmp_path
):
    started = start(tmp_path, "alexnet", {**ALEXNET, "register": "alexnet"}, fresh=True)
    try:
        started.process.wait(scale(300))
    finally:
        processes.end(started.process)

    log, run = started.log.read_text(), run_of("alexnet", store)
    assert started.process.returncode == 0, log
    assert run.info.status == FINISHED
    check_params(run)
    check_registered("alexnet", run, log, store)


def test_metrics_are_of_every_step_and_epoch(ended, store):
    run_id = run_of("two devices", store).info.run_id
    steps = {
        key: [point.step for point in store.get_metric_history(run_id, key)]
        for key in run_of("two devices", store).data.metrics
    }

    # 64 images over two devices, 8 at a time, twice
    assert steps["train_loss"] == steps["train_accuracy"] == list(range(8))
    assert steps["val_loss"] == steps["val_accuracy"] == [3, 7]
    assert steps["test_loss"] == steps["test_accuracy"] == [0]


def test_best_weights_are_in_the_model_alone(ended, store):
    run = run_of("two devices", store)
    (output,) = run.outputs.model_outputs

    assert store.get_logged_model(output.model_id).status == "READY"
    assert store.list_artifacts(run.info.run_id, "weights") == []
    folder = ended["two devices"].log.parent
    full = [path.parent.name for path in folder.glob("two devices/**/*.ckpt")]
    assert full == ["resume"]


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
