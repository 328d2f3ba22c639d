"""Command lines that make a run a second long, and what they are refused with."""

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace

from pyclassify.cli import main
from tests.support.stores import list_runs, using

QUIET = "--trainer.enable_progress_bar=false --trainer.enable_model_summary=false"
TINY = "--data.train_size=40 --data.val_size=20 --data.test_size=20 --max_epochs=1"
TINY += " --batch_size=8 --trainer.log_every_n_steps=1"
LINEAR = "--model.model=tests.support.foreign.Linear"
SHAPES = f"--data=SyntheticDataModule {TINY} {LINEAR} {QUIET}"
ERROR = "pyclassify: error: "


def train_beside(store, options):
    """Train in the folder of a store, for tests that only read what came out.

    It returns what was written to stdout, and the run.
    """
    folder = Path(store.tracking_uri.removeprefix("sqlite:///")).parent
    out = io.StringIO()
    with using(store), contextlib.chdir(folder), contextlib.redirect_stdout(out):
        assert main(["train", *options.split()]) == 0
    return SimpleNamespace(out=out.getvalue(), run=list_runs(store)[0])


def refusal(done):
    """What a command line is refused with: one line, which is all that stderr has."""
    assert (done.code, done.err.count("\n")) == (1, 1), done.err
    assert done.err.startswith(ERROR)
    return done.err.removeprefix(ERROR)


def last_error(done):
    """What a command line ended with, after whatever else was written to stderr."""
    line = done.err.splitlines()[-1]
    assert line.startswith(ERROR)
    return line.removeprefix(ERROR)
