"""Batch scripts as the backend makes them, and what checks them."""

import subprocess
from pathlib import Path

from pyclassify.slurm import config, script, topology
from pyclassify.slurm.environment import choose


def render(given, parameters, **facts):
    read = config.read(given)
    decided = topology.decide(read, parameters, {"devices": 1, "num_nodes": 1})
    known = {
        "run_id": "RUN_ID",
        "experiment_id": "1",
        "tracking_uri": "sqlite:////home/me/pyclassify/mlflow.db",
        "name": read.job_name or "pyclassify",
        "folder": "/scratch/me/pyclassify-slurm/RUN_ID",
        "command": f"python -m pyclassify train --devices={decided.tasks}",
        "activation": choose(read, None, Path(), "local").activation if read.environment else (),
        "version": "0.1.0",
    }
    return script.render(read, script.Facts(topology=decided, **{**known, **facts}))


def check(text, *checker):
    return subprocess.run([*checker, "-"], input=text, text=True, capture_output=True)
