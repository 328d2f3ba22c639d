"""A benchmark's figures: a table for people, on standard output, and all of them in a file."""

import json
import os
import platform
import statistics
import sys
from pathlib import Path

import torch


def tell(rows, figures, file=None):
    """Write the table, and the figures as JSON where a file was asked for.

    Args:
        rows: A dict for each line of the table, all with the same keys; a list in it stands for
            repeats, of which the median and the spread are shown.
        figures: All that was measured.
        file: Where the JSON goes.
    """
    lines = [[*rows[0]], ["---"] * len(rows[0]), *([*map(show, row.values())] for row in rows)]
    told = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    sys.stdout.write(f"{machine()}\n\n{told}\n")
    if file is not None:
        Path(file).write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n")


def show(value):
    if isinstance(value, list):
        middle = show(float(statistics.median(value)))
        return middle if len(value) == 1 else f"{middle} ({show(min(value))} to {show(max(value))})"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def machine():
    """One line: processor, cores, memory, GPU and versions."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"{memory:.0f} GB, {gpu}, torch {torch.__version__}, Python {platform.python_version()}"
    )
