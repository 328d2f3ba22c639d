"""The launches of docs/launching.md on one machine: one run of the processes asked for, or none."""

import os
import sys
from types import SimpleNamespace

import pytest
from lightning.pytorch.strategies import StrategyRegistry

from tests.support import forking_python, processes
from tests.support.launches import ROOT, VARIABLES, count_processes, list_rows
from tests.support.phrases import mentions
from tests.support.processes import PIPE
from tests.support.stores import list_runs
from tests.support.trainings import SHAPES, last_error, refusal

TRAIN = f"train {SHAPES} --accelerator=cpu --trainer.logger.system_metrics=false"
TORCHRUN = ("-m", "torch.distributed.run")
MEET = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512"}
TWO = {**MEET, "WORLD_SIZE": "2", "RANK": "0"}
ACCELERATE = {**TWO, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
OF_TORCHRUN = {**TWO, "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "tested"}
ONE_NODE = {**OF_TORCHRUN, "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
TASK = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}
XDIST = {"PYTEST_XDIST_WORKER": "gw1", "PYTEST_XDIST_WORKER_COUNT": "4"}

# By row: variables, more options, what the line names. `TRAIN` stands for the command.
REFUSED = {
    "`TRAIN --devices -1`": ({}, "--devices -1", ("devices", -1, "1 or more")),
    "`TRAIN --devices [0]`": ({}, "--devices [0]", ("devices", "[0]", "1 or more")),
    "`TRAIN --devices 0,`": ({}, "--devices 0,", ("devices", "0,", "1 or more")),
    "`TRAIN --num_nodes 2`": (
        {},
        "--num_nodes 2",
        ("num_nodes", 2, "srun --nodes=2", "torchrun --nnodes=2"),
    ),
    "`torchrun --nproc-per-node=2 -m pyclassify train`": (
        ONE_NODE,
        "",
        ("torchrun started 2", "--nproc-per-node=1", "--devices 2"),
    ),
    "`torchrun --nnodes=2 --nproc-per-node=1 -m pyclassify train --devices 2`": (
        {**OF_TORCHRUN, "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2"},
        "--devices 2",
        ("torchrun started 1 x 2", "2 x 1", "--devices 1 --num_nodes 2"),
    ),
    "`srun -n 2 torchrun --standalone --nproc-per-node=2 -m pyclassify train --devices 2`": (
        {**ONE_NODE, **TASK},
        "--devices 2",
        ("srun", "torchrun 2 times", "--ntasks-per-node=1 torchrun --nnodes=2"),
    ),
    "`mpirun -n 2 TRAIN --devices 2`": (
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"},
        "--devices 2",
        ("mpirun", "OMPI_COMM_WORLD_SIZE=2", "torchrun --standalone --nproc-per-node=2"),
    ),
    "`mpiexec -n 2 TRAIN --devices 2`": (
        {"PMI_RANK": "1", "PMI_SIZE": "2"},
        "--devices 2",
        ("mpiexec", "PMI_SIZE=2", "torchrun --standalone --nproc-per-node=2"),
    ),
    "`jsrun -n 2 TRAIN --devices 2`": (
        {"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2", "LSB_JOBID": "1"},
        "--devices 2",
        ("jsrun", "JSM_NAMESPACE_SIZE=2", "torchrun --standalone --nproc-per-node=2"),
    ),
    "Kubeflow's PyTorchJob: `TRAIN --num_nodes 2`": (
        TWO,
        "--num_nodes 2",
        ("RANK=0, WORLD_SIZE=2", "torchrun --nnodes=2"),
    ),
    "variables of `accelerate launch`, without torchrun: `TRAIN --devices 2`": (
        ACCELERATE,
        "--devices 2",
        ("RANK=0, LOCAL_RANK=0, WORLD_SIZE=2", "torchrun --standalone --nproc-per-node=2"),
    ),
    "`RANK=1 TRAIN`": ({"RANK": "1"}, "", ("RANK=1", "unset RANK")),
    "`RANK=0 WORLD_SIZE=2 TRAIN`": (
        {"RANK": "0", "WORLD_SIZE": "2"},
        "",
        ("RANK=0, WORLD_SIZE=2", "unset RANK WORLD_SIZE", "--devices 2"),
    ),
    "`WORLD_SIZE=4 TRAIN --devices 2`": (
        {"WORLD_SIZE": "4"},
        "--devices 2",
        ("WORLD_SIZE=4", "unset WORLD_SIZE"),
    ),
    "`LOCAL_RANK=0 TRAIN --devices 2`": (
        {"LOCAL_RANK": "0"},
        "--devices 2",
        ("LOCAL_RANK=0", "unset LOCAL_RANK"),
    ),
    "`LOCAL_RANK=1 TRAIN`": ({"LOCAL_RANK": "1"}, "", ("LOCAL_RANK=1", "unset LOCAL_RANK")),
    "`NODE_RANK=1 TRAIN`": ({"NODE_RANK": "1"}, "", ("NODE_RANK=1", "unset NODE_RANK")),
    "`RANK= TRAIN`": ({"RANK": ""}, "", ("RANK", "''", "unset RANK")),
    "`MASTER_PORT=http TRAIN --devices 2`": (
        {"MASTER_PORT": "http"},
        "--devices 2",
        ("MASTER_PORT", "'http'", "unset MASTER_PORT"),
    ),
}
# By row: variables, the launcher, more options, the processes.
ACCEPTED = {
    "`TRAIN`": ({}, (), "", 1),
    "`TRAIN --devices 2`": ({}, (), "--devices 2", 2),
    "`TRAIN --trainer.accelerator cpu --trainer.devices 2`": (
        {},
        (),
        "--trainer.accelerator cpu --trainer.devices 2",
        2,
    ),
    "`TRAIN --devices auto`": ({}, (), "--devices auto", 1),
    "pytest-xdist's variables in the environment": (XDIST, (), "", 1),
    "`LOCAL_RANK=0 TRAIN`": ({"LOCAL_RANK": "0"}, (), "", 1),
    "`torchrun --nproc-per-node=2 -m pyclassify train --devices 2`": (
        {},
        (*TORCHRUN, "--standalone", "--nproc-per-node=2"),
        "--devices 2",
        2,
    ),
}

DEARER = ("`TRAIN --trainer.accelerator cpu --trainer.devices 2`",)
NODES = "`torchrun --nnodes=2 --nproc-per-node=1 -m pyclassify train --num_nodes 2`"
RESTARTED = (
    "`torchrun --max-restarts=1 --nproc-per-node=2 -m pyclassify train --devices 2`"  # and a test
)
MLFLOW_IN_TORCHRUN = "`torchrun --nproc-per-node=2 --no-python mlflow run . -P devices=2`"
RESUMED = "`torchrun --nproc-per-node=2 -m pyclassify resume RUN_ID`"
ELSEWHERE = {"`mlflow run . -P devices=2`"}  # tests/real/test_mlproject.py and others
IN_NOTEBOOKS = {
    '`pyclassify.cli.main.main(["train"])` in a notebook',
    '`pyclassify.cli.main.main(["train", "--devices=2"])` in a notebook',
}
IN_SCRIPTS = {
    "`Trainer(logger=RunLogger(), devices=2)` in a Lightning script": ("auto", 2),
    '`Trainer(logger=RunLogger(), strategy="ddp_fork", devices=2)` in such a script': (
        "ddp_fork",
        0,
    ),
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # which restores it afterwards, whoever sets it
        monkeypatch.delenv(name)


# Refused whatever the machine: `TRAIN` names the CPU.
INVALID_ON_CPU = {f"`TRAIN --devices {devices}`" for devices in ("-1", "[0]", "0,")}


@pytest.fixture
def launch(store, tmp_path):
    """Start Python with a command line, and wait for its end."""

    def start(*command, **variables):
        environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", **variables}
        return forking_python.start(*command, cwd=tmp_path, env=environ, stdout=PIPE, stderr=PIPE)

    return start


def test_every_launch_of_the_docs_is_tested():
    rows = list_rows("On one machine", "torchrun and other launchers", "Notebooks and scripts")

    more = {NODES, RESTARTED, MLFLOW_IN_TORCHRUN, RESUMED, *ELSEWHERE, *IN_NOTEBOOKS, *IN_SCRIPTS}
    assert {*rows} == {*REFUSED, *ACCEPTED, *more}


@pytest.mark.parametrize("row", REFUSED)
def test_launch_is_refused_with_the_right_command(row, cli, monkeypatch):
    variables, options, facts = REFUSED[row]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pyclassify.cli.main._TURN_SECONDS", 0)

    done = cli(f"{TRAIN} {options}")

    code = 2 if row in INVALID_ON_CPU else 1
    assert (done.code, done.err.count("\n"), done.runs) == (code, 1, [])
    assert mentions(done.err, "error: ", *facts)


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=[pytest.mark.slow] * (row in DEARER)) for row in ACCEPTED]
)
def test_launch_is_one_run_of_the_processes_asked_for(row, launch, cli, store, monkeypatch):
    variables, launcher, options, processes = ACCEPTED[row]
    python = ["--no-python", forking_python.program()] if launcher else []
    command = [*launcher, *python, "-m", "pyclassify", *TRAIN.split(), *options.split()]

    if processes == 1:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        done = cli(f"{TRAIN} {options}")
    else:
        started = launch(*command, **variables)
        done = SimpleNamespace(err=started.communicate()[1], code=started.returncode)

    assert done.code == 0, done.err
    (run,) = list_runs(store)
    assert count_processes(run) == processes


@pytest.mark.slow
def test_two_torchruns_of_one_process_are_one_run(launch, store):
    port = str(processes.free_port())
    options = f"--nnodes=2 --nproc-per-node=1 --master-port={port} --no-python"
    command = [forking_python.program(), "-m", "pyclassify", *TRAIN.split(), "--num_nodes=2"]

    started = [
        launch(*TORCHRUN, f"--node-rank={rank}", *options.split(), *command) for rank in (0, 1)
    ]

    assert [each.communicate()[1] and each.returncode for each in started] == [0, 0]
    (run,) = list_runs(store)
    assert count_processes(run) == 2


FLAKY = """
import os
from tests.support.networks import Linear

class Flaky(Linear):
    steps = 0
    def forward(self, images):
        self.steps += self.training
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first and self.steps == 2 and os.environ["RANK"] == "0":
            raise ArithmeticError("as a first attempt may fail")
        return super().forward(images)
"""


@pytest.mark.slow
def test_restart_by_torchrun_continues_the_run(launch, store, tmp_path):
    (tmp_path / "flaky.py").write_text(FLAKY)
    options = ["--standalone", "--nproc-per-node=2", "--max-restarts=1", "--no-python"]
    train = TRAIN.replace("tests.support.networks.Linear", "flaky.Flaky")
    command = [forking_python.program(), "-m", "pyclassify", *train.split(), "--devices=2"]

    done = launch(*TORCHRUN, *options, *command)

    _, err = done.communicate()
    assert "as a first attempt may fail" in err
    assert done.returncode == 0, err
    (run,) = list_runs(store)
    assert count_processes(run) == 2


@pytest.mark.slow
def test_mlflow_run_by_torchrun_is_refused_and_its_run_fails(launch, store):
    options = ["--standalone", "--nproc-per-node=2", "--no-python"]
    given = [word.removeprefix("--") for word in TRAIN.split()[1:] if "=" in word]
    parameters = [word for each in (*given, "devices=2") for word in ("-P", each)]
    command = ["mlflow", "run", ROOT, "--env-manager", "local", *parameters]
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"

    done = launch(*TORCHRUN, *options, *command, PATH=path)

    _, err = done.communicate()
    assert done.returncode == 1
    assert mentions(err, "2 `mlflow run`", "python -m pyclassify train")
    # torchrun ends the second `mlflow run` with the first, perhaps before it has started ours.
    statuses = {run.info.status for run in list_runs(store)}
    assert "FAILED" in statuses
    assert "FINISHED" not in statuses


@pytest.mark.parametrize("command", ["resume", "rerun"])
def test_command_that_starts_a_training_is_started_once(command, cli, monkeypatch):
    for name, value in ONE_NODE.items():
        monkeypatch.setenv(name, value)

    assert mentions(refusal(cli(f"{command} 0123")), "torchrun started 2", command, "start it once")


@pytest.mark.parametrize(
    "strategy",
    [
        name
        for name in StrategyRegistry.available_strategies()
        if name not in ("ddp", *(n for n in StrategyRegistry if n.startswith("ddp_find")))
    ],
)
def test_strategy_that_is_not_one_run_is_refused(strategy, cli):
    done = cli(f"{TRAIN} --devices 2 --trainer.strategy {strategy}")

    is_usage_error = strategy.startswith(("ddp_spawn", "ddp_fork", "ddp_notebook"))
    # Lightning refuses the others for the CPU, or for a package that is not installed.
    assert done.code == 2 or (done.code == 1 and not is_usage_error)
    assert done.runs == []
    names = {"deepspeed": "DeepSpeed", "fsdp": "fsdp", "xla": "trainer", "tpu": "trainer"}
    fact = next((fact for part, fact in names.items() if part in strategy), "--trainer.strategy")
    assert mentions(last_error(done), fact)
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_strategy_of_processes_is_one_run(launch, store, subtests):
    for number, strategy in enumerate(("ddp", "ddp_find_unused_parameters_true"), start=1):
        with subtests.test(strategy):
            options = f"--devices 2 --trainer.strategy {strategy}"

            done = launch("-m", "pyclassify", *TRAIN.split(), *options.split())

            _, err = done.communicate()
            assert done.returncode == 0, err
            runs = list_runs(store)
            assert len(runs) == number
            assert count_processes(runs[0]) == 2


def test_devices_in_a_notebook_are_refused(cli, monkeypatch):
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)

    done = cli(f"{TRAIN} --devices 2")

    assert done.runs == []
    assert mentions(
        refusal(done), "--devices", 2, "notebook", "--devices 1", "python -m pyclassify"
    )


def test_strategy_of_processes_in_a_notebook_is_refused(cli, monkeypatch):
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)

    message = refusal(cli(f"{TRAIN} --trainer.strategy ddp"))
    assert mentions(message, "--trainer.strategy ddp", "omit", "notebook")


INTERACTIVE = """
from pyclassify.cli.main import main
codes = [main({train!r}), main({train!r} + ["--devices=2"]), main({train!r})]
print("codes", codes)
"""


@pytest.mark.slow
def test_interactive_python_trains_in_one_process(store, tmp_path):
    code = INTERACTIVE.format(train=TRAIN.split())
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = processes.run("-i", "-c", code, cwd=tmp_path, env=environ, fresh=True)

    assert "codes [0, 1, 0]" in done.stdout, done.stderr
    assert [count_processes(run) for run in list_runs(store)] == [1, 1]


SCRIPT = """
import lightning.pytorch as pl
from pyclassify.tracking.logger import RunLogger
from pyclassify.tracking.run import end_run
from tests.support.networks import Data, Module

trainer = pl.Trainer(
    logger=RunLogger(system_metrics=False), strategy={strategy!r}, accelerator="cpu", devices=2,
    max_epochs=1, log_every_n_steps=1, enable_checkpointing=False, enable_progress_bar=False,
)
trainer.fit(Module(), Data())
end_run("FINISHED")
"""


@pytest.mark.parametrize("row", IN_SCRIPTS)
def test_logger_in_a_script_is_one_run_or_refused(row, launch, store, tmp_path):
    strategy, processes = IN_SCRIPTS[row]
    (tmp_path / "script.py").write_text(SCRIPT.format(strategy=strategy))

    done = launch("script.py")

    _, err = done.communicate()
    assert (done.returncode == 0) == (processes > 0), err
    assert [run.info.status for run in list_runs(store)] == ["FINISHED"] * bool(processes)
    assert mentions(err, "strategy ddp " if not processes else "MEMBER: 2/2")
