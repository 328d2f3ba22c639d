"""Trainings that are killed, abort or leave by `os._exit`: their monitor says how they ended."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.support import forking_python, processes
from tests.support.faults import CODE
from tests.support.images import grow
from tests.support.processes import PIPE, ROOT, STDOUT
from tests.support.stores import experiment_id, list_runs, new_store
from tests.support.trainings import LINEAR, QUIET, SHAPES
from tests.support.waiting import wait_until

OPTIONS = "--trainer.logger.system_metrics=false --accelerator=cpu --resume.max_checkpoints=0"
TRAIN = f"train {SHAPES} {OPTIONS}"
FOLDER = f"train --data=ImageFolderDataModule --data_path=photos {LINEAR} {QUIET} {OPTIONS}"
FOLDER += " --batch_size=4 --max_epochs=1 --trainer.log_every_n_steps=1"
STEP = "pyclassify.module:Classifier.training_step"
# Where a training dies, and how; its exit code, and how the reason begins.
DEATHS = [
    (STEP, "kill", -signal.SIGKILL, "SIGKILL"),
    ("pyclassify.spool.spooled_run:SpooledRun.close", "abort", -signal.SIGABRT, "SIGABRT in "),
    ("pyclassify.cli.lightning_cli:write_summary", "_exit", 0, "exit code 0 "),
]
SLOW_DEATHS = [
    ("pyclassify.spool.records:create_from_server", "kill", -signal.SIGKILL, "SIGKILL"),
    ("pyclassify.spool.spooled_run:SpooledRun.__init__", "kill", -signal.SIGKILL, "SIGKILL"),
    ("pyclassify.module:Classifier.validation_step", "kill group", -signal.SIGKILL, "SIGKILL"),
    ("pyclassify.module:Classifier.test_step", "abort", -signal.SIGABRT, "SIGABRT in "),
    ("pyclassify.module:Classifier.test_step", "_exit", 0, "exit code 0 "),
    ("pyclassify.tracking.run:end_run", "abort", -signal.SIGABRT, "SIGABRT in "),
]


def start(command, place, kind, folder, **options):
    """Start a training that is disturbed at a place."""
    program = folder / "disturbed.py"
    program.write_text(CODE.format(place=place, kind=kind))
    return options.pop("starter", processes.start)(
        program,
        *command.split(),
        cwd=folder,
        stdout=PIPE,
        stderr=STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


def wait_for_status(store, run_id=None):
    """Wait until the only run, or a given one, has ended; the run."""

    def find():
        run = store.get_run(run_id) if run_id else next(iter(list_runs(store)), None)
        return run and "status_reason" in run.data.tags and run.info.end_time and run

    found = wait_until(find, "the run has a status and a reason")
    return store.get_run(found.info.run_id)  # as a whole: its tags were read after its status


def check_death(place, kind, code, reason, store, folder):
    """Check that a training that dies at a place leaves a run FAILED, with the reason."""
    process = start(TRAIN, place, kind, folder)
    process.wait()

    run = wait_for_status(store)
    out = process.read()  # the monitor writes to it a moment later
    assert process.returncode == code
    assert run.info.status == "FAILED"
    assert run.data.tags["status_reason"].startswith(reason), out
    assert ("most recent call first" in out) == (kind == "abort")


@pytest.mark.parametrize(("place", "kind", "code", "reason"), DEATHS)
def test_sudden_death_fails_the_run_and_names_the_cause(place, kind, code, reason, store, tmp_path):
    check_death(place, kind, code, reason, store, tmp_path)


@pytest.mark.slow
def test_sudden_death_at_other_places_fails_the_run(empty_store, tmp_path, subtests):
    for number, death in enumerate(SLOW_DEATHS):
        folder = tmp_path / str(number)
        with subtests.test(death[0]), new_store(empty_store, folder) as store:
            check_death(*death, store, folder)


def test_death_after_everything_was_logged_fails_the_run(store, tmp_path):
    process = start(TRAIN, "atexit", "abort", tmp_path)

    assert process.wait() == -signal.SIGABRT
    run = wait_for_status(store)
    assert run.info.status == "FAILED"
    assert run.data.tags["status_reason"].startswith("SIGABRT")
    assert "after the run was complete" in run.data.tags["status_reason"]
    assert "test_accuracy" in run.data.metrics


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("pyclassify.spool.upload_thread:UploadThread.remove_copies", 0),
        ("pyclassify.tracking.local_files:_clean", 0),
        ("atexit", -signal.SIGTERM),
    ],
)
def test_stop_after_the_run_is_finished_does_not_change_its_status(place, code, store, tmp_path):
    process = start(TRAIN, place, "stop", tmp_path)

    assert process.wait() == code, process.read()
    process.read()  # until the monitor has ended, too
    (run,) = list_runs(store)
    assert (run.info.status, run.data.tags.get("status_reason")) == ("FINISHED", None)


@pytest.mark.slow
def test_other_processes_of_a_training_do_not_hide_its_death(empty_store, tmp_path, subtests):
    splits = ("train", "val", "test")
    names = [f"{split}/{name}" for split in splits for name in "ab"]
    for options in ("--data.num_workers=2", "--devices=2"):
        folder = tmp_path / options
        starter = forking_python.start if "devices" in options else processes.start
        with subtests.test(options), new_store(empty_store, folder) as store:
            grow(folder / "photos", *names, count=8)
            process = start(f"{FOLDER} {options}", STEP, "kill", folder, starter=starter)

            assert process.wait() != 0
            assert wait_for_status(store).info.status == "FAILED"


@pytest.mark.slow
def test_death_of_the_second_process_fails_the_run(empty_store, tmp_path, subtests):
    for kind in ("kill", "abort", "bug"):
        folder = tmp_path / kind
        starter = forking_python.start
        with subtests.test(kind), new_store(empty_store, folder) as store:
            process = start(f"{TRAIN} --devices=2", f"{STEP}:1", kind, folder, starter=starter)

            assert process.wait() != 0
            assert wait_for_status(store).info.status == "FAILED"


@pytest.mark.slow
def test_kill_of_an_adopted_run_before_torch_is_loaded_fails_it(store, tmp_path, monkeypatch):
    run_id = store.create_run(experiment_id(store)).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    process = start(TRAIN, "pyclassify.cli.main:expand_options", "kill", tmp_path)

    assert process.wait() == -signal.SIGKILL
    run = wait_for_status(store, run_id)
    assert (run.info.status, run.data.tags["status_reason"][:7]) == ("FAILED", "SIGKILL")


@pytest.mark.slow
def test_hang_up_stops_a_training_unless_it_is_ignored(store, tmp_path):
    process = start(TRAIN, STEP, "hang up", tmp_path)

    assert process.wait() == 1
    run = wait_for_status(store)
    assert (run.info.status, run.data.tags["status_reason"]) == ("KILLED", "SIGHUP")
    ignoring = start(TRAIN, f"{STEP}:nohup", "hang up", tmp_path)
    assert ignoring.wait() == 0
    assert list_runs(store)[0].info.status == "FINISHED"


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, with a few hundred KB."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a disk")
    folder = tmp_path / "small"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=200k", "tmpfs", folder]
    if subprocess.run(["mount", *options], check=False).returncode:
        pytest.skip("this machine mounts no disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("full", ["save_dir", "TMPDIR"])
def test_small_disk_fails_the_run_in_one_line_that_names_it(
    full, small_disk, store, tmp_path, monkeypatch
):
    options = f"--trainer.logger.save_dir={small_disk}" if full == "save_dir" else ""
    if full == "TMPDIR":
        monkeypatch.setenv("TMPDIR", str(small_disk))
    train = TRAIN.replace(LINEAR, "--model.model=pyclassify.AlexNet")
    command = f"{train} --trainer.limit_train_batches=1 --trainer.limit_val_batches=1 {options}"
    process = start(f"{command} --trainer.limit_test_batches=1", "", "", tmp_path)
    out, _ = process.communicate()

    assert process.returncode == 1
    (run,) = list_runs(store)
    assert run.info.status == "FAILED"
    assert run.data.tags["status_reason"]
    assert "Traceback" not in out
    last = [line for line in out.splitlines() if line.startswith("pyclassify: error: ")][-1]
    assert str(small_disk) in last


@pytest.mark.parametrize(
    "obstacle", ["a file", "a file above", "a broken link", "a long name", "nothing to write in"]
)
def test_folder_that_cannot_be_written_is_named_before_a_run_is_made(
    obstacle, cli, tmp_path, monkeypatch
):
    folder = tmp_path / "runs"
    match obstacle:
        case "a file":
            folder.touch()
        case "a file above":
            folder.touch()
            folder = folder / "below"
        case "a broken link":
            folder.symlink_to(tmp_path / "gone" / "runs")
        case "a long name":
            folder = tmp_path / ("n" * 300)
        case "nothing to write in":
            folder = tmp_path.joinpath("/proc/1/runs")
    done = cli(f"{TRAIN} --trainer.logger.save_dir={folder}")

    assert (done.code, done.runs) == (1, [])
    assert done.err.splitlines()[-1].startswith(f"pyclassify: error: {folder}")
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_kill_of_what_trains_seeds_leaves_no_run_running(store, tmp_path):
    command = f"{TRAIN.replace('Linear', 'Paced')} --max_epochs=100000 --seeds=2"
    process = processes.start(
        "-m",
        "pyclassify",
        *command.split(),
        cwd=tmp_path,
        stdout=PIPE,
        stderr=STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        fresh=True,
    )
    with contextlib.closing(process.stdout):
        wait_until(
            lambda: any("train_loss" in run.data.metrics for run in list_runs(store)),
            "a seed trains",
        )
        process.kill()
        process.wait()
    wait_until(lambda: all(run.info.end_time for run in list_runs(store)), "both runs have ended")
    statuses = {
        "parent" if "pyclassify.seeds" in run.data.tags else "seed": run.info.status
        for run in list_runs(store)
    }
    assert statuses == {"parent": "FAILED", "seed": "KILLED"}


@pytest.mark.slow
def test_mlflow_run_does_not_hide_a_sudden_death(empty_store, tmp_path, subtests):
    for kind, reason in (("_exit", "exit code 0"), ("kill", "SIGKILL")):
        folder = tmp_path / kind
        with subtests.test(kind), new_store(empty_store, folder) as store:
            started = run_by_mlflow(CODE.format(place=STEP, kind=kind), folder)

            run = wait_for_status(store)
            wait_until(
                lambda store=store: list_runs(store)[0].info.status == "FAILED",
                f"FAILED: {started.stderr}",
            )
            assert run.data.tags["status_reason"].startswith(reason)


def run_by_mlflow(code, folder):
    """Run a program as an MLflow Project of its own, to its end."""
    (folder / "train.py").write_text(code)
    command = f"{sys.executable} train.py {TRAIN}"
    (folder / "MLproject").write_text(
        f"name: dies\nentry_points:\n  main:\n    command: {command!r}\n"
    )
    return processes.run(
        "-c",
        "import mlflow, sys\n"
        f"run = mlflow.projects.run({str(folder)!r}, env_manager='local', synchronous=True)\n",
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
