"""Report the content and the flaws of a data set, as Markdown and as lines for the terminal.

For scanned files (`data/scan`) the report has sizes, modes, files that do not decode, duplicates
and similar images. For other data sets it has the number of images of each class and split.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import median_low
from typing import NamedTuple, TypeVar

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from pyclassify.data.duplicates import MAX_DISTANCE, group_equal, group_similar
from pyclassify.data.scan import FileFacts, load_facts
from pyclassify.utils.files import find_cache_folder, write_atomically
from pyclassify.utils.text import escape_markdown, escape_path, format_code, join_some

REPORT_NAME = "data.md"
# The end of each report, which a file of the same name from another source does not have.
_SIGNATURE = '\n\n[pyclassify]: # "data report"\n'
_NOT_SCANNED = (
    "The files were counted, not decoded. `pyclassify prepare` decodes every file; runs after it "
    "have the complete report."
)
_MAX_CLASSES = 1000  # rows in the table of classes
_MAX_GROUPS = 50  # rows in a table of duplicates; all groups are counted
_MAX_FILES = 10  # files and classes in such a row
_MAX_PATH_LENGTH = 1000
_T = TypeVar("_T", int, tuple[int, int, int])


class FileEntry(NamedTuple):
    """A file of a data set: its path, its split and its label."""

    file: str
    split: str
    label: int


class ImageFile(NamedTuple):
    """A file of a data set: its path in the folder, its split, its class and its content."""

    path: str
    split: str
    class_name: str
    facts: FileFacts


@dataclass(frozen=True)
class DataReport:
    """A report of a data set.

    Attributes:
        text: The report in Markdown.
        lines: The figures for the terminal, by name.
        damaged: The reason of each file that does not decode, by its path.
        skipped: The number of such files that are left out of the data set.
    """

    text: str
    lines: Mapping[str, str]
    damaged: Mapping[str, str] = field(default_factory=dict)
    skipped: int = 0


def describe_counts(
    name: str,
    classes: Sequence[str],
    labels: Mapping[str, Sequence[int]],
    note: str = "",
    skipped: Mapping[str, str] | None = None,
) -> DataReport:
    """Describe a data set by the number of its images.

    Args:
        name: The name of the data set, or its folder.
        classes: The names of the classes, by label.
        labels: The label of each image, by split.
        note: A paragraph below the title.
        skipped: The reason of each file that does not decode and is left out, by its path.
    """
    damaged = dict(skipped or {})
    counts = {split: Counter(str(classes[label]) for label in labels[split]) for split in labels}
    title = f"# Data: {format_code(escape_path(name), 300)}"
    sections = [title, note, _format_counts(classes, counts)]
    if damaged:
        sections.append(_format_damaged(damaged, skip=True))
    lines = _list_counts(counts, len(classes))
    return DataReport(_join(sections), lines, damaged, len(damaged))


def describe_folder(
    folder: Path,
    classes: Sequence[str],
    entries: Sequence[FileEntry],
    skip: bool,
    skipped: Mapping[str, str],
) -> DataReport:
    """Describe a folder by its scanned files; by counts if a file was not scanned or has changed.

    Args:
        folder: The folder.
        classes: The names of the classes, by label.
        entries: The files of all splits.
        skip: Whether files that do not decode are left out.
        skipped: The reason of each file that is left out, by its path in the folder.
    """
    names = [os.path.relpath(entry.file, folder) for entry in entries]
    facts = load_facts([entry.file for entry in entries], folder)
    if facts is not None:
        files = [
            ImageFile(name, entry.split, str(classes[entry.label]), found)
            for name, entry, found in zip(names, entries, facts, strict=True)
        ]
        return describe_files(folder, classes, files, skip)
    labels: dict[str, list[int]] = {entry.split: [] for entry in entries}
    for name, entry in zip(names, entries, strict=True):
        if name not in skipped:
            labels[entry.split].append(entry.label)
    note = "" if skip else _NOT_SCANNED
    return describe_counts(str(folder), classes, labels, note, skipped)


def describe_files(
    folder: Path, classes: Sequence[str], files: Sequence[ImageFile], skip: bool
) -> DataReport:
    """Describe the scanned files of a folder.

    Args:
        folder: The folder.
        classes: The names of the classes, by label.
        files: The files of all splits.
        skip: Whether files that do not decode are left out; otherwise they are an error.
    """
    damaged = {file.path: file.facts.error for file in files if file.facts.error}
    images = [file for file in files if not file.facts.error]
    splits = list(dict.fromkeys(file.split for file in files))
    counts = {
        split: Counter(file.class_name for file in images if file.split == split)
        for split in splits
    }
    duplicates = _Groups(images, group_equal([file.facts.digest for file in images]))
    similar = _Groups(images, _find_similar(images))
    size = sum(file.facts.status[0] for file in files)
    sections = [
        f"# Data: {format_code(escape_path(str(folder)), 300)}",
        f"{_count_files(len(files))}, {_format_bytes(size)}. Every file was checked.",
        _format_counts(classes, counts),
        _format_damaged(damaged, skip),
        _format_sizes(images),
        _format_modes(images),
        f"## Duplicate files\n\n{duplicates.format('Their bytes are identical (SHA-256).')}",
        "## Similar images\n\n"
        + similar.format(
            f"Their difference hashes differ in at most {MAX_DISTANCE} of 64 bits, directly or "
            "through other images of the group. Some groups have different pictures: look at the "
            "images before you remove any."
        ),
    ]
    lines = _list_counts(counts, len(classes))
    lines["unreadable"] = f"{len(damaged):,}{' left out' if damaged and skip else ''}"
    lines["duplicates"] = duplicates.summarize()
    lines["similar images"] = similar.summarize()
    return DataReport(_join(sections), lines, damaged, len(damaged) if skip else 0)


def write_report(report: DataReport, path: Path) -> Path:
    """Write a report; if that is impossible, write it to the user's cache folder.

    A file of the same name that is not a report is not replaced.

    Args:
        report: The report.
        path: The file to write.

    Returns:
        The file that was written.

    Raises:
        OSError: The report can't be written to the cache folder either.
    """
    with suppress(OSError):
        if not path.exists() or path.read_bytes().endswith(_SIGNATURE.encode()):
            write_atomically(path, report.text)
            return path
    folder = path.parent.absolute()
    key = sha256(os.fsencode(folder)).hexdigest()[:12]
    other = find_cache_folder() / "reports" / f"{folder.name[:100]}-{key}-{path.name}"
    other.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(other, report.text)
    reason = "exists and is not a report of pyclassify" if path.exists() else "can't be written"
    rank_zero_info(f"{path} {reason}; the report is in {other}")
    return other


def format_damaged(damaged: Mapping[str, str]) -> str:
    """Format the number of files that do not decode, and the first of them, in one line."""
    files = [f"{escape_path(path)} ({reason})" for path, reason in damaged.items()]
    negation = "does not" if len(files) == 1 else "do not"
    return f"{_count_files(len(files))} {negation} decode: {join_some(files)}"


# Sections


def _join(sections: Iterable[str]) -> str:
    return "\n\n".join(section for section in sections if section) + _SIGNATURE


def _format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines)


def _format_counts(classes: Sequence[str], counts: Mapping[str, Counter[str]]) -> str:
    names = [str(name) for name in classes]
    rows = [
        [escape_markdown(name), *(f"{counts[split][name]:,}" for split in counts)]
        for name in names[:_MAX_CLASSES]
    ]
    if len(names) > _MAX_CLASSES:
        rows.append([f"and {len(names) - _MAX_CLASSES:,} more", *("" for _ in counts)])
    total = ["**all**", *(f"**{count.total():,}**" for count in counts.values())]
    table = _format_table(["class", *counts], [total, *rows])
    balance = "".join(f"\n\n{line}" for line in _format_balance(names, counts))
    return f"## Images of each class\n\n{table}{balance}"


def _format_balance(names: Sequence[str], counts: Mapping[str, Counter[str]]) -> Iterator[str]:
    if "train" not in counts or len(names) < 2:
        return
    train = {name: counts["train"][name] for name in names}
    most, least = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
    if train[most] == train[least]:
        yield "The classes have the same number of training images."
    elif train[least]:
        yield (
            f"The largest class in training, {escape_markdown(most)}, has "
            f"{train[most] / train[least]:.1f} times as many images as the smallest, "
            f"{escape_markdown(least)}."
        )
    else:
        yield f"The class {escape_markdown(least)} has no training images."


def _list_counts(counts: Mapping[str, Counter[str]], num_classes: int) -> dict[str, str]:
    splits = [f"{split} {count.total():,}" for split, count in counts.items()]
    noun = "class" if num_classes == 1 else "classes"
    return {"images": f"{', '.join(splits)}; {num_classes:,} {noun}"}


def _format_damaged(damaged: Mapping[str, str], skip: bool) -> str:
    if not damaged:
        return "## Files that do not decode\n\nNone."
    effect = "They are left out" if skip else "Training refuses them"
    option = f"`--data.unreadable={'skip' if skip else 'stop'}`"
    rows = [[_format_path(path), escape_markdown(damaged[path], 200)] for path in damaged]
    table = _format_table(["file", "reason"], rows)
    return (
        f"## Files that do not decode\n\n{_count_files(len(damaged))}. {effect} ({option})."
        f"\n\n{table}"
    )


def _format_sizes(images: Sequence[ImageFile]) -> str:
    if not images:
        return ""
    facts = [file.facts for file in images]
    values = {
        "width": [f"{value:,}" for value in _summarize([fact.width for fact in facts])],
        "height": [f"{value:,}" for value in _summarize([fact.height for fact in facts])],
        "width x height": [
            f"{width:,} x {height:,}"
            for _, width, height in _summarize(
                [(fact.width * fact.height, fact.width, fact.height) for fact in facts]
            )
        ],
        "file": [_format_bytes(size) for size in _summarize([fact.status[0] for fact in facts])],
    }
    table = _format_table(
        ["", "smallest", "median", "largest"], [[key, *row] for key, row in values.items()]
    )
    by_size = sorted(images, key=lambda file: file.facts.status[0])
    by_pixels = sorted(images, key=lambda file: file.facts.width * file.facts.height)
    return (
        f"## Sizes\n\n{table}\n\n"
        f"Smallest file: {_format_path(by_size[0].path)}. "
        f"Largest file: {_format_path(by_size[-1].path)}. "
        f"Fewest pixels: {_format_path(by_pixels[0].path)}. "
        f"Most pixels: {_format_path(by_pixels[-1].path)}."
    )


def _format_modes(images: Sequence[ImageFile]) -> str:
    modes = Counter(file.facts.mode for file in images)
    if not modes:
        return ""
    rows = [[format_code(mode), f"{count:,}"] for mode, count in modes.most_common()]
    return f"## Modes\n\n{_format_table(['mode in Pillow', 'images'], rows)}"


def _summarize(values: Sequence[_T]) -> tuple[_T, _T, _T]:
    return min(values), median_low(values), max(values)


# Duplicates


def _find_similar(images: Sequence[ImageFile]) -> list[list[int]]:
    """Group similar images; of duplicate files, only the first is in a group."""
    first = {file.facts.digest: index for index, file in reversed([*enumerate(images)])}
    indices = sorted(first.values())
    groups = group_similar([images[index].facts.hash for index in indices])
    return [[indices[member] for member in group] for group in groups]


class _Groups:
    """Groups of images: first groups of several classes, then groups of several splits."""

    def __init__(self, images: Sequence[ImageFile], groups: Sequence[Sequence[int]]) -> None:
        members = [[images[index] for index in group] for group in groups]
        self._groups = sorted(members, key=self._rank, reverse=True)
        self._classes = sum(self._rank(group)[0] for group in members)
        self._splits = sum(self._rank(group)[1] for group in members)

    @staticmethod
    def _rank(group: Sequence[ImageFile]) -> tuple[bool, bool, int]:
        classes = {file.class_name for file in group}
        splits = {file.split for file in group}
        return len(classes) > 1, len(splits) > 1, len(group)

    def summarize(self) -> str:
        if not self._groups:
            return "none"
        count = sum(map(len, self._groups))
        noun = "group" if len(self._groups) == 1 else "groups"
        return (
            f"{len(self._groups):,} {noun} of {_count_files(count)}; {self._splits:,} in several "
            f"splits, {self._classes:,} in several classes"
        )

    def format(self, explanation: str) -> str:
        if not self._groups:
            return "None."
        rows = [self._format_group(group) for group in self._groups[:_MAX_GROUPS]]
        more = ""
        if len(self._groups) > _MAX_GROUPS:
            more = f"\n\nAnd {len(self._groups) - _MAX_GROUPS:,} more groups."
        table = _format_table(["files", "classes", "splits"], rows)
        return f"{self.summarize()}. {explanation}\n\n{table}{more}"

    @staticmethod
    def _format_group(group: Sequence[ImageFile]) -> list[str]:
        classes = dict.fromkeys(escape_markdown(file.class_name) for file in group)
        splits = dict.fromkeys(file.split for file in group)
        paths = [_format_path(file.path) for file in group[:_MAX_FILES]]
        if len(group) > _MAX_FILES:
            paths.append(f"and {len(group) - _MAX_FILES:,} more")
        return [", ".join(paths), join_some([*classes], _MAX_FILES), ", ".join(splits)]


def _format_path(path: str) -> str:
    # Markdown shows several spaces as one.
    return format_code(escape_path(path).replace("  ", r" \x20"), _MAX_PATH_LENGTH)


def _count_files(count: int) -> str:
    return f"{count:,} {'file' if count == 1 else 'files'}"


def _format_bytes(count: int) -> str:
    for unit, factor in {"GB": 1e9, "MB": 1e6, "kB": 1e3}.items():
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
