"""The final status of a run whose process has died is set through its spool, or directly."""

import subprocess
import sys

import pytest

from pyclassify.spool import lock
from pyclassify.spool.dead_run import DeadRun, set_status_directly
from pyclassify.spool.records import REASON_TAG
from pyclassify.spool.spooled_run import SpooledRun
from tests.support.processes import ROOT
from tests.support.spooled import ACQUIRE, close_spool, points
from tests.support.stores import experiment_id


def make_dead(spool, uri=None):
    return DeadRun(spool.run_id, "", spool.root, uri or spool.there.tracking_uri)


def test_close_uploads_the_records_and_sets_status_and_reason(spool):
    spool.client.log_metric(spool.run_id, "loss", 0.5, step=1)
    close_spool(spool.folder)

    assert make_dead(spool).close("FAILED", "SIGKILL")
    run = spool.there.get_run(spool.run_id)
    assert (run.info.status, run.data.tags[REASON_TAG]) == ("FAILED", "SIGKILL")
    assert points(spool.there, spool.run_id, "loss") == [(1, 0.5)]


def test_close_of_a_run_that_another_process_has_locked_changes_nothing(spool):
    acquire = ACQUIRE.format(folder=str(spool.folder))
    code = f"import sys; {acquire}print('locked', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "locked\n"

        assert not make_dead(spool).close("FAILED", "SIGKILL")
        other.communicate("\n")
    assert spool.there.get_run(spool.run_id).info.status == "RUNNING"


def test_close_without_a_server_leaves_the_status_in_the_spool(spool, monkeypatch):
    monkeypatch.setattr("pyclassify.spool.dead_run._UPLOAD_PAUSES_SECONDS", (0.0,))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    assert make_dead(spool, "http://127.0.0.1:9").close("FAILED", "SIGKILL")
    close_spool(spool.folder)
    run = spool.client.get_run(spool.run_id)
    assert (run.info.status, run.data.tags[REASON_TAG]) == ("FAILED", "SIGKILL")


def test_next_attempt_of_a_dead_run_has_no_reason(spool):
    make_dead(spool).close("FAILED", "SIGKILL")
    close_spool(spool.folder)
    written = SpooledRun(spool.folder, spool.there.tracking_uri)
    assert written.upload_thread.wait_until_uploaded(300)
    run = spool.there.get_run(spool.run_id)
    written.close("FINISHED")
    written.release()

    assert run.info.status == "RUNNING"
    assert REASON_TAG not in run.data.tags
    assert lock.find_holder(spool.folder) == ""


@pytest.mark.parametrize("reason", ["SIGKILL", "a 'quoted' reason with ∞"])
def test_status_in_sqlite_is_what_mlflow_reads(reason, store):
    run_id = store.create_run(experiment_id(store)).info.run_id

    for status in ("KILLED", "FAILED"):
        uri = store.tracking_uri.replace("mlflow", "%6Dlflow")  # quoted, as addresses may be
        set_status_directly(uri, run_id, status, reason, 1234)
    run = store.get_run(run_id)
    assert (run.info.status, run.info.end_time) == ("FAILED", 1234)
    assert run.data.tags[REASON_TAG] == reason
