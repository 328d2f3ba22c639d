"""Check that a folder of images is what its user meant, before a training starts.

What no training can use is refused; what may be meant is warned of. Either names the folders, and
what to do.
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

# The folders of sets for object detection and segmentation, which have no folder for each class.
_TASK_FOLDERS = {
    *("images", "image", "imgs", "img", "jpegimages", "labels", "label", "annotations"),
    *("annotation", "masks", "mask", "bboxes", "xmls", "segmentationclass", "segmentationobject"),
}
# Where the splits are looked for, in folders below.
_MAX_LEVELS, _MAX_LEVEL_FOLDERS = 3, 100
_END_BYTES = 4096  # of a file's start and of its end, which are compared first


class SharedFiles(NamedTuple):
    """Files of one split that are also in a split before it: their number, and a pair of them."""

    split: str
    other: str
    number: int
    file: str
    twin: str


def check_root(folder: Path, classes_given: bool = False) -> dict[str, Path]:
    """Find the splits of a folder that is to be trained on.

    Args:
        folder: The folder.
        classes_given: Whether the user named the classes, so that they are what was meant.

    Returns:
        The folders by "train", "val" and "test", of those that are there.

    Raises:
        MisconfigurationException: There are no images for training or validation where they should
            be; the message says where they seem to be.
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
        folder: The folder.
        classes_given: Whether the user named the classes, so that they are what was meant.

    Raises:
        MisconfigurationException: It is missing, or its images lie in it, or in folders of another
            task.
    """
    check_is_folder(folder, EXPECTED)
    inner = list_folders(folder)
    if not inner:
        images = list_images_beside(folder)
        if images:
            raise MisconfigurationException(
                f"{folder} has {len(images)} images and no folders in it; put the images of each "
                f"class in a folder of its own, {folder}/<class>/{images[0]}"
            )
        raise MisconfigurationException(
            f"{folder} has no folders in it; put the images of each class in a folder of its own, "
            f"{folder}/<class>/<image>"
        )
    if not classes_given and all(read_split_name(name)[1] for name in inner):
        raise MisconfigurationException(
            f"{folder} has the folders {join_some(inner)}, which are splits; give --data_path "
            f"{folder}, or name the classes by --data.classes"
        )
    if not classes_given and _is_other_task(inner):
        raise MisconfigurationException(f"{folder} {_describe_task(inner)}")


def check_splits(splits: Mapping[str, ListedSplit], classes_given: bool = False) -> list[str]:
    """Check the images of a folder's splits against each other.

    Args:
        splits: The listed splits, by "train", "val" and "test".
        classes_given: Whether the user named the classes, so that they are what was meant.

    Returns:
        Warnings: what can't be right, although a training would run.

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
    for shared in find_shared_files(files, sizes):
        warnings.append(_describe_shared(shared, splits))
    return warnings


def find_shared_files(
    splits: Mapping[str, Sequence[str]], sizes: Mapping[str, Sequence[int]]
) -> list[SharedFiles]:
    """Find the files of each split that are also in a split before it, by their content.

    Sizes are compared first, then the ends of files, and then what is left as a whole.

    Args:
        splits: The paths of each split.
        sizes: Their sizes, in bytes.

    Returns:
        One entry for each two splits that share files.
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
    shared = []
    for position, split in enumerate(names):
        for other in names[:position]:
            groups = [group for group in by_key.values() if split in group and other in group]
            if groups:
                number = sum(len(group[split]) for group in groups)
                file, twin = files[groups[0][split][0]], files[groups[0][other][0]]
                shared.append(SharedFiles(split, other, number, file, twin))
    return shared


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


def _describe_shared(shared: SharedFiles, splits: Mapping[str, ListedSplit]) -> str:
    split, other = splits[shared.split].folder, splits[shared.other].folder
    root = split.parent
    if os.path.realpath(split) == os.path.realpath(other):
        what = f"{split.name}/ and {other.name}/ are one folder"
    else:
        total = len(splits[shared.split].files)
        example = f"{format_path(shared.file, root)} is {format_path(shared.twin, root)}"
        what = (
            f"{shared.number} of the {total} images in {split.name}/ are also in {other.name}/ "
            f"({example})"
        )
    learned = "were trained on" if shared.other == "train" else "chose the checkpoint"
    return f"{what}, so that {shared.split}_accuracy is of images that {learned}; remove them there"


def _describe_no_train(folder: Path) -> str:
    """Describe a folder without training images, by where they seem to be."""
    inner = list_folders(folder)
    expected = f"{folder} has no folder train"
    if not any(folder.iterdir()):
        return f"{folder} is empty; {EXPECTED}"
    if _is_other_task(inner):
        return f"{expected}; it {_describe_task(inner)}"
    if hint := _find_above(folder) or _find_below(folder, inner):
        return f"{expected}; {hint}"
    with_images = [name for name in inner if _list_names(list_images_beside, folder / name)]
    if with_images:
        return (
            f"{expected}: its folders {join_some(with_images)} have images in them; if these are "
            f"the classes, move them into {folder}/train (and images for the test into "
            f"{folder}/test/<class>)"
        )
    names = sorted(path.name for path in folder.iterdir())
    archives = [name for name in names if name.lower().endswith(ARCHIVES)]
    if archives:
        return f"{expected}, and the archive {archives[0]}; unpack it there. {EXPECTED}"
    if inner:
        close = [name for name in inner if get_close_matches(name.lower(), ("train", "training"))]
        nearest = f" (nearest: {close[0]})" if close else ""
        return f"{expected}{nearest}, and the folders {join_some(inner, 8)}; {EXPECTED}"
    return f"{expected}; {EXPECTED}"


def _find_above(folder: Path) -> str | None:
    """Find out whether a folder is one of a split or of a class; the folder to give instead."""
    absolute = Path(os.path.abspath(folder))
    if read_split_name(absolute.name)[0] and list_folders(folder):
        return f"it seems to be a split itself; give --data_path {absolute.parent}"
    if read_split_name(absolute.parent.name)[0] and list_images_beside(folder):
        return f"it seems to be one class; give --data_path {absolute.parent.parent}"
    return None


def _find_below(folder: Path, inner: Sequence[str]) -> str | None:
    """Find out whether the splits are in a folder below; the folder to give instead."""
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
            f"the splits are in the classes ({train.relative_to(folder)}); move the images to "
            f"{folder}/train/<class> and {folder}/test/<class>"
        )
    return f"it is further down; give --data_path {join_some([str(path) for path in below], 3)}"


def _list_names(list_them: Callable[[Path], Iterable[str]], folder: Path) -> list[str]:
    """List a folder, as empty where it may not be listed: it may be another user's."""
    with suppress(MisconfigurationException):
        return list(list_them(folder))
    return []


def _is_other_task(names: Sequence[str]) -> bool:
    return len(names) > 1 and _TASK_FOLDERS.issuperset(name.lower() for name in names)


def _describe_task(names: Sequence[str]) -> str:
    return (
        f"has the folders {join_some(names)}, as sets for object detection or segmentation have; "
        "put the images of each class in a folder of its own, train/<class>/<image>"
    )


def _check_sizes(splits: Mapping[str, ListedSplit], sizes: Mapping[str, Sequence[int]]) -> None:
    """Refuse empty files, at which a training would stop later.

    Raises:
        MisconfigurationException: There are some.
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
            f"{root} has empty files: {join_some(names)}; copy them again or remove them, or leave "
            "out what does not decode by --data.unreadable skip"
        )


def _describe_one_class(train: ListedSplit) -> str:
    name = train.classes[0]
    folder = train.folder / name
    inner = list_folders(folder)
    if len(inner) > 1 and not list_images_beside(folder):
        return (
            f"{train.folder} has one folder, {name!r}, and in that {len(inner)} folders "
            f"({join_some(inner)}); if these are the classes, move them up into {train.folder}"
        )
    return (
        f"{train.folder} has one class, {name!r}; a network learns to tell at least two apart, "
        f"each in a folder of its own, {train.folder}/<class>/<image>"
    )


def _find_nested_classes(train: ListedSplit) -> list[str]:
    """Warn where every class has folders alone, which may be the classes."""
    inner: dict[str, list[str]] = {}
    for name in train.classes:
        folder = train.folder / name
        inner[name] = list_folders(folder)
        if len(inner[name]) < 2 or list_images_beside(folder):
            return []
    example = train.classes[0]
    return [
        f"the folders of {train.folder} ({join_some(train.classes)}) have no images in them, but "
        f"folders ({example}/{inner[example][0]}, {example}/{inner[example][1]}); if those are the "
        "classes, move them up; if not, name the classes by --data.classes "
        f"'[{join_some(train.classes, 2)}, ...]'"
    ]


def _find_similar_classes(train: ListedSplit) -> list[str]:
    """Warn of two classes whose names differ by case, blanks or accents alone."""
    seen: dict[str, str] = {}
    for name in train.classes:
        key = normalize_class(
            name, fold_case=len(name) > 1
        )  # a letter may be a class, and be small
        if key in seen:
            return [
                f"{train.folder} has the classes {seen[key]!r} and {name!r}, which seem to be one; "
                "move the images of one into the other"
            ]
        seen[key] = name
    return []


def _find_missing_classes(split: ListedSplit) -> list[str]:
    """Warn of the classes that a split has no images of."""
    counts = split.count_by_class()
    missing = [name for name, count in counts.items() if count == 0]
    if not missing:
        return []
    return [
        f"{split.folder} has no images of {join_some(missing)}{describe_left_out(split, missing)}, "
        f"which train/ has: its accuracy says nothing of {'it' if len(missing) == 1 else 'them'}; "
        "add some"
    ]
