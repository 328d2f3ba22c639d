"""Images a second of the whole training loop, beside its ceiling and the course's way.

    python -m benchmarks.train [--batch 64 256 1024] [--processes 1 2] [--repeats 3] [--json FILE]

The ways are those of benchmarks.parts.loops; each is its own process (or several), and they take
turns. Rates are from the first steps, which warm up, to the last. Where there is a GPU, all run on
it: --precision bf16-mixed --compile --batch 1024 --steps 100 is for one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.parts import report
from benchmarks.parts.loops import WAYS

WARM_UP = 3  # steps
STEPS = {64: 40, 256: 14, 1024: 8}  # about as long for each
OVER = ("ceiling", "bare", "reference")


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=[*WAYS])
    parser.add_argument("--steps", type=int, help="of each way")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="a file for all figures")
    given, options = parser.parse_known_args(args)  # the others are those of benchmarks.parts.loops
    rows = [
        compare(given, batch, processes, options)
        for processes in given.processes
        for batch in given.batch
    ]
    report.tell([row_of(each) for each in rows], {"options": options, "rows": rows}, given.json)


def compare(given, batch, processes, options):
    """Run the ways in turns; returns their images a second, ratios and memory, of each repeat."""
    steps = given.steps or STEPS.get(batch, 20)
    rates, memory = ({way: [] for way in given.ways} for _ in range(2))
    for turn in range(given.repeats):
        for way in given.ways[turn % len(given.ways) :] + given.ways[: turn % len(given.ways)]:
            told = run(way, processes, ["--batch", batch, "--steps", steps, *options])
            ended = told["ended"]
            seconds = ended[-1] - ended[WARM_UP - 1]
            rates[way].append(batch * processes * (len(ended) - WARM_UP) / seconds)
            memory[way].append(told["memory"])
    ratios = {
        way: [ours / other for ours, other in zip(rates["fit"], rates[way], strict=True)]
        for way in OVER
        if way in rates and "fit" in rates
    }
    return {
        "batch": batch,
        "processes": processes,
        "images_per_second": rates,
        "ratios": ratios,
        "memory": memory,
    }


def run(way, processes, options):
    with tempfile.TemporaryDirectory() as own:
        words = ["-m", "benchmarks.parts.loops", way, f"{own}/told.json", "--processes", processes]
        if processes > 1 and way != "fit":
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            words = [*launcher, processes, *words]
        root = str(Path(__file__).parents[1])
        ended = subprocess.run(
            [sys.executable, *map(str, words), *map(str, options)],
            cwd=own,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
                "MLFLOW_TRACKING_URI": f"sqlite:///{own}/mlflow.db",
                "OMP_NUM_THREADS": str(max(len(os.sched_getaffinity(0)) // processes, 1)),
                # pyclassify's choice, which its ceiling is to have too
                "THP_MEM_ALLOC_ENABLE": str(int(way in ("fit", "ceiling"))),
            },
            capture_output=True,
            text=True,
        )
        if ended.returncode:
            raise RuntimeError(f"{way} ended with {ended.returncode}:\n{ended.stderr[-4000:]}")
        return json.loads(Path(own, "told.json").read_text())


def row_of(figures):
    """A line of the table: images a second, and the medians of the ratios within each repeat."""
    ratios = {f"fit / {way}": values for way, values in figures["ratios"].items()}
    peak = max(each["host"] for each in figures["memory"].get("fit", [{"host": 0}])) / 1e9
    return {
        "batch": figures["batch"],
        "processes": figures["processes"],
        **figures["images_per_second"],
        **ratios,
        "fit's memory, GB": peak,
    }


if __name__ == "__main__":
    main()
