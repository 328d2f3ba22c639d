"""Nodes, processes and GPUs: the parameters decide, the configuration is checked against them."""

import pytest

from pyclassify.slurm.config import parse_config
from pyclassify.slurm.topology import Topology, decide_topology
from pyclassify.utils.options import UsageError

OURS = {"devices": 1, "num_nodes": 1, "accelerator": "auto", "seed": 0}


def decide(config, given, defaults=OURS):
    return decide_topology(parse_config(config), given, defaults)


@pytest.mark.parametrize(
    ("config", "given", "expected"),
    [
        ({}, {}, Topology(1, 1, 1)),
        ({}, {"devices": "2"}, Topology(1, 2, 2)),
        ({}, {"devices": "2", "num_nodes": "2"}, Topology(2, 2, 2)),
        ({}, {"trainer.devices": "4"}, Topology(1, 4, 4)),
        ({}, {"devices": "2", "accelerator": "cpu"}, Topology(1, 2, 0)),
        ({"gpus": 0}, {"devices": "2"}, Topology(1, 2, 0)),
        ({"gpus": 4, "gpus_per_task": 1}, {"devices": "2", "num_nodes": "2"}, Topology(2, 2, 2)),
        ({"nodes": 2, "ntasks_per_node": 3}, {"devices": 3, "num_nodes": 2.0}, Topology(2, 3, 3)),
    ],
)
def test_topology_follows_the_parameters(config, given, expected):
    assert decide(config, given) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Topology(1, 1, 0)),
        ({"gpus": 2}, Topology(1, 1, 2)),
        ({"nodes": 2, "ntasks_per_node": 2, "gpus": 8}, Topology(2, 2, 4)),
        ({"ntasks_per_node": 4, "gpus_per_task": 2}, Topology(1, 4, 8)),
    ],
)
def test_topology_without_parameters_follows_the_configuration(config, expected):
    assert decide(config, {"alpha": "1"}, {"alpha": 0.5}) == expected


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (
            {"ntasks_per_node": 4},
            {"devices": "2"},
            r"ntasks_per_node is 4\b.*devices is 2 \(-P devices=2\)",
        ),
        (
            {"ntasks_per_node": 2},
            {},
            "ntasks_per_node is 2 .* devices is 1 .*MLproject.*ntasks_per_node",
        ),
        ({"nodes": 2}, {}, "nodes is 2 .* num_nodes is 1 .*MLproject"),
        ({"gpus": 2}, {"devices": "2", "num_nodes": "2"}, "gpus is 2 .* devices is 2 .*2 nodes"),
        ({"gpus_per_task": 2}, {}, "gpus_per_task is 2 .* each task has 1 GPU"),
        (
            {"gpus": 2},
            {"devices": 2, "accelerator": "cpu"},
            r"gpus is 2 .* accelerator is cpu \(-P",
        ),
        ({"gpus": 0}, {"devices": 2, "accelerator": "gpu"}, "gpus is 0 .* devices is 2"),
        (
            {},
            {"devices": "2", "trainer.devices": "4"},
            "-P devices=2 and -P trainer.devices=4 contradict",
        ),
    ],
)
def test_configuration_that_contradicts_parameters_is_refused_with_both_numbers(
    config, given, message
):
    with pytest.raises(ValueError, match=message):
        decide(config, given)


@pytest.mark.parametrize("devices", ["auto", "-1", "0", "0,1", "2.5", "[0, 1]", "inf", "nan"])
def test_devices_that_is_not_an_integer_is_refused(devices):
    # the form of this message
    with pytest.raises(
        UsageError, match=r"^invalid devices: .* \(expected an integer from 1, such"
    ):
        decide({}, {"devices": devices})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"gpu_type": "a100"}, "gpu_type is 'a100' .*without a number of GPUs.*\"gpus\""),
        ({"gpus": 3, "nodes": 2}, "invalid gpus .*: 3 .*multiple of 2.*2 nodes"),
        ({"gpus": 4, "gpus_per_task": 1}, "gpus is 4 .*gpus_per_task is 1 for 1 tasks"),
    ],
)
def test_configuration_that_contradicts_itself_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        decide(config, {}, {})
