"""The report of a data set: its figures, and what Markdown makes of odd names."""

import html
import os
from pathlib import Path

import markdown

from pyclassify.data.report import (
    ImageFile,
    describe_counts,
    describe_files,
    format_damaged,
    write_report,
)
from pyclassify.data.scan import FileFacts
from tests.support.phrases import mentions

FOLDER = Path("photos")


def image(path, split="train", digest=None, size=(4, 3), bytes_=1000, mode="RGB", hash_=None):
    """An image whose digest and hash are its own unless they are given."""
    number = abs(hash(path)) % 2**64
    facts = FileFacts(
        (bytes_, 1, 1), "", digest or path, *size, mode, number if hash_ is None else hash_
    )
    return ImageFile(path, split, path.split("/")[1], facts)


def damaged(path, reason, split="train"):
    return ImageFile(path, split, path.split("/")[1], FileFacts((10, 1, 1), reason))


def rows(text, section):
    """The cells of the table of a section, without its head."""
    part = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    return cells[2:]


def test_counts_are_those_of_each_class_and_split():
    report = describe_counts("Shapes", ["cat", "dog"], {"train": [0, 0, 0, 1], "test": [1]})

    assert rows(report.text, "Images of each class") == [
        ["**all**", "**4**", "**1**"],
        ["cat", "3", "0"],
        ["dog", "1", "1"],
    ]
    assert mentions(report.text, "cat", "3.0 times", "dog")
    assert report.lines == {"images": "train 4, test 1; 2 classes"}


def test_class_without_training_images_is_named():
    report = describe_counts("Shapes", ["cat", "dog"], {"train": [0]})

    assert mentions(report.text, "dog has no training image")


def test_sizes_and_modes_are_summarized():
    files = [
        image("train/cat/a.jpg", size=(10, 20), bytes_=500),
        image("train/cat/b.jpg", size=(30, 5), bytes_=2_500_000, mode="CMYK"),
        image("train/cat/c.jpg", size=(100, 200), bytes_=1200),
    ]

    text = describe_files(FOLDER, ["cat"], files, skip=False).text

    assert rows(text, "Sizes") == [
        ["width", "10", "30", "100"],
        ["height", "5", "20", "200"],
        ["width x height", "30 x 5", "10 x 20", "100 x 200"],
        ["file", "500 bytes", "1.2 kB", "2.5 MB"],
    ]
    assert mentions(text, "Smallest file: `train/cat/a.jpg`", "Largest file: `train/cat/b.jpg`")
    assert rows(text, "Modes") == [["`RGB`", "2"], ["`CMYK`", "1"]]


def test_damaged_files_are_all_listed_and_not_counted():
    files = [image("train/cat/a.jpg")]
    files += [damaged(f"train/cat/{number}.jpg", "truncated") for number in range(200)]

    stop, skip = (describe_files(FOLDER, ["cat"], files, skip) for skip in (False, True))

    assert len(rows(stop.text, "Files that do not decode")) == 200
    assert rows(stop.text, "Images of each class")[0] == ["**all**", "**1**"]
    assert len(stop.damaged) == len(skip.damaged) == 200
    assert (stop.skipped, skip.skipped) == (0, 200)
    assert mentions(stop.text, "refuses them")
    assert mentions(skip.text, "left out")
    assert mentions(skip.lines["unreadable"], "200", "left out")


def test_copies_are_counted_within_and_across_splits_and_classes():
    files = [
        *(image(f"train/cat/{name}.jpg", digest="a") for name in "xyz"),
        image("train/cat/leak.jpg", digest="b"),
        image("test/cat/leak.jpg", "test", digest="b"),
        image("train/cat/who.jpg", digest="c"),
        image("train/dog/who.jpg", digest="c"),
    ]

    report = describe_files(FOLDER, ["cat", "dog"], files, skip=False)

    assert rows(report.text, "Duplicate files") == [
        ["`train/cat/who.jpg`, `train/dog/who.jpg`", "cat, dog", "train"],
        ["`train/cat/leak.jpg`, `test/cat/leak.jpg`", "cat", "train, test"],
        ["`train/cat/x.jpg`, `train/cat/y.jpg`, `train/cat/z.jpg`", "cat", "train"],
    ]
    assert mentions(report.lines["duplicates"], "3 groups", "7 files", "1 in several splits")


def test_similar_images_are_listed_without_copies_of_one_file():
    files = [
        image("train/cat/a.jpg", digest="a", hash_=0),
        image("train/cat/copy.jpg", digest="a", hash_=0),
        image("test/cat/a.jpg", "test", hash_=0b11),
        image("test/cat/b.jpg", "test", hash_=2**64 - 1),
    ]

    report = describe_files(FOLDER, ["cat"], files, skip=False)

    assert rows(report.text, "Similar images") == [
        ["`train/cat/a.jpg`, `test/cat/a.jpg`", "cat", "train, test"]
    ]


def test_long_lists_are_cut_and_counted():
    files = [
        image(f"train/cat/{group}-{copy}.jpg", digest=str(group))
        for group in range(60)
        for copy in range(12)
    ]

    report = describe_files(FOLDER, ["cat"], files, skip=False)

    listed = rows(report.text, "Duplicate files")
    assert len(listed) == 50
    assert mentions(listed[0][0], "and 2 more")
    assert mentions(report.text, "And 10 more groups")
    assert mentions(report.lines["duplicates"], "60 groups of 720 files")


def test_no_files_make_a_report():
    report = describe_files(FOLDER, ["cat"], [], skip=False)

    assert mentions(report.text, "0 files", "None.")


def test_odd_names_stay_in_their_cells():
    name = os.fsdecode(b"train/cat/a|b\nc`d`<i>\xff  e.jpg")

    report = describe_files(FOLDER, ["cat"], [damaged(name, "bad | reason <b>")], skip=False)

    page = html.unescape(markdown.markdown(report.text, extensions=["tables"]))
    assert page.count("<td>") == 6  # two rows of classes and one of files
    assert r"<td>train/cat/a|b\nc`d`<i>\xff \x20e.jpg</td>" in page
    assert "<td>bad | reason <b></td>" in page
    assert "\n" not in format_damaged(report.damaged)


def test_format_damaged_counts_and_names_the_first():
    text = format_damaged({f"train/{number}.jpg": "truncated" for number in range(1200)})

    assert mentions(text, "1,200 files do not decode", "train/0.jpg (truncated)", "1197 more")


def test_report_is_written_over_its_own_kind_only(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    report = describe_counts("Shapes", ["cat"], {"train": [0]})
    path = tmp_path / "photos/data.md"
    path.parent.mkdir()

    assert write_report(report, path) == write_report(report, path) == path
    assert path.read_text() == report.text

    path.write_text("# My notes\n")
    other = write_report(report, path)

    assert path.read_text() == "# My notes\n"
    assert other.is_relative_to(tmp_path / "cache")
    assert other.read_text() == report.text


def test_report_of_a_folder_that_cannot_be_written_goes_to_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    report = describe_counts("Shapes", ["cat"], {"train": [0]})

    other = write_report(report, tmp_path / "gone/data.md")

    assert other.is_relative_to(tmp_path / "cache")
