"""Launches of a training: their rows in docs/launching.md, and what became of one."""

import json
import re
from pathlib import Path

from mlflow.artifacts import download_artifacts

ROOT = Path(__file__).parents[2]
# What a launcher or a test before may have left.
VARIABLES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK"),
    *("GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"),
    *("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_ID", "SLURM_NTASKS_PER_NODE"),
)


def list_rows(*titles):
    """List the first cells of the tables under some titles of docs/launching.md."""
    text = (ROOT / "docs/launching.md").read_text()
    sections = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", text, re.MULTILINE))
    lines = [line for title in titles for line in sections[title].splitlines()]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| `")]
    return rows + [
        line.split(" | ")[0].removeprefix("| ")
        for line in lines
        if line.startswith("| ") and not line.startswith(("| `", "| launch", "| ---"))
    ]


def count_processes(run):
    """The number of processes that a run says it had, which has finished."""
    assert run.info.status == "FINISHED"
    path = download_artifacts(f"{run.info.artifact_uri}/capsule/capsule.json")
    return json.loads(Path(path).read_text())["hardware"]["processes"]
