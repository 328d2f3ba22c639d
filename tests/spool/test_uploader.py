"""The upload of a spool is idempotent and loses nothing, whatever fails at the server."""

import os
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Metric

from pyclassify.spool import records
from pyclassify.spool.records import Segment, encode
from pyclassify.spool.upload_thread import UploadThread
from pyclassify.spool.uploader import BUSY, SPOOL_TAG, PendingError, Uploader, exclusive_upload
from pyclassify.spool.writer import open_writer
from tests.support.phrases import mentions
from tests.support.runs import MetaDataset
from tests.support.spooled import points, responding_with, upload_spool
from tests.support.waiting import scale, wait_until


def log_losses(spool, count, first=0):
    steps = range(first, first + count)
    for start in range(0, count, 1000):
        batch = [Metric("loss", step / 8, step, step) for step in steps[start : start + 1000]]
        spool.client.log_batch(spool.run_id, batch)


def test_server_has_all_that_was_logged(spool, tmp_path):
    client, run_id = spool.client, spool.run_id
    log_losses(spool, 2500)
    client.log_param(run_id, "depth", 3)
    client.set_tag(run_id, "gone", "soon")
    upload_spool(spool)
    client.delete_tag(run_id, "gone")
    client.log_text(run_id, "words", "notes/a.txt")
    client.set_terminated(run_id, "FINISHED", end_time=2_000_000_000_000)
    upload_spool(spool)

    run = spool.there.get_run(run_id)
    assert points(spool.there, run_id, "loss") == [(step, step / 8) for step in range(2500)]
    assert run.data.params == {"depth": "3"}
    assert "gone" not in run.data.tags
    assert (run.info.status, run.info.end_time) == ("FINISHED", 2_000_000_000_000)
    path = spool.there.download_artifacts(run_id, "notes/a.txt", str(tmp_path))
    assert Path(path).read_text() == "words"


def test_records_uploaded_twice_are_there_once(spool):
    log_losses(spool, 1500)
    spool.client.log_metric(spool.run_id, "nan", float("nan"), step=1)
    source = mlflow.data.http_dataset_source.HTTPDatasetSource("http://localhost/images")
    dataset = MetaDataset(source, name="images", digest="abc")._to_mlflow_entity()
    spool.client.log_inputs(spool.run_id, [mlflow.entities.DatasetInput(dataset, [])])
    upload_spool(spool)
    (spool.folder / records.PROGRESS_FILE).unlink()
    assert upload_spool(spool) == 4

    assert points(spool.there, spool.run_id, "loss") == [(n, n / 8) for n in range(1500)]
    assert len(spool.there.get_metric_history(spool.run_id, "nan")) == 1
    assert len(spool.there.get_run(spool.run_id).inputs.dataset_inputs) == 1


def test_process_that_ends_may_write_while_the_next_one_does(spool):
    first, second = Segment(spool.folder), Segment(spool.folder)
    line = encode({"kind": "tags", "values": {"a": "b"}})
    second.append(line)
    assert upload_spool(spool) == 1

    first.append(line)
    assert upload_spool(spool) == 1


LONG = "x" * 300  # a name that MLflow rejects


@pytest.mark.parametrize(
    "log",
    [
        lambda client, run_id: client.log_metric(run_id, LONG, 1.0),
        lambda client, run_id: client.set_tag(run_id, LONG, "1"),
        lambda client, run_id: client.log_param(run_id, LONG, "1"),
        lambda client, run_id: client.log_inputs(
            run_id,
            [
                mlflow.entities.DatasetInput(
                    mlflow.entities.Dataset(LONG * 2, "1", "http", "{}"), []
                )
            ],
        ),
    ],
    ids=["metric", "tag", "parameter", "data set"],
)
def test_rejected_record_is_stored_and_the_rest_is_uploaded(log, spool):
    log_losses(spool, 700)
    log(spool.client, spool.run_id)
    log_losses(spool, 700, first=700)
    with pytest.warns(UserWarning, match=f"{spool.run_id}: .*rejected.*{records.REJECTED_FILE}"):
        upload_spool(spool)

    assert points(spool.there, spool.run_id, "loss") == [(n, n / 8) for n in range(1400)]
    (rejected,) = (spool.folder / records.REJECTED_FILE).read_text().splitlines()
    assert LONG in rejected
    assert upload_spool(spool) == 0


def test_run_that_is_deleted_and_restored_loses_nothing(spool):
    log_losses(spool, 10)
    spool.there.delete_run(spool.run_id)
    with pytest.raises(
        mlflow.MlflowException, match=f"mlflow runs restore --run-id {spool.run_id}"
    ):
        upload_spool(spool)

    spool.there.restore_run(spool.run_id)
    assert upload_spool(spool) == 1
    assert len(points(spool.there, spool.run_id, "loss")) == 10


def test_artifacts_that_can_not_be_stored_delay_nothing_else(spool, tmp_path):
    stored = Path(spool.there.get_run(spool.run_id).info.artifact_uri).parent
    stored.parent.mkdir(exist_ok=True)
    stored.touch()  # no folder can be made below a file, not even by root
    spool.client.log_text(spool.run_id, "first", "a.txt")
    log_losses(spool, 10)
    spool.client.log_text(spool.run_id, "second", "b.txt")
    spool.client.set_terminated(spool.run_id, "FINISHED")
    for _ in range(2):
        with pytest.raises(PendingError, match=r"a\.txt: .*Not a directory"):
            upload_spool(spool)
    assert spool.there.get_run(spool.run_id).info.status == "FINISHED"
    assert len(points(spool.there, spool.run_id, "loss")) == 10
    assert not records.is_uploaded(spool.folder)

    stored.unlink()
    upload_spool(spool)
    paths = [file.path for file in spool.there.list_artifacts(spool.run_id)]
    assert paths == ["a.txt", "b.txt"]
    assert records.is_uploaded(spool.folder)


def version_of(path):
    return {"kind": "version", "name": "shapes", "path": path, "tags": {}}


def test_version_is_pending_without_make_version_and_made_of_each_model(spool):
    made = []
    for path in ("model", "model-200"):
        spool.client.log_text(spool.run_id, "weights", f"{path}/MLmodel")
        open_writer(spool.folder).append(version_of(path))
    upload_spool(spool)
    assert not records.is_uploaded(spool.folder)

    uploader = Uploader(spool.folder, spool.there, lambda *args: made.append(args) or "made")
    uploader.upload()
    assert [record["path"] for _, record in made] == ["model", "model-200"]
    assert records.is_uploaded(spool.folder)
    assert uploader.messages == ["made", "made"]


def test_copies_of_a_pending_version_are_not_removed(spool):
    spool.client.log_text(spool.run_id, "weights", "model/MLmodel")
    open_writer(spool.folder).append(version_of("model"))
    uploader = Uploader(spool.folder, spool.there)
    uploader.upload()

    assert not uploader.is_done()
    uploader.remove_copies()
    assert (spool.folder / "artifacts" / "model" / "MLmodel").read_text() == "weights"


def test_no_version_is_made_of_a_model_that_lost_a_file(spool):
    spool.client.log_text(spool.run_id, "weights", "model/program.pt2")
    (spool.folder / "artifacts" / "model" / "program.pt2").unlink()
    open_writer(spool.folder).append(version_of("model"))

    with pytest.warns(UserWarning, match="model lacks model/program.pt2"):
        Uploader(spool.folder, spool.there, pytest.fail).upload()


def test_status_is_not_set_over_a_later_end(spool):
    spool.client.update_run(spool.run_id, status="RUNNING")
    end = int(time.time() * 1000) + 100
    spool.there.set_terminated(spool.run_id, "KILLED", end_time=end)
    upload_spool(spool)
    assert spool.there.get_run(spool.run_id).info.status == "KILLED"

    wait_until(lambda: time.time() * 1000 > end + 1, "the end of the run")
    spool.client.update_run(spool.run_id, status="RUNNING")
    upload_spool(spool)
    assert spool.there.get_run(spool.run_id).info.status == "RUNNING"


def test_run_started_offline_is_made_once(spool):
    run_id = spool.client.create_run("name:created", run_name="mine").info.run_id
    spool.client.log_metric(run_id, "loss", 0.5, step=1)
    folder = spool.root / run_id
    Uploader(folder, spool.there)._make_run()
    (folder / records.PROGRESS_FILE).unlink()  # as if the process had died before it was written
    Uploader(folder, spool.there).upload()

    experiment = spool.there.get_experiment_by_name("created")
    (made,) = spool.there.search_runs([experiment.experiment_id])
    assert (made.info.run_name, made.data.metrics) == ("mine", {"loss": 0.5})
    assert made.data.tags[SPOOL_TAG] == run_id


def test_run_started_offline_goes_to_the_experiment_of_its_number(spool):
    number = spool.there.create_experiment("numbered")
    run_id = spool.client.create_run(number).info.run_id
    Uploader(spool.root / run_id, spool.there).upload()

    (made,) = spool.there.search_runs([number])
    assert made.data.tags[SPOOL_TAG] == run_id


def test_run_started_offline_is_reported_by_its_id_there(spool):
    run_id = spool.client.create_run("name:created").info.run_id
    upload_thread = UploadThread(spool.root / run_id, spool.there.tracking_uri)
    with pytest.warns(UserWarning, match=f"the run {run_id}, ") as warned:
        run_to_the_end(upload_thread)

    made = spool.there.get_run(upload_thread.server_id)
    assert made.data.tags[SPOOL_TAG] == run_id != upload_thread.server_id
    (warning,) = (str(warning.message) for warning in warned)
    assert upload_thread.server_id in warning


def run_to_the_end(upload_thread):
    upload_thread.start()
    assert upload_thread.wait_until_uploaded(scale(30))
    assert upload_thread.finish(scale(30))
    upload_thread.join(scale(10))


def test_upload_continues_when_another_process_has_ended_its_own(spool, recwarn):
    log_losses(spool, 10)
    upload_thread = UploadThread(spool.folder, spool.there.tracking_uri)
    with exclusive_upload(spool.folder):
        upload_thread.start()
        assert not upload_thread.wait_until_uploaded(scale(30))
        assert upload_thread.last_error == BUSY
    assert upload_thread.finish(scale(30))
    upload_thread.join(scale(10))

    assert len(points(spool.there, spool.run_id, "loss")) == 10
    assert not [str(each.message) for each in recwarn if "server" in str(each.message)]


def test_tag_that_was_deleted_before_its_upload_delays_nothing(spool):
    spool.client.set_tag(spool.run_id, "gone", "soon")
    spool.client.delete_tag(spool.run_id, "gone")
    log_losses(spool, 10)
    spool.client.set_terminated(spool.run_id, "FINISHED")
    upload_spool(spool)

    run = spool.there.get_run(spool.run_id)
    assert ("gone" in run.data.tags, run.info.status) == (False, "FINISHED")
    assert len(points(spool.there, spool.run_id, "loss")) == 10


def test_damaged_record_is_reported_and_the_others_are_uploaded(spool):
    log_losses(spool, 3000)
    path = spool.folder / "000001.records"
    content = bytearray(path.read_bytes())
    content[content.index(b"\n") + 30] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="000001.records at byte"):
        assert upload_spool(spool) == 3

    steps = [step for step, _ in points(spool.there, spool.run_id, "loss")]
    assert steps == [*range(1000), *range(2000, 3000)]


def test_worker_forked_during_an_upload_does_not_hold_its_lock(spool):
    with exclusive_upload(spool.folder):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with exclusive_upload(spool.folder):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def log_and_finish(spool, upload_thread):
    """Log before and after the first upload fails."""
    upload_thread.start()
    for step in range(20):
        log_losses(spool, 1, first=step)
        if step == 10:
            wait_until(lambda: upload_thread.last_error, "the failed upload")
    assert not upload_thread.finish(1.5)
    upload_thread.join(scale(10))


@pytest.mark.parametrize(("code", "fact"), [(500, "500"), (403, "permission denied"), (404, "404")])
def test_upload_thread_warns_once_of_a_failing_server_and_logging_continues(
    code, fact, spool, monkeypatch
):
    monkeypatch.setattr("pyclassify.spool.upload_thread.UPLOAD_SECONDS", 0.05)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with responding_with(code) as address:
        upload_thread = UploadThread(spool.folder, address)
        with pytest.warns(UserWarning, match="upload failed") as warned:
            log_and_finish(spool, upload_thread)

    (warning,) = (str(warning.message) for warning in warned)
    assert mentions(warning, fact, spool.folder, "retried")
    assert upload_thread.find_unsent() == ((spool.folder / "000001.records").stat().st_size, [])
    upload_spool(spool)
    assert len(points(spool.there, spool.run_id, "loss")) == 20
