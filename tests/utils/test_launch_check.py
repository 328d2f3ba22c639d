"""Which launcher a process finds itself started by, and what it does about others' variables."""

import os

import pytest

from pyclassify.utils.launch_check import (
    Launch,
    check_launch,
    check_settings,
    count_devices,
    detect_launch,
)
from pyclassify.utils.launch_check import drop_ranks_beside_srun as drop_ranks
from pyclassify.utils.options import UsageError
from tests.support.launches import VARIABLES
from tests.support.phrases import mentions

BATCH = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}
# As SLURM 22.05 sets them.
TASK = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
ONE = {**TASK, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.fixture
def environment(monkeypatch):
    """Set the variables of launchers to these alone."""

    def set_variables(variables):
        for name in (*VARIABLES, *(each for each in os.environ if each.startswith("SLURM_"))):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, None),  # the shell of salloc
        ({**ONE, "SLURM_JOB_NAME": "bash"}, None),  # srun --pty bash
        (ONE, Launch("srun", 1, 1)),
        (BATCH, Launch("sbatch", 1, 1)),
        ({**BATCH, "SLURM_NTASKS": "1"}, Launch("sbatch", 1, 1)),
        # submitted from a step
        ({**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Launch("sbatch", 1, 1)),
        ({**TASK, "SLURM_STEP_TASKS_PER_NODE": "2"}, Launch("srun", 1, 2)),
        ({**TASK, "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, Launch("srun", 2, 1)),
        ({**TASK, "SLURM_JOB_NAME": "interactive"}, Launch("srun", 1, 2)),
        ({**TASK, "SLURM_NTASKS_PER_NODE": "4"}, Launch("srun", 1, 2)),  # srun -n 2
        (
            {**TASK, "TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"},
            Launch("torchrun", 2, 4),
        ),
    ],
)
def test_detect_launch_reads_the_variables_of_launchers(variables, expected, environment):
    environment(variables)

    assert detect_launch() == expected


def test_detect_launch_of_uneven_nodes_is_refused(environment):
    environment({**TASK, "SLURM_NTASKS": "3", "SLURM_STEP_NUM_TASKS": "3"})
    os.environ["SLURM_STEP_TASKS_PER_NODE"] = "2,1"

    with pytest.raises(ValueError, match="--ntasks-per-node") as refused:
        detect_launch()

    assert mentions(str(refused.value), "2, 1 tasks")


@pytest.mark.parametrize(
    ("variables", "left"),
    [
        (TASK, {}),
        (BATCH, {"RANK": "0", "LOCAL_RANK": "0"}),
        ({}, {"RANK": "0", "LOCAL_RANK": "0"}),
        ({**TASK, "TORCHELASTIC_RUN_ID": "a"}, {"RANK": "0", "LOCAL_RANK": "0"}),
    ],
    ids=["srun", "sbatch", "nothing", "torchrun"],
)
def test_ranks_beside_those_of_srun_are_dropped(variables, left, environment):
    environment({**variables, "RANK": "0", "LOCAL_RANK": "0"})

    drop_ranks()

    assert {name: os.environ[name] for name in ("RANK", "LOCAL_RANK") if name in os.environ} == left


@pytest.mark.parametrize(
    "variables",
    [
        {"MASTER_ADDR": "first", "MASTER_PORT": "29500", "NODE_RANK": "1"},
        {"MASTER_ADDR": "a", "MASTER_PORT": "1", "NODE_RANK": "1", "LOCAL_RANK": "1"},
        {**TASK, "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "PMI_RANK": "0", "PMI_SIZE": "4"}
        | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
    ],
    ids=["first process of a node", "started by Lightning", "srun with PMI"],
)
def test_two_nodes_of_two_processes_are_accepted(variables, environment):
    environment(variables)

    check_settings({"trainer.devices": "2", "trainer.num_nodes": 2})


def test_launch_of_another_size_is_refused_with_counts_and_command(environment):
    environment({**TASK, "SLURM_STEP_TASKS_PER_NODE": "2"})

    with pytest.raises(ValueError, match="srun started") as refused:
        check_launch(devices=4, num_nodes=1)

    assert str(refused.value) == (
        "srun started 2 x 1 processes (processes per node x nodes), but 4 x 1 are expected "
        "(devices x num_nodes); start them with `srun --nodes=1 --ntasks-per-node=4 python -m "
        "pyclassify ... --devices 4 --num_nodes 1`, or give --devices 2 --num_nodes 1"
    )


def test_strategy_that_forks_is_a_usage_error(environment):
    environment({})

    with pytest.raises(UsageError, match=r"unsupported --trainer\.strategy: ddp_fork .*; omit"):
        check_settings({"trainer.strategy": "ddp_fork"})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((2, 2), ("2", 2), ([0, 2], 2), ("0,1", 2), ("0,", 1), ("[3]", 1)),
        *(("auto", None), ("-1", None), ("0", None), ([], None), ("two", None)),
    ],
)
def test_count_devices_reads_numbers_and_lists(value, expected):
    assert count_devices(value) == expected
