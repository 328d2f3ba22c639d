"""`pyclassify prepare` of a folder, and the report of the data in the runs that follow."""

import mlflow
import pytest

from pyclassify.tracking.record import SKIPPED_TAG
from tests.support.images import grow
from tests.support.phrases import mentions
from tests.support.trainings import LINEAR, QUIET, last_error

FOLDER = f"--data=ImageFolderDataModule --data_path=photos {LINEAR}"
TINY = f"--max_epochs=1 --batch_size=4 --data.num_workers=0 --accelerator=cpu {QUIET}"
DAMAGED = ("train/cat/2.png", "train/dog/0.png", "test/dog/1.png")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with three files that do not decode."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    grow(tmp_path / "photos", "train/cat", "train/dog", "test/cat", "test/dog", count=6)
    for name in DAMAGED:
        (tmp_path / "photos" / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path / "photos"


def read_artifact(run, name):
    return mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{name}")


def test_prepare_checks_every_file_and_fails_for_those_that_do_not_decode(folder, cli):
    done = cli(f"prepare {FOLDER}")

    assert (done.code, done.out, done.runs) == (1, "", [])
    assert mentions(last_error(done), "3 files do not decode", *DAMAGED, "photos/data.md", "skip")
    assert all(name in (folder / "data.md").read_text() for name in DAMAGED)


def test_prepare_with_skip_prints_what_the_data_hold(folder, cli):
    done = cli(f"prepare {FOLDER} --data.unreadable=skip")

    assert done.code == 0
    # the form of this message
    assert done.out == (
        "\n"
        "images         train 9, val 1, test 11; 2 classes\n"
        "unreadable     3 left out\n"
        "duplicates     none\n"
        "similar images none\n"
        f"report         {folder / 'data.md'}\n"
        f"\ntrain          pyclassify train {FOLDER} --data.unreadable=skip\n"
    )


def test_training_with_skip_has_the_report_and_counts_what_it_left_out(folder, cli):
    done = cli(f"train {FOLDER} {TINY} --data.unreadable=skip")

    assert done.code == 0
    (run,) = done.runs
    text = read_artifact(run, "data.md")
    assert all(f"`{name}`" in text for name in DAMAGED)
    assert mentions(text, "**9** | **1** | **11**", "left out")
    assert run.data.tags[SKIPPED_TAG] == "3"
    assert run.data.params["data/unreadable"] == "skip"
    assert mentions(run.data.tags["mlflow.note.content"], "3 files skipped", "data.md")


def test_training_with_stop_after_prepare_ends_before_it_begins(folder, cli):
    cli(f"prepare {FOLDER}")

    done = cli(f"train {FOLDER} {TINY}")

    assert done.code == 1
    assert mentions(last_error(done), "3 files do not decode", *DAMAGED)


def test_training_of_a_data_set_in_memory_has_its_counts(cli):
    done = cli(
        f"train --data=SyntheticDataModule --data.train_size=16 --data.val_size=10 "
        f"--data.test_size=10 {LINEAR} {TINY.replace('--data.num_workers=0', '')}"
    )

    text = read_artifact(done.runs[0], "data.md")
    assert mentions(text, "`Synthetic`", "32 x 32", "| **all** | **16** | **10** | **10** |")
    assert SKIPPED_TAG not in done.runs[0].data.tags
