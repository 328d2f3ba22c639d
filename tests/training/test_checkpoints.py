"""Checkpoint files on a disk that fails and under a process that is killed."""

import hashlib
import os
import resource
import signal
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from pyclassify.module import Classifier
from pyclassify.training import checkpoints
from tests.support import stopping

STATE = {"weights": torch.arange(100_000), "words": ["a", ("b", 2)]}
CLASSIFIER = partial(Classifier, stopping.Net)


@contextmanager
def small_files(size):
    """Have the system refuse to write files above a size, as it does on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def forget_hash(path):
    path.with_name(path.name + ".sha256").unlink()


def test_checkpoint_is_read_back_and_its_hash_is_that_of_the_file(tmp_path):
    path = checkpoints.checkpoint_path(tmp_path, 300)
    checkpoints.write_checkpoint(STATE, path, hashed=True)

    found = torch.load(path, weights_only=True)
    assert torch.equal(found["weights"], STATE["weights"])
    assert found["words"] == STATE["words"]
    expected = f"{hashlib.sha256(path.read_bytes()).hexdigest()}  step=00000300.ckpt\n"
    assert (tmp_path / "step=00000300.ckpt.sha256").read_text() == expected
    assert checkpoints.find_newest(tmp_path) == path


@pytest.mark.parametrize("harm", [truncate, flip, forget_hash])
def test_find_newest_with_a_damaged_checkpoint_returns_the_previous_one(tmp_path, harm):
    for step in (9, 10, 300):
        checkpoints.write_checkpoint(
            STATE, checkpoints.checkpoint_path(tmp_path, step), hashed=True
        )
    harm(checkpoints.checkpoint_path(tmp_path, 300))

    with pytest.warns(UserWarning, match=r"step=00000300.ckpt is damaged"):
        found = checkpoints.find_newest(tmp_path)

    assert found == checkpoints.checkpoint_path(tmp_path, 10)
    assert (tmp_path / "step=00000300.ckpt.damaged").exists()


def test_find_newest_with_damaged_checkpoints_only_returns_none(tmp_path):
    checkpoints.write_checkpoint(STATE, checkpoints.checkpoint_path(tmp_path, 1), hashed=True)
    truncate(checkpoints.checkpoint_path(tmp_path, 1))

    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoints.find_newest(tmp_path) is None
    assert checkpoints.find_newest(tmp_path / "no such folder") is None


def test_write_checkpoint_on_a_full_disk_keeps_the_previous_file(tmp_path):
    path = tmp_path / "best.ckpt"
    checkpoints.write_checkpoint({"old": 1}, path, hashed=False)

    with small_files(100_000), pytest.raises(OSError, match="too large"):
        checkpoints.write_checkpoint(STATE, path, hashed=False)

    assert torch.load(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["best.ckpt"]


def test_write_checkpoint_when_killed_leaves_no_partial_file(tmp_path, monkeypatch):
    def write_and_die(self, data, write=checkpoints._Hashing.write):
        write(self, data)
        if len(data) > 1000:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.write_checkpoint({"old": 1}, tmp_path / "best.ckpt", hashed=False)
    monkeypatch.setattr(checkpoints._Hashing, "write", write_and_die)
    child = os.fork()
    if not child:
        checkpoints.write_checkpoint(STATE, tmp_path / "best.ckpt", hashed=False)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert torch.load(tmp_path / "best.ckpt") == {"old": 1}
    assert len(os.listdir(tmp_path)) == 2


def test_prune_checkpoints_removes_older_and_partial_files(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoints.write_checkpoint({}, checkpoints.checkpoint_path(tmp_path, step), hashed=True)
    (tmp_path / ".step=00000005.ckpt.part").touch()

    checkpoints.prune_checkpoints(tmp_path, 2)

    expected = [f"step=0000000{step}.ckpt{end}" for step in (3, 4) for end in ("", ".sha256")]
    assert sorted(os.listdir(tmp_path)) == expected


def test_training_continues_when_checkpoints_can_not_be_written(tmp_path):
    resume = {"every_n_train_steps": 3}
    alone, ended = stopping.train(tmp_path / "alone", CLASSIFIER, stopping.ours, resume=resume)

    # The best checkpoint is written before, in which there is less.
    best = next((tmp_path / "alone").rglob("best.ckpt")).stat().st_size
    with (
        small_files(best + 1000),
        pytest.warns(UserWarning, match="the checkpoint of step 3 could not be written"),
    ):
        rows, last = stopping.train(tmp_path / "full", CLASSIFIER, stopping.ours, resume=resume)

    assert rows == alone
    assert stopping.same(last, ended)
    assert not list((tmp_path / "full").rglob("step=*"))


def test_run_resumes_from_the_checkpoint_before_a_damaged_one(tmp_path):
    options = {"resume": {"every_n_train_steps": 3}}
    _, ended = stopping.train(tmp_path / "alone", CLASSIFIER, stopping.ours, **options)
    folder = tmp_path / "harmed"
    stopping.train(folder, CLASSIFIER, stopping.ours, max_epochs=1, **options)
    flip(max(folder.rglob("step=*.ckpt")))

    with pytest.warns(UserWarning, match="damaged"):
        _, last = stopping.train(folder, CLASSIFIER, stopping.ours, **options)

    assert stopping.same(last, ended)
