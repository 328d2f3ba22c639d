"""Print a benchmark's table, and write all its figures to a JSON file."""

import json
import os
import platform
import statistics
import sys
from pathlib import Path

import torch


def print_table(rows, figures, file=None):
    """Print a Markdown table, and write the figures to a JSON file.

    Args:
        rows: A dict for each row, all with the same keys; of a list of repeats the median, the
            minimum and the maximum are printed.
        figures: All figures.
        file: The JSON file; None for none.
    """
    lines = [[*rows[0]], ["---"] * len(rows[0])]
    lines += [[*map(format_value, row.values())] for row in rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    machine = describe_machine()
    sys.stdout.write(f"{machine}\n\n{table}\n")
    if file is not None:
        Path(file).write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n")


def format_value(value):
    """Format a cell of the table."""
    if isinstance(value, list):
        text = format_value(float(statistics.median(value)))
        if len(value) == 1:
            return text
        return f"{text} ({format_value(min(value))} to {format_value(max(value))})"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def describe_machine():
    """Describe processor, cores, memory, GPU and versions in one line."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"{memory:.0f} GB, {gpu}, torch {torch.__version__}, Python {platform.python_version()}"
    )
