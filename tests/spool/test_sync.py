"""`pyclassify sync` uploads what runs logged while they could not reach the server."""

import json
import threading

import mlflow
import pytest

from pyclassify.cli.main import main
from pyclassify.spool import records
from pyclassify.spool.sync import Sync, find_spools
from tests.support import processes
from tests.support.phrases import mentions
from tests.support.spooled import close_spool, points, responding_with
from tests.support.waiting import wait_until


@pytest.fixture
def work_dir(spool, tmp_path, monkeypatch):
    """The folder of SLURM runs, where the job of one of them has logged and ended."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", spool.there.tracking_uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    root = tmp_path / "work" / spool.run_id / "spool"
    spool.folder = records.create_from_server(root, spool.there, spool.run_id)
    spool.client = mlflow.MlflowClient(f"spool://{root}")
    spool.client.log_metric(spool.run_id, "loss", 0.5, step=1)
    spool.client.log_text(spool.run_id, "words", "a.txt")
    spool.client.set_terminated(spool.run_id, "FINISHED")
    yield tmp_path / "work"
    close_spool(spool.folder)


def test_sync_uploads_and_reports_the_runs_of_a_work_dir(work_dir, spool, capsys):
    assert main(["sync", str(work_dir)]) == 0

    run = spool.there.get_run(spool.run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": 0.5})
    assert [file.path for file in spool.there.list_artifacts(spool.run_id)] == ["a.txt"]
    # the form of this message
    assert capsys.readouterr().out == f"{spool.run_id}: uploaded 3 records (3 in total)\n"


def test_sync_skips_an_uploaded_run_and_removes_its_copies(work_dir, spool, capsys):
    main(["sync", str(work_dir)])
    capsys.readouterr()

    assert [*find_spools(work_dir)] == []
    assert main(["sync", str(work_dir)]) == 0
    assert capsys.readouterr().out == ""
    assert [*(spool.folder / "artifacts").iterdir()] == []


def test_sync_uploads_what_is_written_after_the_end_of_a_run(work_dir, spool):
    main(["sync", str(work_dir)])
    spool.client.set_tag(spool.run_id, "slurm_state", "COMPLETED")
    main(["sync", str(work_dir)])

    assert spool.there.get_run(spool.run_id).data.tags["slurm_state"] == "COMPLETED"


@pytest.mark.parametrize(
    ("code", "reason"),
    [(500, "HTTP error 500"), (403, "permission denied (HTTP 403) ('Error response')")],
)
def test_sync_with_a_failing_server_reports_it_and_loses_nothing(
    code, reason, work_dir, spool, monkeypatch, capsys
):
    with responding_with(code) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert main(["sync", str(work_dir)]) == 1
    # the form of this message
    error = f"pyclassify: error: {spool.run_id}: upload failed: {reason}\n"
    assert capsys.readouterr().err == error

    monkeypatch.setenv("MLFLOW_TRACKING_URI", spool.there.tracking_uri)
    assert main(["sync", str(work_dir)]) == 0
    assert points(spool.there, spool.run_id, "loss") == [(1, 0.5)]


def test_sync_reports_an_unreadable_spool_and_uploads_the_others(work_dir, spool, capsys):
    broken = work_dir / "0" / "spool" / "0"
    broken.mkdir(parents=True)
    (broken / records.SPOOL_FILE).write_text("{")

    assert main(["sync", str(work_dir)]) == 1
    assert capsys.readouterr().err.startswith("pyclassify: error: 0: upload failed: ")
    assert spool.there.get_run(spool.run_id).info.status == "FINISHED"


def test_sync_reports_a_folder_that_is_gone(tmp_path, capsys):
    assert Sync(tmp_path / "gone").upload_all() == 1
    assert mentions(capsys.readouterr().err, "gone", "upload failed", "No such file")


def test_sync_reports_a_failing_server_once(work_dir, spool, monkeypatch, capsys):
    sync = Sync(work_dir)
    with responding_with(500) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert [sync.upload_all(), sync.upload_all()] == [1, 1]
    assert capsys.readouterr().err.count("\n") == 1

    monkeypatch.setenv("MLFLOW_TRACKING_URI", spool.there.tracking_uri)
    assert sync.upload_all() == 0
    assert points(spool.there, spool.run_id, "loss") == [(1, 0.5)]


def test_sync_uploads_what_is_written_to_a_running_run_later(work_dir, spool, monkeypatch):
    spool.client.update_run(spool.run_id, status="RUNNING")
    sync = Sync(work_dir)
    assert sync.upload_all() == 0

    with responding_with(500) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert sync.upload_all() == 0  # without a request
        spool.client.log_metric(spool.run_id, "loss", 0.25, step=2)
        assert sync.upload_all() == 1


def test_two_syncs_at_once_upload_each_record_once(work_dir, spool):
    for step in range(2, 3000):
        spool.client.log_metric(spool.run_id, "loss", step, step=step)
    threads = [threading.Thread(target=Sync(work_dir).upload_all) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(points(spool.there, spool.run_id, "loss")) == 2999


def test_sync_follow_uploads_what_is_logged_meanwhile(work_dir, spool):
    follower = processes.start(
        *("-m", "pyclassify", "sync", "--follow", work_dir),
        cwd=processes.ROOT,
        stdout=processes.PIPE,
        stderr=processes.PIPE,
    )
    try:
        (first,) = read_lines(follower, 1)
        assert first.startswith(f"{spool.run_id}: uploaded 3 records")
        spool.client.log_metric(spool.run_id, "loss", 0.25, step=2)
        assert read_lines(follower, 2)[1] == f"{spool.run_id}: uploaded 1 record (4 in total)\n"

        follower.send_signal(2)
        assert follower.communicate()[1].endswith("stopped by SIGINT\n")
    finally:
        follower.kill()
    assert points(spool.there, spool.run_id, "loss") == [(1, 0.5), (2, 0.25)]


def read_lines(process, count):
    """Wait for some lines of a process's output."""

    def lines():
        assert process.poll() is None, process.read("stderr")
        return process.read().splitlines(keepends=True)

    wait_until(lambda: len(lines()) >= count and lines()[-1].endswith("\n"), f"line {count}")
    return lines()


def test_find_spools_skips_done_runs_without_reading_their_records(tmp_path, monkeypatch):
    for number in range(3):
        folder = tmp_path / str(number) / "spool" / str(number)
        folder.mkdir(parents=True)
        (folder / records.SPOOL_FILE).write_text("{}")
        segment = records.Segment(folder)
        segment.append(records.encode({"kind": "name", "name": "a"}))
        segment.close()
        (folder / records.DONE_FILE).write_text(str(records.count_bytes(folder)))

    for function in ("read_records", "decode", "load_json"):
        monkeypatch.delattr(records, function)
    assert [*find_spools(tmp_path)] == []


def test_sync_of_a_missing_folder_names_the_folders_to_give(tmp_path, capsys):
    assert main(["sync", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert mentions(error, tmp_path / "none", "runs/spool", '"work_dir"', "SLURM")


def test_sync_help_has_defaults_and_examples_and_loads_no_mlflow():
    code = "import atexit, sys; from pyclassify.cli.main import main\n"
    code += "atexit.register(lambda: print(sorted({'mlflow', 'torch'} & sys.modules.keys())))\n"
    code += "main(sys.argv[1:])"
    process = processes.start("-c", code, "sync", "--help", stdout=processes.PIPE, fresh=True)
    output, _ = process.communicate()

    assert mentions(output, "write-ahead log", "--follow", "default:", "examples:", "WORK_DIR")
    assert output.endswith("[]\n")


def test_sync_of_an_unknown_option_is_a_usage_error(capsys):
    assert main(["sync", "--folow"]) == 2
    assert mentions(capsys.readouterr().err, "'--folow'", "Did you mean '--follow'?")


def test_database_named_from_a_folder_is_found_from_any(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records.create_spool(tmp_path / "run", "0", "name", {}, 0, tracking_uri="sqlite:///mlflow.db")

    spool_info = json.loads((tmp_path / "run" / records.SPOOL_FILE).read_text())
    assert spool_info["tracking_uri"] == f"sqlite:///{tmp_path}/mlflow.db"
