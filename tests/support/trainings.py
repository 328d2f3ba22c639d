"""Trainings by command line, for the tests that read what they leave."""

import contextlib
import io
import json
import os
import re
import signal
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import mlflow
from PIL import Image

from pyclassify.cli.main import main
from pyclassify.data import synthetic
from tests.support import forking_python
from tests.support.processes import PIPE, ROOT, STDOUT
from tests.support.stores import list_runs, new_store, using
from tests.support.waiting import wait_until

# Without what most tests do not read: the progress, and a model, whose export takes seconds.
QUIET = "--trainer.enable_progress_bar=false --trainer.enable_model_summary=false --log_model=false"
TINY = "--data.train_size=40 --data.val_size=20 --data.test_size=20 --max_epochs=1"
TINY += " --batch_size=8 --trainer.log_every_n_steps=1"
LINEAR = "--model.model=tests.support.networks.Linear"
SHAPES = f"--data=SyntheticDataModule {TINY} {LINEAR} {QUIET}"
ERROR = "pyclassify: error: "


def train_beside(store, options):
    """Train in the folder of a store, for tests that only read what came out.

    It returns what was written to stdout, and the run.
    """
    folder = Path(store.tracking_uri.removeprefix("sqlite:///")).parent
    out = io.StringIO()
    with using(store), contextlib.chdir(folder), contextlib.redirect_stdout(out):
        assert main(["train", *options.split()]) == 0
    return SimpleNamespace(out=out.getvalue(), run=list_runs(store)[0])


def refusal(done, code=1):
    """The error message of a command: one line, which is all that stderr has.

    The exit code is 1 for a failure, and 2 for an invalid command line.
    """
    assert (done.code, done.err.count("\n")) == (code, 1), done.err
    assert done.err.startswith(ERROR)
    return done.err.removeprefix(ERROR)


def last_error(done):
    """What a command line ended with, after whatever else was written to stderr."""
    line = done.err.splitlines()[-1]
    assert line.startswith(ERROR)
    return line.removeprefix(ERROR)


@contextmanager
def trained(empty_store, folder):
    """Train in a folder, which stays the current one, with a store of its own.

    It has the run's id, its predictions by file, and the model `shapes@champion`, version 1.
    """
    with new_store(empty_store, folder) as client, contextlib.chdir(folder):
        assert main(f"train {SHAPES} --register=shapes".split()) == 0
        run_id = client.get_model_version("shapes", "1").run_id
        yield SimpleNamespace(run_id=run_id, expected=_read_answers(run_id))


def _read_answers(run_id):
    path = mlflow.artifacts.download_artifacts(None, run_id, "predictions.json", ".")
    table = json.loads(Path(path).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    return {name_file(row["index"]): (row["predicted"], row["probability"]) for row in rows}


def name_file(index):
    """A place for each image: some in folders that no class is called by."""
    return ("train/zebra/{:02}.png", "b/deep/er/{:02}.PNG", "{:02}.png")[index % 3].format(index)


def write_images(folder):
    """Write the test images of SHAPES as files, and a file that is none."""
    images, _ = synthetic.generate_images(20, seed=2)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        path = folder / name_file(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "notes.txt").write_text("no image")
    return folder


PARENT = "mlflow.parentRunId"
TRAIN = f"train --data=SyntheticDataModule --model.model=tests.support.networks.Moody {QUIET}"
TRAIN += " --data.train_size=16 --data.val_size=20 --data.test_size=20 --max_epochs=1"
TRAIN += " --batch_size=8 --trainer.log_every_n_steps=1 --accelerator=cpu"
TRAIN += " --data.resize=8 --data.crop=8 --trainer.logger.system_metrics=false"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]

# Their seeds tell them apart: 1 fails in the second process, and 11 never ends (moody.py).
WAYS = {
    "all is well": "--seeds 2 --seed 20",
    "one process fails": "--seed 0 --seeds 2 --devices 2",
    "an option is wrong": "--seed_everything=30 --seeds=2 --data.nonsense=1",
    "stopped": "--seeds 3 --seed 10",
}


def run_all(client, folder):
    """All ways, at once since each waits for its processes, after the last has ended.

    For each the parent run, those under it, the exit code and what was said.
    """
    started = {way: start(way, folder) for way in WAYS}
    try:
        stopped = started["stopped"]
        wait_until(
            lambda: stopped.poll() is not None or is_under_way(client, seed=11),
            "seed 11 is under way",
        )
        stopped.send_signal(signal.SIGTERM)
        said = {way: process.communicate()[0] for way, process in started.items()}
    finally:
        for process in started.values():
            process.kill()
    return {
        way: SimpleNamespace(
            code=process.returncode,
            out=said[way],
            parent=(parent := find_parent(client, WAYS[way])),
            children=[
                run
                for run in reversed(list_runs(client))
                if run.data.tags.get(PARENT) == parent.info.run_id
            ],
        )
        for way, process in started.items()
    }


def start(way, folder):
    python = []
    if "--devices" in WAYS[way]:
        python = [*TORCHRUN, forking_python.program()]
    return spawn([*python, "-m", "pyclassify", *TRAIN.split(), *WAYS[way].split()], folder)


def spawn(command, folder, **variables):
    """Start `python COMMAND` in a folder, whose runs are in the store of the environment."""
    return forking_python.start(
        *command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdout=PIPE,
        stderr=STDOUT,
    )


def is_under_way(client, seed):
    names = [run.info.run_name for run in list_runs(client)]
    return f"Moody-Synthetic-seed{seed}" in names


def find_parent(client, options):
    first = int(re.search(r"seed(?:_everything)?[= ](\d+)", options)[1])
    return next(
        run
        for run in list_runs(client)
        if run.data.tags.get("pyclassify.seeds", "").startswith(f"{first} to ")
    )
