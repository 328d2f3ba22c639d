"""Measure images per second of a training, relative to its upper bound and a reference.

The loops are those of benchmarks.parts.loops. Each runs in its own processes, and they alternate.
Rates exclude the first steps (warm-up). If there is a GPU, all loops use it. Other options, such as
--precision and --compile, are passed to benchmarks.parts.loops.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.parts import report
from benchmarks.parts.command import BenchmarkParser
from benchmarks.parts.loops import LOOPS

WARM_UP_STEPS = 3
STEPS = {64: 40, 256: 14, 1024: 8}  # of about the same duration
BASELINES = ("upper_bound", "bare", "reference")


def main(args=None):
    examples = (
        "--batch 64 --processes 1",
        "--batch 1024 --steps 100 --processes 1 --precision bf16-mixed --compile",
    )
    parser = BenchmarkParser("train", __doc__, examples)
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        default=[64, 256, 1024],
        help="Measure with these batch sizes per process.",
    )
    parser.add_argument(
        "--processes",
        type=int,
        nargs="+",
        default=[1, 2],
        help="Measure with these numbers of processes.",
    )
    parser.add_argument(
        "--loops", nargs="+", default=[*LOOPS], choices=[*LOOPS], help="Measure these loops."
    )
    parser.add_argument(
        "--steps", type=int, help="Train for this number of steps (default: by the batch size)."
    )
    parser.add_argument("--repeats", type=int, default=3, help="Repeat each measurement.")
    parser.add_json_option()
    args, options = parser.parse_known_args(args)
    rows = [
        compare(args, batch, processes, options)
        for processes in args.processes
        for batch in args.batch
    ]
    table = [make_row(row) for row in rows]
    report.print_table(table, {"options": options, "rows": rows}, args.json)


def compare(args, batch, processes, options):
    """Run the loops alternately; return images per second, ratios and memory of each repeat."""
    steps = args.steps or STEPS.get(batch, 20)
    rates, memory = ({loop: [] for loop in args.loops} for _ in range(2))
    for repeat in range(args.repeats):
        first = repeat % len(args.loops)
        for loop in args.loops[first:] + args.loops[:first]:
            result = run(loop, processes, ["--batch", batch, "--steps", steps, *options])
            ends = result["step_ends"]
            seconds = ends[-1] - ends[WARM_UP_STEPS - 1]
            rates[loop].append(batch * processes * (len(ends) - WARM_UP_STEPS) / seconds)
            memory[loop].append(result["memory"])
    ratios = {
        loop: [ours / other for ours, other in zip(rates["fit"], rates[loop], strict=True)]
        for loop in BASELINES
        if loop in rates and "fit" in rates
    }
    return {
        "batch": batch,
        "processes": processes,
        "images_per_second": rates,
        "ratios": ratios,
        "memory": memory,
    }


def run(loop, processes, options):
    """Run a loop in its own processes; return its result."""
    with tempfile.TemporaryDirectory() as folder:
        argv = ["-m", "benchmarks.parts.loops", loop, f"{folder}/result.json"]
        argv += ["--processes", processes]
        if processes > 1 and loop != "fit":
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            argv = [*launcher, processes, *argv]
        root = str(Path(__file__).parents[1])
        process = subprocess.run(
            [sys.executable, *map(str, argv), *map(str, options)],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
                "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
                "OMP_NUM_THREADS": str(max(len(os.sched_getaffinity(0)) // processes, 1)),
                # pyclassify sets it, so the upper bound needs it too.
                "THP_MEM_ALLOC_ENABLE": str(int(loop in ("fit", "upper_bound"))),
            },
            capture_output=True,
            text=True,
        )
        if process.returncode:
            stderr = process.stderr[-4000:]
            raise RuntimeError(f"{loop} failed with exit code {process.returncode}:\n{stderr}")
        return json.loads(Path(folder, "result.json").read_text())


def make_row(figures):
    """Make a row of the table: images per second, and their ratios."""
    ratios = {f"fit / {loop}": values for loop, values in figures["ratios"].items()}
    peak = max(memory["host"] for memory in figures["memory"].get("fit", [{"host": 0}])) / 1e9
    return {
        "batch": figures["batch"],
        "processes": figures["processes"],
        **figures["images_per_second"],
        **ratios,
        "memory of fit, GB": peak,
    }


if __name__ == "__main__":
    main()
