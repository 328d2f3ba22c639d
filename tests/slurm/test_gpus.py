"""The GPUs of a job: what a partition has, and what is refused before a submission."""

import pytest

from pyclassify.slurm import gpus
from pyclassify.slurm.config import parse_config
from pyclassify.slurm.gpus import PartitionGres
from pyclassify.slurm.topology import Topology
from tests.support import slurm_jobs
from tests.support.phrases import mentions

MIG = "nvidia_h100_80gb_hbm3_1g.10gb"
OFFERED = [
    PartitionGres("main", True, "gpu:4(S:0-1)"),
    PartitionGres("typed", False, "gpu:a100:2(S:0),gpu:v100:2(S:1)"),
    PartitionGres("typed", False, f"gpu:a100:4(S:0,1),gpu:{MIG}:7,tmpfs:1T"),
    PartitionGres("cpu", False, "(null)"),
]


def check(config, devices, partitions="typed"):
    parsed = parse_config(config)
    gpus.check_partitions(parsed, Topology(1, devices, devices), OFFERED, partitions)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(null)", {}),
        ("", {}),
        ("gpu:4", {"": 4}),
        ("gpu:a100:2,gpu:v100:2", {"a100": 2, "v100": 2}),
        ("gpu:a100:2(S:0,2),gpu:v100:1(S:1)", {"a100": 2, "v100": 1}),
        (f"gpu:{MIG}:7(S:0-1),gpu:a100:no_consume:1", {MIG: 7, "a100": 1}),
        ("gpu:3090:2", {"3090": 2}),
        ("gpu:a100:1,gpu:a100:1", {"a100": 2}),
        ("shard:a100:8,mps:100,gpu:a100:2,tmpfs:1T", {"a100": 2}),
    ],
)
def test_parse_gpus_of_each_form_of_sinfo(text, expected):
    assert gpus.parse_gpus(text) == expected


@pytest.mark.parametrize(
    ("config", "devices", "partitions"),
    [
        ({}, 4, ""),
        ({}, 4, "typed"),
        ({"gpu_type": "a100"}, 4, "typed"),
        ({"gpu_type": MIG, "gpu_option": "gres"}, 7, "typed"),
        ({"gpu_type": "v100"}, 2, "main,typed"),
        ({"gpu_type": "v100"}, 9, "nowhere"),  # which sbatch reports
    ],
)
def test_check_passes_what_a_partition_has(config, devices, partitions):
    check(config, devices, partitions)


@pytest.mark.parametrize(
    ("config", "devices", "partitions", "facts"),
    [
        (
            {"gpu_type": "A100"},
            1,
            "typed",
            (
                "gpu_type is 'A100' ",
                "partition typed",
                "Did you mean 'a100'?",
                f"a100, {MIG}, v100",
            ),
        ),
        ({"gpu_type": "1g.10gb"}, 1, "typed", (f"Did you mean '{MIG}'?",)),
        ({"gpu_type": "h200"}, 1, "typed", (f"partition typed has only a100, {MIG}, v100",)),
        ({"gpu_type": "a100"}, 1, "", ("partition main", "no type", "remove gpu_type", "typed")),
        ({"gpu_type": "a100"}, 1, "cpu", ("partition cpu", "no GPUs", "typed")),
        ({"gpu_type": "a1000"}, 1, "cpu", ("partition cpu", "no GPUs", "main, typed")),
        ({"gpu_type": "v100"}, 4, "typed", ("4 GPUs of type v100", "at most 2", "-P num_nodes")),
        ({}, 8, "main", ("8 GPUs", "at most 4", "-P num_nodes", "typed")),
        ({}, 1, "cpu", ("partition cpu", "no GPUs", "main", "-P accelerator=cpu")),
    ],
)
def test_check_refuses_what_no_node_has_and_names_what_there_is(config, devices, partitions, facts):
    with pytest.raises(ValueError, match="partition") as error:
        check(config, devices, partitions)
    assert mentions(str(error.value), *facts)
    assert "\n" not in str(error.value)


def test_check_of_a_cluster_that_shows_no_gpus_is_left_to_sbatch():
    rows = [PartitionGres("main", True, "(null)")]
    gpus.check_partitions(parse_config({"gpu_type": "a100"}), Topology(1, 1, 1), rows, "")


def test_check_asks_sinfo_of_the_jobs_cluster_and_default_partition(monkeypatch, tmp_path):
    slurm_jobs.prepend_to_path(monkeypatch, tmp_path)
    monkeypatch.setenv("SINFO_PARTITION", "elsewhere")
    code = "import os, sys\nassert 'SINFO_PARTITION' not in os.environ\n"
    code += "assert sys.argv[sys.argv.index('-M') + 1] == 'west'\n"
    rows = "CLUSTER: west\nmain*|gpu:a100:2\nother|gpu:v100:2\n"
    slurm_jobs.write_program(tmp_path, "sinfo", code + slurm_jobs.make_program(rows))
    show = make_config("(null)")
    slurm_jobs.write_program(tmp_path, "scontrol", show)
    config = parse_config({"gpu_type": "v100", "sbatch_args": ["--clusters=west"]})

    with pytest.raises(ValueError, match=r"partition main has only a100; .* other,"):
        gpus.check_offer(config, Topology(1, 1, 1))
    monkeypatch.setenv("SBATCH_PARTITION", "other")
    gpus.check_offer(config, Topology(1, 1, 1))


def make_config(plugins):
    lines = f"Configuration data\nJobSubmitPlugins        = {plugins}\nKillWait = 30 sec\n"
    return slurm_jobs.make_program(lines)


def test_check_where_a_plugin_may_choose_the_partition_asks_all(monkeypatch, tmp_path):
    slurm_jobs.prepend_to_path(monkeypatch, tmp_path)
    rows = "cpu*|(null)\nother|gpu:v100:2\n"
    slurm_jobs.write_program(tmp_path, "sinfo", slurm_jobs.make_program(rows))
    slurm_jobs.write_program(tmp_path, "scontrol", make_config("lua"))

    gpus.check_offer(parse_config({"gpu_type": "v100"}), Topology(1, 1, 1))
    with pytest.raises(ValueError, match=r"partition cpu, other has only v100"):
        gpus.check_offer(parse_config({"gpu_type": "h100"}), Topology(1, 1, 1))


def test_check_without_sinfo_is_left_to_sbatch(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    gpus.check_offer(parse_config({"gpu_type": "v100"}), Topology(1, 1, 1))
    gpus.check_offer(parse_config({}), Topology(1, 1, 0))
