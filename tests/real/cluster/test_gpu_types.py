"""Clusters whose GPUs have types: what each form of the request gets, on nodes of several types."""

import json

import mlflow
import pytest
from mlflow.exceptions import ExecutionException

from pyclassify.slurm import client
from tests.support.phrases import mentions
from tests.support.slurm_jobs import (
    enter_submission_folder,
    get_description,
    read_log,
    submit_project,
    wait_for_status,
    write_project,
)

TELL = """
    import json, os, sys
    names = ("SLURM_PROCID", "SLURM_NODEID", "SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES")
    sys.stdout.write(json.dumps([os.environ[name] for name in names]) + "\\n")
"""
PARAMETERS = "devices: {default: 1}, num_nodes: {default: 1}"
MIG = "nvidia_h100_80gb_hbm3_1g.10gb"
GRES = {"gpu_option": "gres"}
# The configuration, devices and nodes; and where each process is, and what it sees.
REQUESTS = {
    "type": (
        {"partition": "typed", "gpu_type": "a100"},
        (2, 2),
        {("n3", "0,1"), ("n4", "0,1")},
    ),
    "type by gres, where the site demands both": (
        {"partition": "strict", "gpu_type": "v100", **GRES},
        (2, 1),
        {("n3", "2,3")},
    ),
    "part of a GPU": ({"partition": "typed", "gpu_type": MIG}, (2, 1), {("n4", "2,3")}),
    "no type": ({"partition": "typed", "nodelist": "n3"}, (4, 1), {("n3", "0,1,2,3")}),
    "no type by gres": (
        {"partition": "main", "nodelist": "n1", **GRES},
        (4, 1),
        {("n1", "0,1,2,3")},
    ),
}


@pytest.fixture(scope="module")
def typed(cluster):
    with cluster.typed_nodes():
        yield cluster


@pytest.fixture(scope="module")
def jobs(typed, empty_store, tmp_path_factory):
    """The run and the processes of each request; one job after another, as they share the GPUs."""
    folder = tmp_path_factory.mktemp("types")
    with pytest.MonkeyPatch.context() as patch:
        enter_submission_folder(patch, typed, empty_store, folder)
        project = write_project(folder / "submitted", TELL, PARAMETERS)
        submitted = {}
        for name, (config, (devices, nodes), _) in REQUESTS.items():
            parameters = {"devices": devices, "num_nodes": nodes}
            submitted[name] = submit_project(
                project, {"mem": "1G", **config}, parameters=parameters
            )
        yield {
            name: (each, wait_for_status(each), read_log(each)) for name, each in submitted.items()
        }


@pytest.mark.parametrize("name", REQUESTS)
def test_every_process_sees_the_gpus_of_the_type(name, jobs):
    _, (devices, nodes), places = REQUESTS[name]
    _, run, log = jobs[name]

    assert run.info.status == "FINISHED", get_description(run)
    rows = [json.loads(line) for line in log.splitlines() if line.startswith("[")]
    assert {rank for rank, *_ in rows} == {str(rank) for rank in range(devices * nodes)}
    assert {(node, gpus) for _, _, node, gpus in rows} == places


@pytest.mark.parametrize("name", REQUESTS)
def test_accounting_counts_the_gpus_of_each_request(name, jobs, slurm):
    job = jobs[name][0].job_id
    devices, nodes = REQUESTS[name][1]
    slurm.wait_for(job, "COMPLETED")

    (attempt,) = client.list_accounting({job: 0.0})[job].attempts

    assert attempt.gpus == devices * nodes


@pytest.mark.parametrize(
    ("config", "devices", "facts"),
    [
        (
            {"partition": "typed", "gpu_type": "A100"},
            1,
            ("partition typed", "Did you mean 'a100'?", f"a100, {MIG}, v100"),
        ),
        ({"partition": "main", "gpu_type": "v100"}, 1, ("partition main", "have no type", "typed")),
        ({"partition": "typed", "gpu_type": "v100"}, 4, ("4 GPUs of type v100", "at most 2")),
        ({"partition": "main"}, 8, ("8 GPUs", "partition main", "at most 4", "-P num_nodes")),
    ],
)
def test_type_or_number_that_a_partition_lacks_is_refused_before_there_is_a_run(
    config, devices, facts, typed, slurm, tmp_path
):
    project = write_project(tmp_path / "submitted", TELL, PARAMETERS)

    with pytest.raises(ExecutionException) as error:
        submit_project(project, config, parameters={"devices": devices})

    assert mentions(str(error.value), *facts)
    experiment = mlflow.get_experiment_by_name("tested").experiment_id
    assert mlflow.MlflowClient().search_runs([experiment]) == []
