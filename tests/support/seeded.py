"""Trainings with several seeds, as people start and stop them."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow

from tests.support.command_lines import QUIET, TINY
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
PARENT = "mlflow.parentRunId"
TRAIN = f"train --data=SyntheticDataModule --model.model=tests.support.moody.Moody {TINY} {QUIET}"
TRAIN += " --accelerator=cpu --data.resize=8 --data.crop=8"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]

# Their seeds tell them apart: 1 fails in the second process, and 11 never ends (moody.py).
WAYS = {
    "all is well": "--seeds 2 --seed 20",
    "one fails in one of two processes": "--seed 0 --seeds 2 --devices 2",
    "an option is wrong": "--seed_everything=30 --seeds=2 --data.nonsense=1",
    "stopped": "--seeds 3 --seed 10",
}


def run_all(empty_store, folder):
    """All ways, at once since each spends its time on imports, after the last has ended.

    For each the parent run, those under it, the exit code and what was said.
    """
    client = mlflow.MlflowClient(f"sqlite:///{shutil.copy(empty_store, folder)}")
    started = {way: start(way, folder, client) for way in WAYS}
    try:
        stopped = started["stopped"]
        wait_until(lambda: stopped.poll() is not None or is_under_way(client, seed=11))
        stopped.send_signal(signal.SIGTERM)
        said = {way: process.communicate(timeout=300)[0] for way, process in started.items()}
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


def start(way, folder, client):
    python = [sys.executable]
    if "--devices" in WAYS[way]:
        python += [*TORCHRUN, sys.executable]
    words = [*TRAIN.split(), *WAYS[way].split()]
    return spawn([*python, "-m", "pyclassify", *words], folder, client)


def spawn(command, folder, client, **variables):
    """Start a command in a folder, whose runs are in a client's store."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env={
            **os.environ,
            "MLFLOW_TRACKING_URI": client.tracking_uri,
            "MLFLOW_EXPERIMENT_NAME": "tested",
            "PYTHONPATH": str(ROOT),
            **variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def list_runs(client):
    return client.search_runs([client.get_experiment_by_name("tested").experiment_id])


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
