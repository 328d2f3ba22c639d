"""Check that a folder of images has the expected layout, before training starts.

A folder that no training can use is an error; a folder that is probably wrong gives warnings. Every
message names the folders and the next step.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyclassify.data.cache import map_in_threads
from pyclassify.data.image_folder import (
    ARCHIVES,
    EXPECTED,
    ListedSplit,
    check_is_folder,
    describe_left_out,
    find_splits,
    format_path,
    list_folders,
    list_images_beside,
    normalize_class,
    read_split_name,
)
from pyclassify.utils.text import join_some

# The folders of data sets for object detection and segmentation, which have no class folders.
_TASK_FOLDERS = {
    *("images", "image", "imgs", "img", "jpegimages", "labels", "label", "annotations"),
    *("annotation", "masks", "mask", "bboxes", "xmls", "segmentationclass", "segmentationobject"),
}
# How far below the folder the splits are searched, to suggest them.
_MAX_LEVELS, _MAX_LEVEL_FOLDERS = 3, 100
_END_BYTES = 4096  # at the start and at the end of a file, which are compared first


class DuplicatedFiles(NamedTuple):
    """Files of one split that are also in an earlier split.

    Attributes:
        split: The later split.
        other: The earlier split.
        number: How many files of the later split are also in the earlier one.
        file: One of them.
        twin: The file of the earlier split with the same content.
    """

    split: str
    other: str
    number: int
    file: str
    twin: str


def check_root(folder: Path, classes_given: bool = False) -> dict[str, Path]:
    """Find the splits of a folder, and check that training and validation have class folders.

    Args:
        folder: The folder that contains train/.
        classes_given: Whether the user named the classes; their names are then not questioned.

    Returns:
        The folder of each split that exists, by "train", "val" and "test".

    Raises:
        MisconfigurationException: The images of training or validation are not where they are
            expected; the message names where they may be.
    """
    check_is_folder(folder, EXPECTED)
    splits = find_splits(folder)
    if "train" not in splits:
        raise MisconfigurationException(_describe_no_train(folder))
    for split in ("train", "val"):
        if split in splits:
            check_split(splits[split], classes_given)
    return splits


def check_split(folder: Path, classes_given: bool = False) -> None:
    """Check that the folder of a split has a folder for each class.

    Args:
        folder: The folder of a split, such as train/.
        classes_given: Whether the user named the classes; their names are then not questioned.

    Raises:
        MisconfigurationException: The folder is missing, has no class folders, or has the folders
            of another task.
    """
    check_is_folder(folder, EXPECTED)
    inner = list_folders(folder)
    if not inner:
        images = list_images_beside(folder)
        if images:
            noun = "image" if len(images) == 1 else "images"
            raise MisconfigurationException(
                f"{folder} has {len(images)} {noun} and no class folders; put the images of each "
                f"class in a separate folder, {folder}/<class>/{images[0]}"
            )
        raise MisconfigurationException(
            f"{folder} has no class folders; put the images of each class in a separate folder, "
            f"{folder}/<class>/<image>"
        )
    if not classes_given and all(read_split_name(name)[1] for name in inner):
        raise MisconfigurationException(
            f"{folder} has the folders {join_some(inner)}, which are names of splits; give "
            f"--data_path {folder}, or name the classes by --data.classes"
        )
    if not classes_given and _is_other_task(inner):
        raise MisconfigurationException(f"{folder} {_describe_task(inner)}")


def check_splits(splits: Mapping[str, ListedSplit], classes_given: bool = False) -> list[str]:
    """Check that the splits of a folder have the same classes and no common images.

    Args:
        splits: The listed splits, by "train", "val" and "test".
        classes_given: Whether the user named the classes; their names are then not questioned.

    Returns:
        Warnings about images that training can use, but that are probably wrong.

    Raises:
        MisconfigurationException: There is only one class, or a file is empty.
    """
    train = splits["train"]
    if len(train.classes) < 2:
        raise MisconfigurationException(_describe_one_class(train))
    warnings = []
    if not classes_given:
        warnings += _find_nested_classes(train)
        warnings += _find_similar_classes(train)
        warnings += [text for split in splits.values() for text in _find_missing_classes(split)]
    sizes = {name: list(map_in_threads(_get_size, split.files)) for name, split in splits.items()}
    _check_sizes(splits, sizes)
    files = {name: split.files for name, split in splits.items()}
    for duplicated in find_duplicated_files(files, sizes):
        warnings.append(_describe_duplicated(duplicated, splits))
    return warnings


def find_duplicated_files(
    splits: Mapping[str, Sequence[str]], sizes: Mapping[str, Sequence[int]]
) -> list[DuplicatedFiles]:
    """Find the files of each split that are also in an earlier split, by their content.

    Sizes are compared first, then the start and the end of files of equal size, and then the whole
    content of files that are still equal.

    Args:
        splits: The paths of each split.
        sizes: Their sizes, in bytes.

    Returns:
        One entry for each pair of splits with common files.
    """
    names = list(splits)
    owners = [name for name in names for _ in splits[name]]
    files = [file for name in names for file in splits[name]]
    keys: list[object] = [size for name in names for size in sizes[name]]
    for digest in (_digest_ends, _digest_whole):
        candidates = _find_candidates(keys, owners)
        digests = map_in_threads(digest, [files[index] for index in candidates])
        for index, value in zip(candidates, digests, strict=True):
            keys[index] = (keys[index], value)
    by_key: dict[object, dict[str, list[int]]] = {}
    for index in _find_candidates(keys, owners):
        by_key.setdefault(keys[index], {}).setdefault(owners[index], []).append(index)
    duplicated = []
    for position, split in enumerate(names):
        for other in names[:position]:
            groups = [group for group in by_key.values() if split in group and other in group]
            if groups:
                number = sum(len(group[split]) for group in groups)
                file, twin = files[groups[0][split][0]], files[groups[0][other][0]]
                duplicated.append(DuplicatedFiles(split, other, number, file, twin))
    return duplicated


def _find_candidates(keys: Sequence[object], owners: Sequence[str]) -> list[int]:
    """Find the indices whose key occurs in more than one split."""
    splits: dict[object, str | None] = {}
    for key, owner in zip(keys, owners, strict=True):
        if splits.setdefault(key, owner) != owner:
            splits[key] = None
    return [index for index, key in enumerate(keys) if splits[key] is None]


def _get_size(file: str) -> int:
    return os.stat(file).st_size


def _digest_ends(file: str) -> bytes:
    with open(file, "rb", buffering=0) as stream:
        start = stream.read(_END_BYTES)
        stream.seek(max(os.fstat(stream.fileno()).st_size - _END_BYTES, 0))
        return sha256(start + stream.read(_END_BYTES)).digest()


def _digest_whole(file: str) -> bytes:
    with open(file, "rb", buffering=0) as stream:
        return sha256(stream.read()).digest()


def _describe_duplicated(duplicated: DuplicatedFiles, splits: Mapping[str, ListedSplit]) -> str:
    split, other = splits[duplicated.split].folder, splits[duplicated.other].folder
    root = split.parent
    advice = f"remove these images from {split.name}/"
    if os.path.realpath(split) == os.path.realpath(other):
        what = f"{split.name}/ and {other.name}/ are the same folder"
        advice = f"put other images in {split.name}/"
    else:
        total = len(splits[duplicated.split].files)
        example = f"{format_path(duplicated.file, root)} = {format_path(duplicated.twin, root)}"
        be = "is" if duplicated.number == 1 else "are"
        what = (
            f"{duplicated.number} of the {total} images in {split.name}/ {be} also in "
            f"{other.name}/ ({example})"
        )
    used = "that the network was trained on"
    if duplicated.other != "train":
        used = "that selected the best checkpoint"
    return f"{what}: {duplicated.split}_accuracy then includes images {used}; {advice}"


def _describe_no_train(folder: Path) -> str:
    """Describe a folder without training images, by where they seem to be."""
    inner = list_folders(folder)
    problem = f"{folder} has no folder train"
    if not any(folder.iterdir()):
        return f"{folder} is empty; {EXPECTED}"
    if _is_other_task(inner):
        return f"{problem}; it {_describe_task(inner)}"
    if hint := _find_above(folder) or _find_below(folder, inner):
        return f"{problem}; {hint}"
    with_images = [name for name in inner if _list_names(list_images_beside, folder / name)]
    if with_images:
        return (
            f"{problem}; its folders {join_some(with_images)} contain images. If these are the "
            f"classes, move them into {folder}/train, and the test images into "
            f"{folder}/test/<class>"
        )
    names = sorted(path.name for path in folder.iterdir())
    archives = [name for name in names if name.lower().endswith(ARCHIVES)]
    if archives:
        return f"{problem}, but the archive {archives[0]}; extract it there. {EXPECTED}"
    if inner:
        close = [name for name in inner if get_close_matches(name.lower(), ("train", "training"))]
        advice = EXPECTED
        if close:
            advice = f"rename {close[0]!r} to train if it has the training images. {EXPECTED}"
        return f"{problem}, but the folders {join_some(inner, 8)}; {advice}"
    return f"{problem}; {EXPECTED}"


def _find_above(folder: Path) -> str | None:
    """Suggest a folder above, if this one seems to be the folder of a split or of a class."""
    absolute = Path(os.path.abspath(folder))
    if read_split_name(absolute.name)[0] and list_folders(folder):
        return f"it seems to be the folder of a split; give --data_path {absolute.parent}"
    if read_split_name(absolute.parent.name)[0] and list_images_beside(folder):
        return f"it seems to be the folder of a class; give --data_path {absolute.parent.parent}"
    return None


def _find_below(folder: Path, inner: Sequence[str]) -> str | None:
    """Suggest a folder below, if the splits are there."""
    below = []
    level = [folder / name for name in inner]
    for _ in range(_MAX_LEVELS):
        below = [path for path in level if "train" in _list_names(find_splits, path)]
        if below or len(level) > _MAX_LEVEL_FOLDERS:
            break
        level = [path / name for path in level for name in _list_names(list_folders, path)]
    if not below:
        return None
    train = find_splits(below[0])["train"]
    if len(below) > 1 and not list_folders(train):
        return (
            f"the splits are inside the class folders ({train.relative_to(folder)}); move the "
            f"images to {folder}/train/<class> and {folder}/test/<class>"
        )
    paths = join_some([str(path) for path in below], 3)
    return f"a folder below has one; give --data_path {paths}"


def _list_names(list_them: Callable[[Path], Iterable[str]], folder: Path) -> list[str]:
    """List a folder; a folder that can't be listed, such as another user's, counts as empty."""
    with suppress(MisconfigurationException):
        return list(list_them(folder))
    return []


def _is_other_task(names: Sequence[str]) -> bool:
    return len(names) > 1 and _TASK_FOLDERS.issuperset(name.lower() for name in names)


def _describe_task(names: Sequence[str]) -> str:
    return (
        f"has the folders {join_some(names)}, as data sets for object detection or segmentation "
        "do; put the images of each class in a separate folder, train/<class>/<image>"
    )


def _check_sizes(splits: Mapping[str, ListedSplit], sizes: Mapping[str, Sequence[int]]) -> None:
    """Check that no file is empty: training would end with an error when it reads the file.

    Raises:
        MisconfigurationException: At least one file is empty.
    """
    empty = [
        file
        for name, split in splits.items()
        for file, size in zip(split.files, sizes[name], strict=True)
        if size == 0
    ]
    if empty:
        root = next(iter(splits.values())).folder.parent
        names = [format_path(file, root) for file in empty]
        raise MisconfigurationException(
            f"{root} has empty files: {join_some(names)}; copy the files once more, remove them, "
            "or skip files that do not decode by --data.unreadable=skip"
        )


def _describe_one_class(train: ListedSplit) -> str:
    name = train.classes[0]
    folder = train.folder / name
    inner = list_folders(folder)
    if len(inner) > 1 and not list_images_beside(folder):
        return (
            f"{train.folder} has one folder, {name!r}, which has {len(inner)} folders "
            f"({join_some(inner)}); if these are the classes, move them into {train.folder}"
        )
    return (
        f"{train.folder} has one class, {name!r} (expected at least two); put the images of each "
        f"class in a separate folder, {train.folder}/<class>/<image>"
    )


def _find_nested_classes(train: ListedSplit) -> list[str]:
    """Warn if every class folder has only folders in it: these may be the classes."""
    inner: dict[str, list[str]] = {}
    for name in train.classes:
        folder = train.folder / name
        inner[name] = list_folders(folder)
        if len(inner[name]) < 2 or list_images_beside(folder):
            return []
    example = train.classes[0]
    return [
        f"the folders of {train.folder} ({join_some(train.classes)}) have no images directly in "
        f"them, only folders ({example}/{inner[example][0]}, {example}/{inner[example][1]}); if "
        f"those are the classes, move them into {train.folder}; otherwise name the classes by "
        f"--data.classes '[{join_some(train.classes, 2)}, ...]'"
    ]


def _find_similar_classes(train: ListedSplit) -> list[str]:
    """Warn of two classes whose names differ only by case, spaces or the form of accents."""
    seen: dict[str, str] = {}
    for name in train.classes:
        # Single letters may be classes, as in data sets of handwriting: a and A differ.
        key = normalize_class(name, fold_case=len(name) > 1)
        if key in seen:
            return [
                f"{train.folder} has the classes {seen[key]!r} and {name!r}, which seem to be the "
                "same class; move the images of one into the folder of the other"
            ]
        seen[key] = name
    return []


def _find_missing_classes(split: ListedSplit) -> list[str]:
    """Warn of classes without images in a split."""
    counts = split.count_by_class()
    missing = [name for name, count in counts.items() if count == 0]
    if not missing:
        return []
    return [
        f"{split.folder} has no images of {join_some(missing)}{describe_left_out(split, missing)}, "
        f"but train/ has: the accuracy on {split.folder.name}/ does not cover "
        f"{'this class' if len(missing) == 1 else 'these classes'}; add images"
    ]
