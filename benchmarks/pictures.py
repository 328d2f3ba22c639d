"""Make the pictures of the README and of the pages in docs, from real runs.

Three recipes are trained for two epochs in a clone of the last commit, on the synthetic dataset or
on 5,000 images of a folder. Then the pages of `mlflow ui` and the output of commands are taken. A
run is submitted to the tests' private cluster (as root, with Debian's packages).

The pictures of docs/accuracy.md are of longer trainings. `--runs` makes them from finished runs of
the store in the current folder.
"""

import contextlib
import sys
import tempfile
import time
from functools import cached_property
from pathlib import Path

from mlflow.artifacts import download_artifacts

from benchmarks import curves
from benchmarks.parts import demo_job, screenshots, terminal
from benchmarks.parts.command import BenchmarkParser
from benchmarks.parts.demo import RECIPES, ROOT, Demo, find_run_id
from benchmarks.parts.mlflow_pages import MlflowPages
from pyclassify.tracking.search import find_run, open_store
from tests.support.browser import mlflow_ui, visit

# Each picture: the page that shows it, and what it shows.
PICTURES = {
    "run": ("README.md", "the page of a run"),
    "recipes": ("docs/comparing.md", "the table of three recipes"),
    "compare-page": ("docs/comparing.md", "the page that compares them"),
    "compare": ("docs/comparing.md", "the output of `pyclassify compare`"),
    "confusion": ("docs/runs.md", "the confusion matrix of a run"),
    "slurm-run": ("docs/slurm.md", "the life of a run on a cluster"),
    "curves": ("docs/accuracy.md", "learning curves"),
    "accuracy-confusion": ("docs/accuracy.md", "the confusion matrix of the last of --runs"),
}
OF_GIVEN_RUNS = ("curves", "accuracy-confusion")
OF_TRAINED_RUNS = tuple(name for name in PICTURES if name not in OF_GIVEN_RUNS)
_SHOWN = "alexnet-bn"  # the recipe whose run is shown
_COMPARED = ("resnet18", "alexnet")


class PictureMaker:
    """Make pictures, each by the method of its name.

    Args:
        demo: Where runs are trained; those that are there are not trained again.
        stack: Ends the browser and the server, which start when a picture needs them.
        runs: The IDs of runs in the current folder's store, for pictures of given runs.
    """

    def __init__(self, demo, stack, runs=()):
        self.demo, self.stack, self.runs = demo, stack, runs

    @cached_property
    def visitor(self):
        return self.stack.enter_context(visit("", device_scale_factor=screenshots.SCALE))

    @cached_property
    def pages(self):
        command = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --workers 1"
        server = mlflow_ui(command, self.demo.project)
        self.visitor.address = self.stack.enter_context(server)
        return MlflowPages(self.demo, self.visitor)

    def make(self, name):
        """Make a picture; return its PNG."""
        return screenshots.shrink(getattr(self, f"_make_{name.replace('-', '_')}")())

    def _make_run(self):
        output = self.demo.train(_SHOWN)
        return self.pages.take_run(output)

    def _make_recipes(self):
        outputs = self.demo.train_all()
        return self.pages.take_table(outputs[_SHOWN])

    def _make_compare_page(self):
        output = self._compare(RECIPES)
        return self.pages.take_comparison(output)

    def _make_compare(self):
        output = self._compare(_COMPARED)
        ids = " ".join(find_run_id(self.demo.train(recipe))[:8] for recipe in _COMPARED)
        return take_terminal(self.visitor.page, [(f"pyclassify compare {ids}", output)])

    def _compare(self, recipes):
        ids = [find_run_id(self.demo.train(recipe))[:8] for recipe in recipes]
        return self.demo.run(f"pyclassify compare {' '.join(ids)}", COLUMNS=str(terminal.COLUMNS))

    def _make_confusion(self):
        run_id = find_run_id(self.demo.train(_SHOWN))
        return read_confusion_matrix(run_id, self.demo.tracking_uri)

    def _make_slurm_run(self):
        with demo_job.start_cluster() as cluster:
            session = demo_job.JobSession(self.demo, cluster).record()
        return take_terminal(self.visitor.page, session)

    def _make_curves(self):
        with tempfile.TemporaryDirectory() as folder:
            curves.main([*self.runs, "--figure", f"{folder}/curves.png"])
            return Path(folder, "curves.png").read_bytes()

    def _make_accuracy_confusion(self):
        return read_confusion_matrix(find_run(open_store(), self.runs[-1]).info.run_id)


def take_terminal(page, session):
    """Take a session of commands and their output as a terminal.

    Args:
        page: Playwright's page.
        session: Pairs of a command line and its output.
    """
    page.set_viewport_size({"width": 1000, "height": 400})
    page.set_content(terminal.render_terminal(session))
    return page.locator("main").screenshot(omit_background=True)


def read_confusion_matrix(run_id, tracking_uri=None):
    """Read the figure of a run's confusion matrix."""
    with tempfile.TemporaryDirectory() as folder:
        path = download_artifacts(
            run_id=run_id,
            artifact_path="confusion_matrix.png",
            dst_path=folder,
            tracking_uri=tracking_uri,
        )
        return Path(path).read_bytes()


def make_parser():
    parser = BenchmarkParser(
        "pictures",
        __doc__,
        (
            "--data FOLDER",
            "--data FOLDER --only run compare",
            "--only curves accuracy-confusion --runs RUN_ID RUN_ID",
        ),
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="Train on the images of this folder, in train/CLASS/ and test/CLASS/ (default: the "
        "synthetic dataset).",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PICTURES,
        metavar="NAME",
        help=f"Make these pictures (default: {', '.join(OF_TRAINED_RUNS)}).",
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs", help="Write the pictures to this folder."
    )
    parser.add_argument(
        "--home",
        type=Path,
        default=Path(tempfile.gettempdir(), "pyclassify-demo"),
        help="Keep the clone and its runs in this folder; runs that are there are used again.",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        default=(),
        metavar="RUN_ID",
        help="Make the pictures of these runs.",
    )
    return parser


def main(args=None):
    parser = make_parser()
    args = parser.parse_args(sys.argv[1:] if args is None else args)
    names = args.only or (OF_GIVEN_RUNS if args.runs else OF_TRAINED_RUNS)
    if lacking := [name for name in names if name in OF_GIVEN_RUNS and not args.runs]:
        parser.error(f"{', '.join(lacking)} needs --runs RUN_ID")
    if args.data and not all((args.data / split).is_dir() for split in ("train", "test")):
        parser.error(f"invalid --data: {args.data} (expected a folder with train/ and test/)")
    args.output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        maker = PictureMaker(Demo(args.home, args.data), stack, args.runs)
        for name in names:
            started = time.monotonic()
            path = args.output / f"{name}.png"
            path.write_bytes(maker.make(name))
            seconds = time.monotonic() - started
            sys.stdout.write(f"{path}: {path.stat().st_size:,} bytes, {seconds:.0f} s\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
