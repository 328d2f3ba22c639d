"""Trainings with several seeds, as people start and stop them."""

import os
import re
import signal
from types import SimpleNamespace

from tests.support import forking_python
from tests.support.command_lines import QUIET
from tests.support.processes import PIPE, ROOT, STDOUT
from tests.support.stores import list_runs
from tests.support.waiting import wait_until

PARENT = "mlflow.parentRunId"
TRAIN = f"train --data=SyntheticDataModule --model.model=tests.support.moody.Moody {QUIET}"
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
