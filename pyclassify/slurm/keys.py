"""The keys of the backend's configuration.

The fields of `Config` are the keys. Each says what it means, in which unit, and which option of
sbatch it becomes; the errors and docs/slurm.md are made of that.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from pyclassify.slurm import values
from pyclassify.slurm.values import Kind


def _key(kind: Kind, meaning: str, unit: str = "", option: str = "", default: Any = None) -> Any:
    facts = {"kind": kind, "meaning": meaning, "unit": unit, "option": option}
    return field(default=default, metadata=facts)


@dataclass(frozen=True)
class Config:
    """A valid configuration; None where a key is not given."""

    job_name: str | None = _key(values.NAME, "the job's name; the project's else", "", "--job-name")
    partition: str | None = _key(values.TEXT, "the partition (queue)", "", "--partition")
    account: str | None = _key(values.TEXT, "who pays", "", "--account")
    qos: str | None = _key(values.TEXT, "the quality of service", "", "--qos")
    reservation: str | None = _key(values.TEXT, "the reservation", "", "--reservation")
    constraint: str | None = _key(values.TEXT, "features of the nodes", "", "--constraint")
    nodelist: str | None = _key(values.TEXT, "nodes that must be there", "", "--nodelist")
    exclude: str | None = _key(values.TEXT, "nodes that must not", "", "--exclude")
    nodes: int | None = _key(values.FROM_ONE, "checked against -P num_nodes", "nodes")
    ntasks_per_node: int | None = _key(
        values.FROM_ONE, "checked against -P devices", "processes a node"
    )
    gpus: int | None = _key(
        values.FROM_NONE, "checked against num_nodes x devices; 0 for none", "GPUs in all"
    )
    gpus_per_task: int | None = _key(
        values.FROM_ONE, "checked: each process has one", "GPUs a process"
    )
    cpus_per_task: int | None = _key(
        values.FROM_ONE, "for each process, by srun too", "cores a process", "--cpus-per-task"
    )
    mem: str | None = _key(values.MEMORY, "memory of each node; 0 for all", "MB a node", "--mem")
    time: str | None = _key(values.TIME, "the time limit", "minutes, or a clock's", "--time")
    output: str = _key(
        values.FILE, "where stdout goes, in the run's folder", "", "--output", "%x-%j.out"
    )
    error: str = _key(
        values.FILE, "where stderr goes, in the run's folder", "", "--error", "%x-%j.err"
    )
    exclusive: bool | str | None = _key(
        values.EXCLUSIVE, "whether to share the nodes with no other job", "", "--exclusive"
    )
    dependency: str | None = _key(values.TEXT, "what must have ended", "", "--dependency")
    signal: str | None = _key(
        values.SIGNAL, "a warning before the time limit", "seconds before", "--signal"
    )
    requeue: bool | None = _key(
        values.FLAG,
        "whether the job starts again to go on: where the training, told before the time limit, "
        "leaves with exit code 75, and by SLURM itself after a preemption or the loss of a node",
        "",
        "--requeue",
    )
    requeue_seconds: int | None = _key(
        values.WARNING,
        "how long before the time limit a job with requeue is told to save and leave (default: "
        "120); SLURM may be a minute early",
        "seconds",
    )
    requeue_attempts: int | None = _key(
        values.FROM_ONE,
        "how many times a job with requeue may start in all (default: 100)",
        "starts",
    )
    mail_type: str | None = _key(values.MAIL, "when to write a mail", "", "--mail-type")
    mail_user: str | None = _key(values.TEXT, "to whom", "", "--mail-user")
    sbatch_args: tuple[str, ...] = _key(
        values.LINES, 'more options of sbatch, each "--name=value"', default=()
    )
    modules: tuple[str, ...] = _key(values.LINES, "modules to load, in this order", default=())
    setup: tuple[str, ...] = _key(
        values.LINES, "lines of bash, after the modules, before the environment", default=()
    )
    environment: str | None = _key(
        values.TEXT,
        "a conda environment's name or prefix, a virtualenv's path, or none; wins over "
        "--env-manager",
    )
    container: str | None = _key(
        values.TEXT, "an Apptainer image to run in, by --nv; in place of an environment"
    )
    exports: tuple[tuple[str, str | None], ...] = _key(
        values.EXPORTS, "variables of the job", default=()
    )
    srun_args: tuple[str, ...] = _key(values.LINES, "more options of srun", default=())
    work_dir: str | None = _key(
        values.TEXT,
        "a folder that compute nodes see, for a folder of each run; beside the folder of the "
        "submission else",
    )
    tracking: str = _key(
        values.TRACKING,
        "how the job tells MLflow what it logs: to the server, or into the folder of the run, for "
        "`pyclassify sync` where nodes have no network",
        default="direct",
    )
    wait: bool = _key(values.FLAG, "whether to wait for the job's end", default=False)

    @property
    def warning(self) -> int:
        """How many seconds before its time limit a job with requeue is told."""
        return 120 if self.requeue_seconds is None else self.requeue_seconds

    @property
    def attempts(self) -> int:
        """How many times a job may start in all."""
        if not self.requeue:
            return 1
        return 100 if self.requeue_attempts is None else self.requeue_attempts


KEYS = {each.name: each for each in fields(Config)}


def table() -> Iterator[str]:
    """The keys as a table in Markdown, for docs/slurm.md."""
    yield "| key | what it is | unit | it takes | sbatch's |"
    yield "|---|---|---|---|---|"
    for name, each in KEYS.items():
        facts = each.metadata
        default = f" (default: `{each.default}`)" if isinstance(each.default, str) else ""
        option = f"`{facts['option']}`" if facts["option"] else ""
        cells = (
            f"`{name}`",
            facts["meaning"] + default,
            facts["unit"],
            facts["kind"].takes,
            option,
        )
        yield f"| {' | '.join(cells)} |"
