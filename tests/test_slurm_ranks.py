"""What each process of a job finds: its GPUs, its rank, and the others."""

import json
import re
from pathlib import Path

import pytest
from slurm_runs import log, note, submit, wait_for_status, write_project

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
    assert run.info.status == "FINISHED", note(run)
    told = [json.loads(line) for line in log(submitted).splitlines() if line.startswith("{")]
    return sorted(told, key=lambda each: int(each["SLURM_PROCID"]))


@pytest.mark.parametrize(
    ("name", "devices", "num_nodes"),
    [("ulysses", 2, 1), ("leonardo", 4, 2), ("perlmutter", 2, 1)],
)
def test_every_process_sees_all_gpus_of_its_node(name, devices, num_nodes, slurm, tmp_path):
    shipped = json.loads(Path(__file__).parents[1].joinpath(f"slurm/{name}.json").read_text())
    config = {key: value for key, value in shipped.items() if key not in LACKING}
    config["cpus_per_task"] = min(config.get("cpus_per_task", 1), 8)
    project = write_project(tmp_path / "submitted", TELL, PARAMETERS)

    given = {"devices": devices, "num_nodes": num_nodes}
    told = ranks(submit(project, config, parameters=given))

    world = devices * num_nodes
    assert [each["SLURM_PROCID"] for each in told] == [str(rank) for rank in range(world)]
    assert {each["CUDA_VISIBLE_DEVICES"] for each in told} == {",".join(map(str, range(devices)))}
    assert {each["SLURM_NTASKS_PER_NODE"] for each in told} == {str(devices)}
    assert {each["SLURM_CPUS_PER_TASK"] for each in told} == {str(config["cpus_per_task"])}
    assert len({each["SLURM_NODEID"] for each in told}) == num_nodes


def test_two_jobs_on_one_node_meet_at_places_of_their_own(slurm, tmp_path):
    project = write_project(tmp_path / "submitted", TELL, PARAMETERS)
    config = {"nodelist": "n1", "mem": "2G"}

    both = [submit(project, config, parameters={"devices": 2}) for _ in range(2)]
    told = [ranks(each) for each in both]

    # The nodes' names don't resolve here.
    assert {each["MASTER_ADDR"] for ranks in told for each in ranks} == {"127.0.0.1"}
    ports = [{each["MASTER_PORT"] for each in ranks} for ranks in told]
    assert [len(each) for each in ports] == [1, 1]
    assert ports[0] != ports[1]


@pytest.mark.parametrize(
    ("srun_args", "words"),
    [
        (["--ntasks=1", "--ntasks-per-node=1"], "SLURM started 1 processes; 2 were asked for"),
        (["--gpus-per-task=1"], "process [01] has 1 GPUs; 2 were asked for on each node"),
    ],
)
def test_too_few_processes_or_gpus_are_never_silent(srun_args, words, slurm, tmp_path):
    project = write_project(tmp_path / "submitted", TELL, PARAMETERS)

    submitted = submit(project, {"srun_args": srun_args}, parameters={"devices": 2})
    run = wait_for_status(submitted)

    assert run.info.status == "FAILED"
    assert re.search(words, note(run))
    assert "{" not in log(submitted)
