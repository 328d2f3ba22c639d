"""The GPUs of a job: the options that request them, and whether the partition has them.

SLURM calls GPUs generic resources (GRES), which may have a type: `gpu:a100:2` are two of type a100.
A site may require the type ("gpu_type"), or that `--gres` requests the GPUs ("gpu_option").
"""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches

from pyclassify.slurm import client
from pyclassify.slurm.config import Config
from pyclassify.slurm.states import SlurmError
from pyclassify.slurm.topology import Topology
from pyclassify.utils.text import join_some

_NO_TYPE = ""
_GPU = re.compile(r"gpu(?::(?P<type>[^:]+))?:(?P<count>\d+)")
_NOT_COUNTED = re.compile(r"\([^)]*\)|:no_consume")  # the sockets that sinfo lists: gpu:2(S:0,1)
_GRES = "--gres="

# The GPUs of each node, or of each kind of node, by type; by partition.
_Offer = Mapping[str, list[dict[str, int]]]


@dataclass(frozen=True)
class PartitionGres:
    """The resources of nodes of a partition: a row of sinfo, which has one for each kind of node.

    Args:
        partition: The partition.
        is_default: Whether jobs without a partition run there.
        gres: Generic resources in SLURM's form, such as `gpu:a100:2,gpu:v100:2`.
    """

    partition: str
    is_default: bool
    gres: str


def list_gpu_options(config: Config, topology: Topology) -> list[str]:
    """List the options of sbatch that request a job's GPUs.

    Only the last `--gres` counts, so the one for GPUs includes those of the configuration.
    """
    if not topology.gpus:
        return []
    kind = f"{config.gpu_type}:" if config.gpu_type else ""
    if config.gpu_option == "gres":
        options = [option for option in config.sbatch_args if option.startswith(_GRES)]
        others = [option.removeprefix(_GRES) for option in options]
        return [_GRES + ",".join([f"gpu:{kind}{topology.gpus}", *others])]
    return [
        f"--gpus={kind}{topology.nodes * topology.gpus}",
        f"--gpus-per-node={kind}{topology.gpus}",
    ]


def list_other_options(config: Config, topology: Topology) -> list[str]:
    """List the configuration's options of sbatch, without those in `list_gpu_options`."""
    if any(option.startswith(_GRES) for option in list_gpu_options(config, topology)):
        return [option for option in config.sbatch_args if not option.startswith(_GRES)]
    return [*config.sbatch_args]


def check_offer(config: Config, topology: Topology) -> None:
    """Check that the job's partition has the GPUs that the job requests.

    Where sinfo does not list the GPUs of the partition, the check is left to sbatch.

    Args:
        config: The configuration.
        topology: Nodes, processes and GPUs.

    Raises:
        ValueError: No node of the partition has this type or number of GPUs.
    """
    if not topology.gpus:
        return
    with suppress(SlurmError):
        rows = client.list_gres(_find_clusters(config))
        offered = [PartitionGres(name.rstrip("*"), name.endswith("*"), gres) for name, gres in rows]
        partitions = config.partition or os.environ.get("SBATCH_PARTITION", "")
        if not partitions and client.has_job_submit_plugins():  # these may choose any of them
            partitions = ",".join(row.partition for row in offered)
        check_partitions(config, topology, offered, partitions)


def check_partitions(
    config: Config, topology: Topology, offered: Iterable[PartitionGres], partitions: str
) -> None:
    """Check the GPUs that a job requests against those of each partition.

    Args:
        config: The configuration.
        topology: Nodes, processes and GPUs, at least one GPU.
        offered: The resources of the cluster's partitions.
        partitions: The partitions that the job may start in, with commas; empty for the default.

    Raises:
        ValueError: No node of these partitions has this type or number of GPUs.
    """
    names = partitions.split(",")
    offer: dict[str, list[dict[str, int]]] = {}
    chosen = []
    for row in offered:
        gpus = parse_gpus(row.gres)
        offer.setdefault(row.partition, []).append(gpus)
        if row.partition in names or (not partitions and row.is_default):
            chosen.append(row.partition)
    if not chosen or not any(any(nodes) for nodes in offer.values()):
        return  # sbatch reports an unknown partition; or sinfo lists no GPUs at all
    nodes = [node for name in dict.fromkeys(chosen) for node in offer[name]]
    subject = f"partition {join_some([*dict.fromkeys(chosen)])}"
    if config.gpu_type is not None and not any(config.gpu_type in node for node in nodes):
        raise ValueError(_format_missing_type(config.gpu_type, subject, nodes, offer))
    max_gpus = max(count_gpus(node, config.gpu_type) for node in nodes)
    if max_gpus < topology.gpus:
        elsewhere = _list_partitions(offer, config.gpu_type, topology.gpus)
        message = _format_too_few(config.gpu_type, subject, topology.gpus, max_gpus, elsewhere)
        raise ValueError(message)


def parse_gpus(gres: str) -> dict[str, int]:
    """Parse the GPUs of a node from the column %G of sinfo.

    Returns:
        The number of GPUs of each type; the type may be empty.

    Example:
        >>> parse_gpus("gpu:a100:2(S:0,2),gpu:v100:1,tmpfs:1T")
        {'a100': 2, 'v100': 1}
    """
    gpus: dict[str, int] = {}
    for text in _NOT_COUNTED.sub("", gres).split(","):
        if match := _GPU.fullmatch(text.strip()):
            kind = match["type"] or _NO_TYPE
            gpus[kind] = gpus.get(kind, 0) + int(match["count"])
    return gpus


def count_gpus(gpus: Mapping[str, int], gpu_type: str | None) -> int:
    """Count the GPUs of a type on a node; those of all types where it is None."""
    return sum(gpus.values()) if gpu_type is None else gpus.get(gpu_type, 0)


def _find_clusters(config: Config) -> str:
    """The clusters that the job may be submitted to; empty for the one of this host."""
    prefix = "--clusters="
    options = [option for option in config.sbatch_args if option.startswith(prefix)]
    return options[-1].removeprefix(prefix) if options else ""


def _list_partitions(offer: _Offer, gpu_type: str | None, count: int) -> list[str]:
    """List the partitions with nodes that have at least this number of GPUs of a type."""
    return [
        name
        for name, nodes in offer.items()
        if max(count_gpus(node, gpu_type) for node in nodes) >= count
    ]


def _format_missing_type(
    gpu_type: str,
    subject: str,
    nodes: list[dict[str, int]],
    offer: _Offer,
) -> str:
    types = sorted({kind for node in nodes for kind in node if kind != _NO_TYPE})
    near = _find_nearest(gpu_type, types)
    given = f"gpu_type is {gpu_type!r} in the backend config"
    elsewhere = _list_partitions(offer, gpu_type, 1)
    hint = f"another partition, such as {elsewhere[0]}, which has it" if elsewhere else ""
    if types:
        nearest = f". Did you mean {near!r}?" if near else ""
        alternative = hint and f"; give one of these, or {hint}"
        return f"{given}, but {subject} has only {', '.join(types)}{alternative}{nearest}"
    if any(nodes):
        alternative = hint and f", or give {hint}"
        return f"{given}, but the GPUs of {subject} have no type; remove gpu_type{alternative}"
    hint = hint or f"a partition with GPUs: {join_some(_list_partitions(offer, None, 1))}"
    return f"{given}, but {subject} has no GPUs; give {hint}"


def _find_nearest(gpu_type: str, types: list[str]) -> str:
    """Find the nearest type; types are case sensitive, and one may be a part of a name."""
    lower = {kind.lower(): kind for kind in types}
    near = get_close_matches(gpu_type.lower(), lower, n=1)
    parts = [kind for kind in lower if gpu_type.lower() in kind or kind in gpu_type.lower()]
    return next((lower[kind] for kind in (*near, *parts)), "")


def _format_too_few(
    gpu_type: str | None, subject: str, requested: int, max_gpus: int, elsewhere: list[str]
) -> str:
    kind = f" of type {gpu_type}" if gpu_type else ""
    hint = f", or another partition, such as {elsewhere[0]}" if elsewhere else ""
    if not max_gpus:
        hint = hint.removeprefix(", or ") or "a partition that has them"
        return (
            f"{subject} has no GPUs, but the job requests {requested} on each node; give {hint}, "
            "or -P accelerator=cpu"
        )
    return (
        f"the job requests {requested} GPUs{kind} on each node, but a node of {subject} has at "
        f"most {max_gpus}; give fewer -P devices and more -P num_nodes{hint}"
    )
