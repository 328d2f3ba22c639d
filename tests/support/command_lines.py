"""Options that make a run a second long."""

QUIET = "--trainer.enable_progress_bar=false --trainer.enable_model_summary=false"
TINY = "--data.train_size=40 --data.val_size=20 --data.test_size=20 --max_epochs=1"
TINY += " --batch_size=8 --trainer.log_every_n_steps=1"
LINEAR = "--model.model=tests.support.foreign.Linear"
SHAPES = f"--data=SyntheticDataModule {TINY} {LINEAR} {QUIET}"
ERROR = "pyclassify: error: "


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
