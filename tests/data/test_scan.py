"""What is found in image files, by processes beside that may be killed or stopped."""

import json
import os
import re
import signal
from hashlib import sha256

import numpy as np
import psutil
import pytest
from PIL import Image

from pyclassify.data import scan
from pyclassify.data.scan import compute_difference_hash, load_facts, read_facts, scan_files
from tests.support.images import grow
from tests.support.processes import PIPE, ROOT, start
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/pyclassify/scans"


@pytest.fixture
def folder(tmp_path):
    return grow(tmp_path / "photos", "train/cat", "train/dog")


def paths(folder):
    return sorted(str(path) for path in folder.rglob("*.*"))


def test_read_facts_has_the_size_the_mode_and_the_digests(tmp_path):
    path = tmp_path / "1.png"
    Image.new("LA", (5, 3)).save(path)

    facts = read_facts(str(path))

    assert (facts.width, facts.height, facts.mode, facts.hash) == (5, 3, "LA", 0)
    assert facts.digest == sha256(path.read_bytes()).hexdigest()
    assert facts.status[0] == path.stat().st_size
    assert facts.error == ""


def spoil_truncated(path):
    path.write_bytes(path.read_bytes()[:60])


def spoil_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_truncated, "truncated"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.unlink(), "^No such file or directory$"),
        (spoil_pipe, "not a regular file"),
    ],
    ids=["truncated", "empty", "vanished", "pipe"],
)
def test_read_facts_of_no_image_has_the_reason(spoil, reason, folder):
    path = folder / "train/cat/1.png"
    spoil(path)

    facts = read_facts(str(path))

    assert re.search(reason, facts.error), facts.error
    assert "\n" not in facts.error
    assert (facts.mode, facts.width) == ("", 0)


def test_difference_hash_is_that_of_imagehash():
    rows = np.tile(np.arange(0, 90, 10, dtype=np.uint8), (8, 1))
    rows[0] = rows[0, ::-1]  # the first row gets darker, the others get brighter
    small = np.repeat(rows[..., None], 3, axis=2)

    assert compute_difference_hash(small) == 0x00FFFFFFFFFFFFFF


def test_difference_hash_of_a_smaller_copy_is_near():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    large = small.resize((300, 200), Image.Resampling.BICUBIC)
    small_copy = large.resize((150, 100), Image.Resampling.BILINEAR)

    one, other = (compute_difference_hash(np.asarray(image)) for image in (large, small_copy))

    assert (one ^ other).bit_count() <= 2


def test_files_are_read_once_until_they_change(folder, monkeypatch):
    files = paths(folder)
    first = scan_files(files, folder)
    spoil_truncated(folder / "train/dog/2.png")
    assert load_facts(files, folder) is None

    read = []
    monkeypatch.setattr(
        scan,
        "_read_in_processes",
        lambda todo: [(file, read_facts(file)) for file in read_all(todo)],
    )

    def read_all(todo):
        read.extend(todo)
        return todo

    second = scan_files(files, folder)

    assert read == [str(folder / "train/dog/2.png")]
    assert [bool(facts.error) for facts in second].count(True) == 1
    assert load_facts(files, folder) == second
    assert [facts for facts in first if facts in second] == [f for f in second if not f.error]


def test_damaged_files_are_rescanned_on_request(folder):
    files = paths(folder)
    spoil_truncated(folder / "train/dog/2.png")
    scan_files(files, folder)
    path = next(scan.find_cache_folder().rglob("*.json"))
    saved = json.loads(path.read_text())
    saved["files"]["train/dog/2.png"][1] = "of another day"
    path.write_text(json.dumps(saved))

    assert "of another day" in [facts.error for facts in scan_files(files, folder)]
    assert "of another day" not in [facts.error for facts in scan_files(files, folder, retry=True)]


def test_odd_names_are_saved(tmp_path):
    grow(tmp_path / "photos", "train/cat", count=1)
    odd = os.fsdecode(b"\xff|\n.png")
    (tmp_path / "photos/train/cat/0.png").rename(tmp_path / "photos/train/cat" / odd)
    files = [str(tmp_path / "photos/train/cat" / odd)]

    assert scan_files(files, tmp_path / "photos") == load_facts(files, tmp_path / "photos")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"source": 1}', b'{"files": {"a": [1]}}'])
def test_damaged_cache_is_rewritten(content, folder):
    files = paths(folder)
    facts = scan_files(files, folder)
    path = next(scan.find_cache_folder().rglob("*.json"))
    path.write_bytes(content)

    assert load_facts(files, folder) is None
    assert scan_files(files, folder) == facts
    assert load_facts(files, folder) == facts


def test_another_decoder_rescans_every_file(folder, monkeypatch):
    files = paths(folder)
    facts = scan_files(files, folder)
    monkeypatch.setattr(scan, "digest_decoder", lambda: "of another version")

    assert load_facts(files, folder) is None
    assert scan_files(files, folder) == facts
    assert load_facts(files, folder) == facts


def test_cache_that_cannot_be_written_costs_only_the_next_scan(folder, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file in the way")

    assert len(scan_files(paths(folder), folder)) == 8
    assert load_facts(paths(folder), folder) is None


def test_file_that_kills_its_process_is_named_and_the_others_are_read(folder, monkeypatch):
    fatal = str(folder / "train/cat/3.png")

    def read(file):
        if file == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return read_facts(file)

    monkeypatch.setattr(scan, "read_facts", read)
    monkeypatch.setattr(scan, "_CHUNK_FILES", 3)

    found = dict(zip(paths(folder), scan_files(paths(folder), folder), strict=True))

    assert [file for file, facts in found.items() if facts.error] == [fatal]
    assert "killed" in found[fatal].error


SLOW = """
import os, sys, time
from pathlib import Path
from pyclassify.data import scan
from pyclassify.utils.signals import stop_on_signals

def read(file):
    Path(sys.argv[1], f"reading-{os.getpid()}").touch()
    time.sleep(60)

scan.read_facts = read
with stop_on_signals(lambda name: None):
    scan.scan_files(sys.argv[2:], Path(sys.argv[1]))
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_a_scan_that_is_stopped(signum, folder):
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = start("-c", SLOW, folder, *paths(folder), env=variables, stdout=PIPE, stderr=PIPE)
    wait_until(lambda: [*folder.glob("reading-*")], "a file is read")
    readers = [int(path.name.partition("-")[2]) for path in folder.glob("reading-*")]

    process.send_signal(signum)
    process.wait()

    wait_until(lambda: not any(map(is_alive, readers)), "the readers have ended")


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
