"""The images and classes of a folder, and packed paths."""

import errno
import os
import pickle

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyclassify.data.datasets import PackedPaths
from pyclassify.data.image_folder import (
    find_splits,
    list_beside_splits,
    list_classes,
    list_split,
    read_split_name,
)
from tests.support.phrases import mentions


def grow(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def names(split):
    return [os.path.relpath(file, split.folder) for file in split.files]


def test_images_are_listed_by_class_and_name(tmp_path):
    grow(tmp_path, "b/2.png", "b/10.JPEG", "a/z.jpg", "a/deep/er/y.webp", "a/b.txt", "notes.txt")

    split = list_split(tmp_path)

    assert split.classes == ["a", "b"]
    assert names(split) == ["a/deep/er/y.webp", "a/z.jpg", "b/10.JPEG", "b/2.png"]
    assert split.labels.tolist() == [0, 0, 1, 1]
    assert split.count_by_class() == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    "name",
    ["1.jfif", "1.JPE", "1.gif", "1.JPG", "1.tar.Png", "1.jp2", "1.avif", "1.tga", "a b.jpeg"],
)
def test_image_that_the_decoder_reads_is_listed(name, tmp_path):
    assert names(list_split(grow(tmp_path, f"cat/{name}"))) == [f"cat/{name}"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("1.heic", ".heic"),
        ("1.PDF", ".pdf"),
        ("1.jpg.txt", ".txt"),
        ("1.JPG~", ".jpg~"),
        ("1.png.part", ".part"),
        ("photo", "without an extension"),
        ("photo.", "without an extension"),
        ("1.x\ny", ".x\\ny"),
        (".1.jpg", "hidden"),
        ("._1.jpg", "hidden"),
    ],
)
def test_file_that_is_left_out_is_counted_by_reason(name, reason, tmp_path):
    split = list_split(grow(tmp_path, "cat/1.png", f"cat/{name}"))

    assert names(split) == ["cat/1.png"]
    assert split.left_out["cat"].counts == {reason: 1}
    assert split.left_out["cat"].examples == {reason: str(tmp_path / "cat" / name)}


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", ".gitkeep"])
def test_metadata_of_a_system_is_not_worth_a_word(name, tmp_path):
    assert list_split(grow(tmp_path, "cat/1.png", f"cat/{name}")).left_out == {}


@pytest.mark.parametrize(
    "name",
    [
        *("@eaDir", "@EADIR", "__MACOSX", "#recycle", "$RECYCLE.BIN", "lost+found", "@__thumb"),
        *(".thumbnails", ".ipynb_checkpoints", ".snapshot", ".git", "System Volume Information"),
    ],
)
def test_folders_of_the_system_are_neither_classes_nor_read(name, tmp_path):
    made = [
        "a/1.png",
        f"a/{name}/1.png",
        f"a/deep/{name}/2.jpg",
        f"{name}/1.png",
        f"{name}/a/1.png",
    ]

    split = list_split(grow(tmp_path, *made))

    assert split.classes == ["a"]
    assert names(split) == ["a/1.png"]
    assert split.sum_left_out().total == 3


def test_hidden_files_and_folders_are_left_out(tmp_path):
    grow(tmp_path, "a/1.png", "a/._1.png", "a/.ipynb_checkpoints/1.png", ".ipynb_checkpoints/1.png")

    assert list_classes(tmp_path) == ["a"]
    assert names(list_split(tmp_path)) == ["a/1.png"]


def test_links_and_what_is_no_file_are_listed_once_or_left_out(tmp_path):
    grow(tmp_path, "store/1.png", "train/a/x.jpg/1.png", "train/a/2.png")
    os.mkfifo(tmp_path / "train/a/3.png")
    (tmp_path / "train/a/broken.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "train/a/circle.png").symlink_to("circle.png")
    (tmp_path / "train/a/up").symlink_to(tmp_path)
    (tmp_path / "train/a/same").symlink_to(".")
    (tmp_path / "train/a/store").symlink_to(tmp_path / "store")
    (tmp_path / "store/back").symlink_to(tmp_path / "train/a")

    split = list_split(tmp_path / "train")

    assert names(split) == ["a/2.png", "a/store/1.png", "a/x.jpg/1.png"]
    assert split.left_out["a"].counts == {
        "not regular files": 1,
        "broken links": 2,
        "links to a parent folder": 3,
    }


def test_linked_folder_is_a_class(tmp_path):
    grow(tmp_path, "store/1.png", "train/a/1.png")
    (tmp_path / "train/b").symlink_to(tmp_path / "store")

    split = list_split(tmp_path / "train")

    assert names(split) == ["a/1.png", "b/1.png"]
    assert split.labels.tolist() == [0, 1]


def test_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    grow(tmp_path, "a/1.png", "a/deep/2.png")
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)

    with pytest.raises(MisconfigurationException, match=r"/a/deep .*Permission denied.*"):
        list_split(tmp_path)


def test_names_that_are_not_utf_8_are_listed_and_escaped(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    split = list_split(grow(tmp_path, f"a/{name}.png", f"a/{name}.heic"))

    assert names(split) == [f"a/{name}.png"]
    assert split.sum_left_out().describe(tmp_path) == r"1 .heic (a/caf\xe9.heic)"


def test_class_whose_name_is_not_utf_8_is_an_error(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"UTF-8.*caf\\xe9"):
        list_classes(grow(tmp_path, os.fsdecode(b"caf\xe9/1.png")))


def test_class_without_images_in_a_split_is_skipped(tmp_path):
    split = list_split(grow(tmp_path, "b/1.png"), ["a", "b"])

    assert names(split) == ["b/1.png"]
    assert split.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("train", "train"), ("Training", "train"), ("TRAIN", "train"), ("trn", "train")),
        *(("val", "val"), ("valid", "val"), ("Validation", "val"), ("dev", "val")),
        *(("test", "test"), ("Testing", "test"), ("eval", "test"), ("evaluation", "test")),
        *(("training_set", "train"), ("Test-Images", "test"), ("seg_train", "train")),
        *(("valset", "val"), ("train2017", "train"), ("test_labels", None), ("trainer", None)),
        *(("old_train", None), ("images", None), ("contest", None), ("", None)),
    ],
)
def test_names_of_splits_are_read(name, split):
    assert read_split_name(name)[0] == split


def test_splits_are_found_by_any_name(tmp_path):
    grow(tmp_path, "Training/a/1.png", "valid/a/1.png", "TEST/a/1.png", "test.csv", "more/1.png")
    grow(tmp_path, "__MACOSX/train/a/1.png", "train_images/1.png")

    splits = find_splits(tmp_path)

    assert splits == {
        "train": tmp_path / "Training",
        "val": tmp_path / "valid",
        "test": tmp_path / "TEST",
    }
    beside = list_beside_splits(tmp_path, splits.values())
    assert beside.counts == {"outside of the split folders": 2}


def test_two_folders_of_one_split_are_an_error(tmp_path):
    grow(tmp_path, "train/a/1.png", "valid/a/1.png", "val/a/1.png")

    with pytest.raises(MisconfigurationException, match=rf"^{tmp_path} .*'val': val, valid \("):
        find_splits(tmp_path)


ODD = ["a/1.png", "", "b/é ü.jpg", os.fsdecode(b"c/\xff.webp")]


def test_packed_paths_return_the_paths():
    paths = PackedPaths(ODD)

    assert [paths[index] for index in range(len(ODD))] == list(paths) == ODD
    assert paths[-1] == ODD[-1]
    assert paths[1:] == ODD[1:]
    assert list(pickle.loads(pickle.dumps(paths))) == ODD  # to a worker that is not forked
    assert list(PackedPaths(paths)) == ODD
    assert list(PackedPaths([])) == []


@pytest.mark.parametrize("index", [4, -5])
def test_packed_paths_index_out_of_range_is_an_error(index):
    with pytest.raises(IndexError):
        PackedPaths(ODD)[index]


@pytest.mark.parametrize("known", ["dog", "Cat"])
def test_class_of_train_that_is_not_given_is_refused_by_the_option(known, tmp_path):
    grow(tmp_path, "train/cat/1.png")

    with pytest.raises(MisconfigurationException) as refused:
        list_split(tmp_path / "train", [known])

    assert mentions(str(refused.value), "train has the class 'cat'", known, "--data.classes")
