"""A training that is disturbed anywhere ends with a true status, and an exit code that agrees."""

import contextlib

import pytest

from pyclassify.cli.main import main
from tests.support import faults
from tests.support.stores import list_runs, new_store
from tests.support.trainings import ERROR, SHAPES
from tests.support.waiting import wait_until

TRAIN = f"train {SHAPES} --trainer.logger.system_metrics=false --accelerator=cpu --register=shapes"
MONITORED = ("SpooledRun.close", "UploadThread.finish")  # without which no status can be set
# What can't be made of some network or data costs a warning, and nothing of these is a disk's.
OPTIONAL = {
    "pyclassify.tracking.record:describe_data",
    "pyclassify.tracking.capsule:write_capsule",
    "pyclassify.tracking.description:describe_start",
    "pyclassify.tracking.ui:log_views",
    "pyclassify.tracking.figures:save_figure",
}
# A run that nothing watches is trained all the same.
HARMLESS = {"pyclassify.tracking.monitor:start"}


def is_worth(place, kind):
    return not (place in HARMLESS and kind == "full disk") and not (
        place in OPTIONAL and kind == "bug"
    )


CASES = [(p, k) for p in faults.PLACES for k in ("full disk", "exit", "bug") if is_worth(p, k)]


def check(code, err, runs, kind):
    """Check that a disturbed training has said so, by its run, its exit code and one line."""
    assert code != 0
    assert len(runs) <= 1
    for run in runs:
        assert run.info.status == "FAILED"
        assert run.data.tags["status_reason"]
        assert "pyclassify.start" not in run.data.tags
    if kind != "bug":
        assert [line for line in err.splitlines() if line.startswith(ERROR)]
        assert "Traceback" not in err


def disturb(place, kind, store, capsys):
    """Train with a fault at a place, and check how that ended."""
    code = 1
    # A bug is raised with its stack trace, except one that was noted until the end.
    raised = contextlib.suppress(*[Exception] * (kind == "bug"))
    with faults.injected(place, kind) as calls, raised:
        code = main(TRAIN.split())
    err = capsys.readouterr().err
    assert calls
    if place.endswith(MONITORED):
        wait_until(lambda: list_runs(store)[0].info.end_time, "the monitor to set the status")
    check(code, err, list_runs(store), kind)


@pytest.mark.parametrize(("place", "kind"), CASES[::12])
def test_fault_in_a_training_fails_its_run(place, kind, store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    disturb(place, kind, store, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full disk", "exit", "bug"])
def test_fault_at_any_place_of_a_training_fails_its_run(
    kind, empty_store, tmp_path, capsys, subtests
):
    places = [place for place, other in CASES if other == kind]
    assert len(places) > 35
    for number, place in enumerate(places):
        folder = tmp_path / str(number)
        with (
            subtests.test(place),
            new_store(empty_store, folder) as store,
            contextlib.chdir(folder),
        ):
            disturb(place, kind, store, capsys)
