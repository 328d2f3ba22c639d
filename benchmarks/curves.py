"""Time to accuracy: when tracked runs came to 75%, 85% and 90% of their validation images.

    python -m benchmarks.curves RUN_ID [RUN_ID ...] [--accuracy 0.75 0.85 0.9] [--picture FILE]

As DAWNBench (Coleman et al., 2017) has it, the time is all of it: from the run's first moment to
the end of the first epoch that reached an accuracy, its start, validation and tracking included.
The picture has the validation accuracy of each run by epoch and by time.
"""

import argparse
import itertools

from matplotlib.figure import Figure

from benchmarks.parts import report
from pyclassify.tracking.search import find_run, open_store

COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280")


def read(client, run):
    """At each validation of a run its accuracy, its epoch and the minutes since the run's start.

    Raises:
        ValueError: The run has none.
    """
    found = client.get_metric_history(run.info.run_id, "val_accuracy")
    if not found:
        raise ValueError(f"run {run.info.run_id} has no val_accuracy; give runs of a training")
    epochs = {
        each.step: int(each.value) + 1
        for each in client.get_metric_history(run.info.run_id, "epoch")
    }
    return [
        (each.value, epochs[each.step], (each.timestamp - run.info.start_time) / 60_000)
        for each in sorted(found, key=lambda each: each.step)
    ]


def reach(curve, accuracy):
    """When a curve first comes to an accuracy, in words."""
    for value, epoch, minutes in curve:
        if value >= accuracy:
            return f"{60 * minutes:,.0f} s (epoch {epoch})"
    return "not reached"


def draw(curves):
    """The curves side by side, by epoch and by minutes."""
    figure = Figure(figsize=(10, 4.2), dpi=100, layout="constrained")
    by_epoch, by_time = figure.subplots(1, 2, sharey=True)
    for (name, curve), colour in zip(curves.items(), itertools.cycle(COLOURS), strict=False):
        accuracies, epochs, minutes = zip(*curve, strict=True)
        values = [100 * each for each in accuracies]
        for axes, places in ((by_epoch, epochs), (by_time, minutes)):
            axes.plot(places, values, marker="o", markersize=4, color=colour, label=name)
        beside = {"xytext": (6, -3), "textcoords": "offset points", "fontsize": 9}
        by_time.annotate(f"{values[-1]:.1f}", (minutes[-1], values[-1]), color=colour, **beside)
    by_epoch.set_ylabel("validation images recognised, %")
    by_epoch.set_xlabel("epoch")
    by_time.set_xlabel("minutes since the run's start")
    by_time.legend(loc="lower right", frameon=False)
    by_time.margins(x=0.08)
    for axes in (by_epoch, by_time):
        axes.set_xlim(left=0)
        axes.grid(color="#d2d6dc", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def find(asked, names):
    """The curves of runs by name.

    Raises:
        OSError, ValueError: There is no such run, it has no curve, or a name is another's too.
    """
    client = open_store()
    runs = [find_run(client, each) for each in asked]
    names = names or [run.info.run_name for run in runs]
    if not len(set(names)) == len(names) == len(runs):
        raise ValueError(f"{len(runs)} runs are called {names}; give --names, another for each")
    return {name: read(client, run) for name, run in zip(names, runs, strict=True)}


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN_ID")
    parser.add_argument("--accuracy", nargs="+", type=float, default=[0.75, 0.85, 0.9])
    parser.add_argument("--names", nargs="+", help="what the runs are called, instead of their own")
    parser.add_argument("--picture", help="a file for the learning curves")
    parser.add_argument("--json", help="a file for all figures")
    given = parser.parse_args(args)
    try:
        curves = find(given.runs, given.names)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    rows = [
        {"run": name, "epochs": str(curve[-1][1]), "best": f"{max(curve)[0]:.4f}"}
        | {f"{100 * accuracy:g}%": reach(curve, accuracy) for accuracy in given.accuracy}
        for name, curve in curves.items()
    ]
    report.tell(rows, {"curves": curves}, given.json)
    if given.picture:
        draw(curves).savefig(given.picture)


if __name__ == "__main__":
    main()
