"""The launches of docs/launching.md on a SLURM cluster: srun, and scripts of people's own."""

import os
import shutil
import subprocess
from types import SimpleNamespace

import mlflow
import pytest

from tests.support import slurm_python, waiting
from tests.support.launches import ROOT, VARIABLES, count_processes, list_rows
from tests.support.phrases import mentions
from tests.support.trainings import SHAPES

TRAIN = "python -m pyclassify train " + SHAPES + " --accelerator=cpu --batch_size=16"
TRAIN += " --trainer.logger.system_metrics=false"

# By row: options of sbatch, or the command of a shell; what is started; the processes.
ACCEPTED = {
    "`sbatch --ntasks-per-node=2`, `srun TRAIN --devices 2`": (
        "--ntasks-per-node=2",
        "srun TRAIN --devices 2",
        2,
    ),
    "`sbatch --ntasks-per-node=4`, `srun -n 2 TRAIN --devices 2`": (
        "--ntasks-per-node=4",
        "srun -n 2 TRAIN --devices 2",
        2,
    ),
    "`salloc -n 2 srun TRAIN --devices 2`": ("", "salloc -n 2 srun TRAIN --devices 2", 2),
    '`srun -n 2 bash -c "TRAIN --devices 2"`': ("", 'srun -n 2 bash -c "TRAIN --devices 2"', 2),
    "`salloc -n 2`, `TRAIN` in its shell": ("", 'salloc -n 2 bash -c "TRAIN"', 1),
    "`srun --pty bash`, `TRAIN --devices 2` in it": ("", 'srun bash -c "TRAIN --devices 2"', 2),
    "`RANK=0 srun -n 2 TRAIN --devices 2`": ("", "RANK=0 srun -n 2 TRAIN --devices 2", 2),
}
# And what the line names.
REFUSED = {
    "`sbatch --ntasks-per-node=2`, `srun TRAIN`": (
        "--ntasks-per-node=2",
        "srun TRAIN",
        ("srun started 2", "--devices 2"),
    ),
    "`sbatch --ntasks-per-node=2`, `TRAIN --devices 2`": (
        "--ntasks-per-node=2",
        "TRAIN --devices 2",
        ("2 tasks", "srun --nodes=1 --ntasks-per-node=2 python"),
    ),
    "`sbatch --ntasks-per-node=2`, `TRAIN`": (
        "--ntasks-per-node=2",
        "TRAIN",
        ("2 tasks", "srun --nodes=1 --ntasks-per-node=2 python", "srun --nodes=1 --ntasks=1"),
    ),
    "`sbatch --ntasks=1`, `TRAIN --devices 2`": (
        "--ntasks=1",
        "TRAIN --devices 2",
        ("1 x 1", "2 x 1", "srun --nodes=1 --ntasks-per-node=2 python"),
    ),
}
# By torchrun it is a test of tests/cli/test_launching.py.
ELSEWHERE = {"`sbatch --ntasks-per-node=2`, `srun mlflow run . -P devices=2`"}


@pytest.fixture(scope="module")
def launched(cluster, empty_store, tmp_path_factory):
    """What each launch wrote, its exit code and its runs; all are started at once."""
    folder = tmp_path_factory.mktemp("launches")
    started = {}
    for number, (row, (options, command, _)) in enumerate({**ACCEPTED, **REFUSED}.items()):
        place = folder / str(number)
        place.mkdir()
        shutil.copy(empty_store, place)
        started[row] = start(cluster, place, options, command)
    try:
        yield {row: finish(*each) for row, each in started.items()}
    finally:
        for process, _ in started.values():
            process.terminate()
        mlflow.set_tracking_uri(None)


def start(cluster, folder, options, command):
    """Submit a script of this command, or start it here if it is for a shell."""
    line = command.replace("TRAIN", TRAIN)
    path = f"{slurm_python.environment(forks_tasks=True)}/bin{os.pathsep}{cluster.env['PATH']}"
    env = {name: value for name, value in cluster.env.items() if name not in VARIABLES}
    env |= {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    env |= {"MLFLOW_EXPERIMENT_NAME": "tested"}
    log = folder / "out"
    if options:
        submit = ["sbatch", "--wait", *options.split(), f"--output={log}", f"--wrap={line}"]
        process = subprocess.Popen(submit, cwd=folder, env=env, stdout=subprocess.DEVNULL)
    else:
        with log.open("w") as out:
            process = subprocess.Popen(
                ["bash", "-c", line], cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT
            )
    return process, folder


def finish(process, folder):
    code = process.wait(timeout=waiting.scale(60))
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("tested").experiment_id])
    return SimpleNamespace(code=code, written=(folder / "out").read_text(), runs=runs)


def test_every_launch_of_the_docs_is_tested():
    assert {*list_rows("SLURM")} == {*ACCEPTED, *REFUSED, *ELSEWHERE}


@pytest.mark.parametrize("row", ACCEPTED)
def test_launch_is_one_run_of_the_processes_asked_for(row, launched):
    done = launched[row]

    assert done.code == 0, done.written
    (run,) = done.runs
    assert count_processes(run) == ACCEPTED[row][2]


@pytest.mark.parametrize("row", REFUSED)
def test_launch_is_refused_with_the_right_command(row, launched):
    done = launched[row]

    assert done.code != 0
    assert mentions(done.written, "error: ", *REFUSED[row][2])
    assert "Traceback" not in done.written
    assert [run.info.status for run in done.runs] == []
