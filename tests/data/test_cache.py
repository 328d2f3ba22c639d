"""A data set in one memory-mapped file."""

import logging
import os
import resource
import sys

import pytest
import torch

from pyclassify.data import cache
from pyclassify.data.cache import LabeledImages
from pyclassify.utils import files
from tests.support.phrases import mentions
from tests.support.processes import run

IMAGES = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
CONTENT = LabeledImages(IMAGES, torch.arange(40) % 4, ["a", "b", "é", "d"])


class Reader:
    """Reads the data set, and counts the calls."""

    def __init__(self, content=CONTENT):
        self.content, self.times = content, 0

    def __call__(self):
        self.times += 1
        return self.content


@pytest.fixture
def path(tmp_path):
    return tmp_path / "set.mapped"


def assert_same(some, others):
    assert some.images.equal(others.images)
    assert some.labels.equal(others.labels)
    assert some.classes == others.classes


def test_data_set_is_read_once_and_then_mapped(path):
    read = Reader()

    for _ in range(3):
        assert_same(cache.load_cached_images(path, "sums", read), CONTENT)

    assert read.times == 1
    assert sorted(os.listdir(path.parent)) == [".lock", "set.mapped"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows what is mapped")
def test_mapped_images_are_in_the_file_and_not_in_memory(path):
    content = cache.load_cached_images(path, "sums", Reader())

    with open("/proc/self/maps") as lines:
        ranges = [line.split()[0].split("-") for line in lines if line.rstrip().endswith(str(path))]
    assert any(int(a, 16) <= content.images.data_ptr() < int(b, 16) for a, b in ranges)


def test_write_to_mapped_images_changes_no_other_mapping(path):
    first, second = (cache.load_cached_images(path, "sums", Reader()) for _ in range(2))

    first.images.zero_()

    assert_same(second, CONTENT)
    assert_same(cache.load_cached_images(path, "sums", Reader()), CONTENT)


def cut(path):
    os.truncate(path, path.stat().st_size - 900)


def empty(path):
    path.write_bytes(b"")


def replace(path):
    torch.save([1, 2], path)


def flip(path):
    content = bytearray(path.read_bytes())
    start = content.index(IMAGES.numpy().tobytes())
    content[start + 1000] ^= 1
    path.write_bytes(content)


def turn_label(path):
    saved = torch.load(path, weights_only=True)
    saved["labels"][3] = 0
    torch.save(saved, path)


def drop_class(path):
    saved = torch.load(path, weights_only=True)
    torch.save({**saved, "classes": ["a", "b"]}, path)


@pytest.mark.parametrize("harm", [cut, empty, replace, flip, turn_label, drop_class])
def test_damaged_file_is_written_again(harm, path):
    cache.load_cached_images(path, "sums", Reader())
    harm(path)
    read = Reader()

    for _ in range(2):
        assert_same(cache.load_cached_images(path, "sums", read), CONTENT)

    assert read.times == 1


def test_file_of_another_source_is_replaced(path):
    cache.load_cached_images(path, "sums", Reader())
    other = LabeledImages(IMAGES[:10], CONTENT.labels[:10], CONTENT.classes)

    assert_same(cache.load_cached_images(path, "other sums", Reader(other)), other)


def test_killed_write_leaves_nothing_behind(path):
    killed = (
        "import os, pathlib, sys\nfrom pyclassify.utils import files\n"
        "with files.open_atomically(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'half')\n    file.flush()\n    os.kill(os.getpid(), 9)\n"
    )
    assert run("-c", killed, path).returncode == -9
    assert not path.exists()

    assert_same(cache.load_cached_images(path, "sums", Reader()), CONTENT)
    assert sorted(os.listdir(path.parent)) == [".lock", "set.mapped"]


def test_full_disk_leaves_the_images_in_memory(path, caplog):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with caplog.at_level(logging.INFO):
            content = cache.load_cached_images(path, "sums", Reader())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert_same(content, CONTENT)
    assert mentions(caplog.text, path, "can't be written")
    assert os.listdir(path.parent) == [".lock"]


def test_folder_that_can_not_be_written_leaves_the_images_in_memory(tmp_path, caplog):
    (tmp_path / "file").touch()

    with caplog.at_level(logging.INFO):
        content = cache.load_cached_images(tmp_path / "file" / "set.mapped", "sums", Reader())

    assert_same(content, CONTENT)
    # the form of this message
    message = "set.mapped can't be written (File exists); each process holds its own copy of the "
    assert message in caplog.text


def test_unreadable_file_is_not_replaced(path, caplog):
    path.mkdir()
    (path / "of others").touch()

    with caplog.at_level(logging.INFO):
        content = cache.load_cached_images(path, "sums", Reader())

    assert_same(content, CONTENT)
    assert mentions(caplog.text, path, "can't be read", "Is a directory")
    assert os.listdir(path.parent) == ["set.mapped"]
    assert os.listdir(path) == ["of others"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what is mapped")
def test_file_that_can_not_be_mapped_is_not_replaced(path):
    cache.load_cached_images(path, "sums", Reader())
    os.truncate(path, 2**37)  # more than the limit; sparse
    before = path.stat()
    load = (
        "import pathlib, resource, sys, torch\n"
        "from pyclassify.data.cache import LabeledImages, load_cached_images\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))\n"
        "images, labels = torch.zeros(1, 3, 8, 8).byte(), torch.zeros(1).long()\n"
        "content = LabeledImages(images, labels, ['a'])\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "assert load_cached_images(path, 'sums', lambda: content) is content\n"
    )

    done = run("-c", load, path, check=True)

    assert mentions(done.stderr, path, "can't be read", "Cannot allocate memory")
    assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)


def test_failed_write_keeps_the_previous_file(path):
    files.write_atomically(path, "before")

    def write_half():
        with files.open_atomically(path) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()

    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert path.read_text() == "before"
