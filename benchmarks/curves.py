"""Measure the time to accuracy of tracked runs, and plot their learning curves.

As in DAWNBench (Coleman et al., 2017) it is the total time: from the start of the run to the end of
the first epoch that reached a validation accuracy, including start-up, validation and tracking. The
figure has the validation accuracy of each run by epoch and by time.
"""

import itertools
import sys

from matplotlib.figure import Figure

from benchmarks.parts import report
from benchmarks.parts.command import BenchmarkParser
from pyclassify.tracking.search import find_run, open_store

COLORS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280")


def read(client, run):
    """Read the accuracy, epoch and minutes since the run's start of each validation.

    Raises:
        ValueError: The run has no validation accuracy.
    """
    found = client.get_metric_history(run.info.run_id, "val_accuracy")
    if not found:
        raise ValueError(f"run {run.info.run_id} has no val_accuracy; give runs of a training")
    epochs = {
        metric.step: int(metric.value) + 1
        for metric in client.get_metric_history(run.info.run_id, "epoch")
    }
    return [
        (metric.value, epochs[metric.step], (metric.timestamp - run.info.start_time) / 60_000)
        for metric in sorted(found, key=lambda metric: metric.step)
    ]


def format_time_to_accuracy(curve, accuracy):
    """Format when a curve first reaches an accuracy."""
    for value, epoch, minutes in curve:
        if value >= accuracy:
            return f"{60 * minutes:,.0f} s (epoch {epoch})"
    return "not reached"


def draw(curves):
    """Plot the curves by epoch and by minutes."""
    figure = Figure(figsize=(10, 4.2), dpi=100, layout="constrained")
    by_epoch, by_time = figure.subplots(1, 2, sharey=True)
    for (name, curve), color in zip(curves.items(), itertools.cycle(COLORS), strict=False):
        accuracies, epochs, minutes = zip(*curve, strict=True)
        values = [100 * accuracy for accuracy in accuracies]
        for axes, positions in ((by_epoch, epochs), (by_time, minutes)):
            axes.plot(positions, values, marker="o", markersize=4, color=color, label=name)
        offset = {"xytext": (6, -3), "textcoords": "offset points", "fontsize": 9}
        by_time.annotate(f"{values[-1]:.1f}", (minutes[-1], values[-1]), color=color, **offset)
    by_epoch.set_ylabel("validation accuracy, %")
    by_epoch.set_xlabel("epoch")
    by_time.set_xlabel("minutes since the run's start")
    by_time.legend(loc="lower right", frameon=False)
    by_time.margins(x=0.08)
    for axes in (by_epoch, by_time):
        axes.set_xlim(left=0)
        axes.grid(color="#d2d6dc", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def find_curves(run_ids, names):
    """Find the curves of runs by name.

    Raises:
        OSError, ValueError: A run does not exist or has no curve, or names are not unique.
    """
    client = open_store()
    runs = [find_run(client, run_id) for run_id in run_ids]
    names = names or [run.info.run_name for run in runs]
    if not len(set(names)) == len(names) == len(runs):
        raise ValueError(
            f"invalid names: {', '.join(names)} (expected {len(runs)} different ones); give --names"
        )
    return {name: read(client, run) for name, run in zip(names, runs, strict=True)}


def main(args=None):
    examples = ("RUN_ID RUN_ID --names AlexNet ResNet", "RUN_ID --accuracy 0.9 --figure curves.png")
    parser = BenchmarkParser("curves", __doc__, examples)
    parser.add_argument("runs", nargs="+", metavar="RUN_ID", help="Compare these runs.")
    parser.add_argument(
        "--accuracy",
        nargs="+",
        type=float,
        default=[0.75, 0.85, 0.9],
        help="Measure the time to these validation accuracies.",
    )
    parser.add_argument("--names", nargs="+", help="Label the runs with these names.")
    parser.add_argument(
        "--figure", metavar="FILE", help="Plot the learning curves to this image file."
    )
    parser.add_json_option()
    args = parser.parse_args(sys.argv[1:] if args is None else args)
    try:
        curves = find_curves(args.runs, args.names)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    rows = [
        {"run": name, "epochs": str(curve[-1][1]), "best": f"{max(curve)[0]:.4f}"}
        | {f"{100 * a:g}%": format_time_to_accuracy(curve, a) for a in args.accuracy}
        for name, curve in curves.items()
    ]
    report.print_table(rows, {"curves": curves}, args.json)
    if args.figure:
        draw(curves).savefig(args.figure)


if __name__ == "__main__":
    main()
