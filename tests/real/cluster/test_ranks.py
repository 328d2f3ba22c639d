"""What each process of a job finds: its GPUs, its rank, and the others."""

import json
import re
from pathlib import Path

import pytest

from tests.support.slurm_jobs import (
    enter_submission_folder,
    get_description,
    read_log,
    submit_project,
    wait_for_status,
    write_project,
)

# Of the shipped configurations, what the tests' cluster does not have.
LACKING = ("partition", "qos", "constraint", "time", "modules", "environment", "work_dir")

TELL = """
    import json, os, sys
    names = "CUDA_VISIBLE_DEVICES SLURM_PROCID SLURM_NTASKS SLURM_NTASKS_PER_NODE MASTER_ADDR"
    names += " MASTER_PORT SLURM_JOB_ID SLURM_CPUS_PER_TASK SLURM_NODEID"
    sys.stdout.write(json.dumps({name: os.environ.get(name) for name in names.split()}) + "\\n")
"""
PARAMETERS = "devices: {default: 1}, num_nodes: {default: 1}"


def ranks(submitted):
    run = wait_for_status(submitted)
    assert run.info.status == "FINISHED", get_description(run)
    found = [json.loads(line) for line in read_log(submitted).splitlines() if line.startswith("{")]
    return sorted(found, key=lambda variables: int(variables["SLURM_PROCID"]))


SHIPPED = {"ulysses": (2, 1), "leonardo": (4, 2), "perlmutter": (2, 1)}


@pytest.fixture(scope="module")
def variables(cluster, empty_store, tmp_path_factory):
    """The variables of each task, by shipped configuration; the jobs run at once."""
    folder = tmp_path_factory.mktemp("shipped")
    with pytest.MonkeyPatch.context() as patch:
        enter_submission_folder(patch, cluster, empty_store, folder)
        project = write_project(folder / "submitted", TELL, PARAMETERS)
        submitted = {
            name: submit_project(
                project, adapt(name), parameters={"devices": devices, "num_nodes": nodes}
            )
            for name, (devices, nodes) in SHIPPED.items()
        }
        yield {name: ranks(each) for name, each in submitted.items()}


def adapt(name):
    shipped = json.loads(Path(__file__).parents[3].joinpath(f"slurm/{name}.json").read_text())
    config = {key: value for key, value in shipped.items() if key not in LACKING}
    return {**config, "mem": "8G", "cpus_per_task": min(config.get("cpus_per_task", 1), 4)}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_process_sees_all_gpus_of_its_node(name, variables):
    devices, num_nodes = SHIPPED[name]
    tasks = variables[name]
    seen = {key: {task[key] for task in tasks} for key in tasks[0]}
    assert [task["SLURM_PROCID"] for task in tasks] == [
        str(rank) for rank in range(devices * num_nodes)
    ]
    (gpus,) = seen["CUDA_VISIBLE_DEVICES"]  # the same for all; which ones, other jobs decide
    assert len({*gpus.split(",")}) == devices
    assert seen["SLURM_NTASKS_PER_NODE"] == {str(devices)}
    assert seen["SLURM_CPUS_PER_TASK"] == {str(adapt(name)["cpus_per_task"])}
    assert len(seen["SLURM_NODEID"]) == num_nodes


def test_two_jobs_on_one_node_use_different_ports(slurm, tmp_path):
    project = write_project(tmp_path / "submitted", TELL, PARAMETERS)
    config = {"nodelist": "n1", "mem": "2G"}

    both = [submit_project(project, config, parameters={"devices": 2}) for _ in range(2)]
    jobs = [ranks(each) for each in both]

    # The nodes' names don't resolve here.
    assert {each["MASTER_ADDR"] for ranks in jobs for each in ranks} == {"127.0.0.1"}
    ports = [{each["MASTER_PORT"] for each in ranks} for ranks in jobs]
    assert [len(each) for each in ports] == [1, 1]
    assert ports[0] != ports[1]


@pytest.mark.parametrize(
    ("srun_args", "words"),
    [
        (["--ntasks=1", "--ntasks-per-node=1"], r"\b1 tasks\b.*\brequested 2\b"),
        (["--gpus-per-task=1"], r"task [01] has 1 GPUs\b.*\brequested 2\b"),
    ],
)
def test_too_few_processes_or_gpus_are_never_silent(srun_args, words, slurm, tmp_path):
    project = write_project(tmp_path / "submitted", TELL, PARAMETERS)

    submitted = submit_project(project, {"srun_args": srun_args}, parameters={"devices": 2})
    run = wait_for_status(submitted)

    assert run.info.status == "FAILED"
    assert re.search(words, get_description(run))
    assert "{" not in read_log(submitted)
