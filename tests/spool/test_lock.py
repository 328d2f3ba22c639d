"""The lock of a run is exclusive, and is released when its holder ends for any reason."""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
from pathlib import Path

import pytest

from pyclassify.spool import lock
from tests.support import processes
from tests.support.spooled import ACQUIRE

# One child by fork, as a data worker is, and one by exec; their process IDs are printed once both
# are running: the fork has released the lock by then.
START_CHILDREN = """
import os, subprocess, sys, time
read, write = os.pipe()
forked = os.fork()
if not forked:
    os.write(write, b"!")
    time.sleep(60)
os.read(read, 1)
other = subprocess.Popen(["sleep", "60"], close_fds=False)
print(forked, other.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "spool" / "0123abcd"


@pytest.fixture
def start(folder):
    """Start a process that acquires the lock, runs some code and is killed in the end."""
    started = []

    def run(code="import time; print(flush=True); time.sleep(60)", **variables):
        process = processes.start(
            *("-c", ACQUIRE.format(folder=str(folder)) + f"exec({code!r})"),
            cwd=processes.ROOT,
            env=os.environ | variables,
            stdout=processes.PIPE,
            fresh=True,  # it loads neither torch nor MLflow
        )
        started.append(process)
        return process, process.stdout.readline()

    yield run
    for process in started:
        process.kill()
        process.wait()


def test_acquire_by_a_second_writer_raises_with_the_holder_and_the_next_step(folder, start):
    process, _ = start(SLURM_JOB_ID="77")

    # the form of this message
    holder = rf"process {process.pid} on {re.escape(socket.gethostname())} \(SLURM job 77\), since "
    with pytest.raises(lock.RunLockedError, match=rf"0123abcd is locked by {holder}2") as error:
        lock.acquire(folder)
    assert str(error.value).endswith("`pyclassify resume 0123abcd`")
    assert re.match(holder, lock.find_holder(folder))


def test_lock_of_a_killed_writer_is_released(folder, start):
    process, _ = start()
    process.kill()
    process.wait()

    assert lock.find_holder(folder) == ""
    lock.acquire(folder)
    assert json.loads((folder / lock.LOCK_FILE).read_text())["pid"] == os.getpid()
    lock.release(folder)


def test_lock_is_not_held_by_children_of_a_killed_parent(folder, start):
    process, line = start(START_CHILDREN)
    children = [int(word) for word in line.split()]
    try:
        assert lock.find_holder(folder)
        process.kill()
        process.wait()

        assert all(Path(f"/proc/{child}").exists() for child in children)
        assert lock.find_holder(folder) == ""
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)


def test_lock_stays_with_the_parent_when_a_child_ends(folder, start):
    start("import os, time; os.fork() or os._exit(0); os.wait(); print(flush=True); time.sleep(60)")

    assert lock.find_holder(folder)


def test_acquire_while_the_holder_writes_its_line_raises_without_its_name(folder):
    folder.mkdir(parents=True)
    with (folder / lock.LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        with pytest.raises(lock.RunLockedError, match=r"0123abcd .*another process"):
            lock.acquire(folder)


def test_acquire_of_a_folder_that_is_removed_meanwhile_locks_a_new_file(folder, monkeypatch):
    opened = lock._open

    def open_and_remove(path):
        monkeypatch.setattr(lock, "_open", opened)
        descriptor = opened(path)
        shutil.rmtree(folder)
        return descriptor

    monkeypatch.setattr(lock, "_open", open_and_remove)

    lock.acquire(folder)

    assert json.loads((folder / lock.LOCK_FILE).read_text())["pid"] == os.getpid()
    lock.release(folder)


def test_remove_folder_removes_the_lock_with_all_files(folder):
    lock.acquire(folder)
    (folder / "artifacts").mkdir()
    (folder / "artifacts" / "config.yaml").write_text("seed: 1\n")

    lock.remove_folder(folder)

    assert not folder.exists()
    lock.acquire(folder)
    assert (folder / lock.LOCK_FILE).is_file()
    lock.release(folder)


def test_acquire_twice_is_released_once(folder):
    lock.acquire(folder)
    lock.acquire(folder)
    lock.release(folder)

    assert lock.find_holder(folder) == ""


def test_acquire_on_a_file_system_without_locks_warns(folder, monkeypatch):
    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with pytest.warns(UserWarning, match=r"can't be locked \(Function not implemented\)"):
        lock.acquire(folder)
    lock.release(folder)


def test_find_holder_of_a_run_without_a_writer_is_empty(folder):
    assert lock.find_holder(folder) == ""
    assert not folder.exists()
