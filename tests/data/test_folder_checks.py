"""What a folder of images is refused for, or warned of, before a training starts."""

import logging
import os
import shutil
from types import SimpleNamespace

import pytest
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyclassify.data import folder_checks
from pyclassify.data.folder_checks import check_root, check_splits, find_duplicated_files
from pyclassify.data.image_folder import find_splits, list_split
from pyclassify.datamodule import ImageFolderDataModule
from tests.support.phrases import mentions

ANIMALS = ("ant", "bee", "cat")


def write(folder, *files):
    """Write files; each has its own path as its content."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(file)
    return folder


def grow(folder, *splits, classes=ANIMALS, count=2):
    files = [f"{split}/{c}/{n}.png" for split in splits for c in classes for n in range(count)]
    return write(folder, *files)


def check(folder, **options):
    data = ImageFolderDataModule(str(folder), **options)
    data.prepare_data()
    return list(data.data_warnings)


def refuse(folder, *facts, **options):
    with pytest.raises(MisconfigurationException) as caught:
        check(folder, **options)
    assert mentions(str(caught.value), *facts)
    assert "\n" not in str(caught.value)


def test_folder_as_it_should_be_has_no_warnings(tmp_path):
    assert check(grow(tmp_path, "train", "val", "test")) == []
    assert check(grow(tmp_path / "no val", "Training", "Testing")) == []
    assert check(grow(tmp_path / "deep", "train/ant", "train/bee", classes=["photos"])) == []


@pytest.mark.parametrize(
    ("files", "given", "facts"),
    [
        # what the path names
        ([], "none", ["none is not a folder", "train/<class>/<image>"]),
        (["photos.zip"], "photos.zip", ["photos.zip is an archive", "extract it", "--data_path"]),
        (["a.tar.gz"], "a.tar.gz", ["a.tar.gz is an archive"]),
        (["a.csv"], "a.csv", ["a.csv is not a folder", "train/<class>/<image>"]),
        (["set/.DS_Store"], "set", ["set has no folder train"]),
        (["set/photos.zip"], "set", ["set has no folder train", "archive photos.zip", "extract"]),
        # one level off
        (["set/train/a/1.png", "set/train/b/1.png"], ".", ["--data_path {}/set"]),
        (["set/set/train/a/1.png", "set/x/1.png"], "set", ["--data_path {}/set/set"]),
        (["one/train/a/1.png", "two/train/a/1.png"], ".", ["{}/one", "{}/two"]),
        (["set/train/a/1.png", "set/train/b/1.png"], "set/train", ["--data_path {}/set"]),
        (["set/train/a/1.png", "set/train/b/1.png"], "set/train/a", ["--data_path {}/set"]),
        (
            ["a/train/1.png", "b/train/1.png"],
            ".",
            ["inside the class folders", "a/train", "{}/train/<"],
        ),
        (["a/1.png", "b/1.png"], ".", ["no folder train", "a, b", "{}/train", "{}/test/<class>"]),
        (["images/train/1.png", "labels/train/1.txt"], ".", ["object detection", "images, labels"]),
        (["trian/a/1.png"], ".", ["no folder train", "rename 'trian' to train"]),
        (["train/x/a/1.png", "train/x/b/1.png"], ".", ["one folder, 'x'", "a, b", "move them"]),
        (["train/train/a/1.png", "train/train/b/1.png"], ".", ["--data_path {}/train"]),
        (["x/set/train/a/1.png", "x/set/train/b/1.png"], ".", ["--data_path {}/x/set"]),
        # in the folder of a split
        (["train/1.png", "train/2.png"], ".", ["train has 2 images", "train/<class>/1.png"]),
        (["train/a/1.png", "train/b/1.png", "val/1.png"], ".", ["val has 1 image ", "<class>"]),
        (["train/train/a/1.png", "train/val/a/1.png"], ".", ["splits", "--data_path {}/train"]),
        (["train/images/1.png", "train/labels/1.txt"], ".", ["images, labels", "detection"]),
        (["train/a/1.png"], ".", ["train has one class, 'a'", "at least two"]),
        (
            ["train/a/1.png", "train/b/1.heic"],
            ".",
            ["train/b has no images", "1 .heic", "b/1.heic"],
        ),
        (["train/a/1.heic", "train/b/1.txt"], ".", ["train has no images", "1 .heic", "1 .txt"]),
        (["train/a/1.png", "train/b/.x"], ".", ["train/b has no images", "1 hidden"]),
        # classes
        (["train/a/1.png", "train/b/1.png", "val/c/1.png"], ".", ["val", "'c'", "train/", "a, b"]),
        (["train/Ant/1.png", "train/b/1.png", "val/ant/1.png"], ".", ["val", "'ant'", "'Ant'"]),
        (["train/a b/1.png", "train/b/1.png", "val/a_b/1.png"], ".", ["val", "'a_b'", "'a b'"]),
        (["train/caf\u00e9/1.png", "train/b/1.png", "val/cafe\u0301/1.png"], ".", ["rename"]),
        # splits
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png"], ".", ["val, valid"]),
    ],
)
def test_folder_that_cannot_be_meant_is_refused_by_name(files, given, facts, tmp_path):
    write(tmp_path, *files)

    refuse(tmp_path / given, *(fact.format(tmp_path) for fact in facts))


@pytest.mark.parametrize(
    ("files", "facts"),
    [
        ([], ["test is not a folder"]),
        (["test/1.png"], ["test has 1 image ", "test/<class>/1.png"]),
        (["test/c/1.png"], ["test has the class 'c'", "a, b"]),
        (["test/A2/1.png", "test/images/2.png"], ["test has the class 'A2'"]),
    ],
)
def test_test_images_are_refused_where_they_are_needed(files, facts, tmp_path, caplog):
    write(tmp_path, "train/a/1.png", "train/a/2.png", "train/b/1.png", *files)
    data = ImageFolderDataModule(str(tmp_path))
    with caplog.at_level(logging.INFO):
        data.prepare_data()  # of fit
    assert not files or mentions(caplog.text, *facts, "does not need test images")

    state = SimpleNamespace(fn=TrainerFn.FITTING)
    data.trainer = SimpleNamespace(state=state, tests_after_fit=True)
    with pytest.raises(MisconfigurationException) as caught:
        data.prepare_data()
    assert mentions(str(caught.value), *facts)


def test_empty_files_are_refused_by_name(tmp_path):
    grow(tmp_path, "train", "test")
    (tmp_path / "test/bee/7.png").touch()

    refuse(tmp_path, f"{tmp_path} has empty files: test/bee/7.png", "--data.unreadable=skip")


def test_classes_of_one_image_are_refused_before_the_split(tmp_path):
    refuse(grow(tmp_path, "train", count=1), "can't hold out any of 3 images", "val/")
    assert check(grow(tmp_path / "more", "train", "val", count=1)) == []


def test_link_to_nowhere_is_named(tmp_path):
    (tmp_path / "set").symlink_to("gone")

    refuse(tmp_path / "set", "link to gone")


def test_classes_that_the_user_names_are_meant(tmp_path):
    grow(tmp_path, "train", classes=["images", "masks"])

    assert check(tmp_path, classes=["images", "masks"]) == []


@pytest.mark.parametrize(
    ("files", "facts"),
    [
        (["test/ant/1.png", "test/bee/1.png"], ["test", "no images of cat"]),
        (["val/ant/1.png", "val/bee/1.png"], ["val", "no images of cat"]),
        (
            ["test/ant/1.png", "test/bee/1.png", "test/cat/1.heic"],
            ["test", "no images of cat", "1 .heic (test/cat/1.heic)"],
        ),
        (["train/ant /1.png"], ["'ant'", "'ant '", "the same class"]),
        (["train/ANT/1.png"], ["'ANT'", "'ant'", "the same class"]),
    ],
)
def test_folder_that_may_be_meant_is_warned_of(files, facts, tmp_path):
    write(grow(tmp_path, "train"), *files)

    with pytest.warns(UserWarning, match=facts[0]):
        (warning,) = check(tmp_path)

    assert mentions(warning, *facts)
    assert check(tmp_path, classes=sorted(os.listdir(tmp_path / "train"))) == []


def test_classes_with_folders_alone_are_warned_of(tmp_path):
    grow(tmp_path, "train/2021", "train/2022")

    (warning,) = check(tmp_path)

    assert mentions(warning, "2021, 2022", "2021/ant", "--data.classes")


def share_content(folder):
    shutil.copy(folder / "train/bee/1.png", folder / "test/ant/other name.png")


def share_by_link(folder):
    (folder / "test/ant/x.png").symlink_to(folder / "train/bee/1.png")


def share_by_hard_link(folder):
    os.link(folder / "train/bee/1.png", folder / "test/ant/x.png")


@pytest.mark.parametrize("share", [share_content, share_by_link, share_by_hard_link])
def test_file_of_two_splits_is_warned_of(share, tmp_path):
    grow(tmp_path, "train", "test")
    share(tmp_path)

    (warning,) = check(tmp_path, classes=list(ANIMALS))

    assert mentions(
        warning,
        "1 of the 7 images in test/ is also in train/",
        "test/ant/",
        "train/bee/1.png",
        "test_accuracy",
    )


@pytest.mark.parametrize(("split", "link"), [("train", "val"), ("train", "test"), ("val", "test")])
def test_folder_of_two_splits_is_warned_of(split, link, tmp_path):
    grow(tmp_path, "train", split)
    (tmp_path / link).symlink_to(split)

    (warning,) = check(tmp_path)

    assert mentions(warning, f"{link}/ and {split}/ are the same folder", f"{link}_accuracy")


def test_shared_files_are_found_by_content_of_any_size(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_checks, "_END_BYTES", 4)
    contents = {
        "a/1": "start----end",
        "a/2": "start-?--end",
        "a/3": "short",
        "b/1": "start-?--end",
        "b/2": "start--?-end",
        "b/3": "shorter",
        "c/1": "short",
        "c/2": "start-?--end",
    }
    splits = {}
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        splits.setdefault(name[0], []).append(str(tmp_path / name))

    sizes = {name: [os.path.getsize(file) for file in splits[name]] for name in splits}
    shared = [(s.split, s.other, s.number) for s in find_duplicated_files(splits, sizes)]

    assert shared == [("b", "a", 1), ("c", "a", 2), ("c", "b", 1)]


def test_splits_are_checked_as_they_were_listed(tmp_path):
    grow(tmp_path, "train", "test")

    assert check_root(tmp_path) == find_splits(tmp_path)
    assert check_splits({name: list_split(tmp_path / name) for name in ("train", "test")}) == []
