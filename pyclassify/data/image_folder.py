"""List the splits, classes and images of a folder, and cache its images decoded and resized."""

import errno
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from pyclassify.data.cache import LabeledImages, digest_files, load_cached_images
from pyclassify.data.datasets import CachedImageFiles, ImageFiles, PackedPaths
from pyclassify.data.images import UnreadableImageError, digest_decoder, is_readable
from pyclassify.data.loaders import init_worker
from pyclassify.utils.files import find_cache_folder
from pyclassify.utils.text import escape_path, join_some, shorten

_BATCH_SIZE = 64  # images that a worker returns at once
_FORMAT_VERSION = 2  # raise it with any change of the pixels of `transforms.resize_rounded`
_MAX_END_LENGTH = 20  # of a file's name
_MAX_REASONS = 6  # that one line names

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
EXPECTED = "data_path takes a folder with train/<class>/<image> (and test/, and val/ or none) in it"

# The names of the splits' folders, in any case: those of Hugging Face's imagefolder and more.
# https://huggingface.co/docs/hub/datasets-file-names-and-splits
SPLIT_NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
# What else such a name may have, as in training_set or test-images.
_FILLERS = {"set", "data", "dataset", "image", "images", "img", "imgs", "seg", "split"}

# What file servers and operating systems put beside images, in lower case: thumbnails that Synology
# (@eaDir) and QNAP (@__thumb) write with an image's own name, trash, metadata.
_SYSTEM_FOLDERS = {
    *("@eadir", "@__thumb", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "@sharesnap"),
    *("#recycle", "#snapshot", "~snapshot", "$recycle.bin", "recycler", "recycled", "_gsdata_"),
    *("system volume information", "lost+found", "lost.dir", "dfsrprivate", "found.000"),
    *("__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder"),
    *("__pycache__", "cvs"),
}
# Never images, and never missed: no line names them.
_METADATA_FILES = {
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "picasa.ini"),
    *(".ds_store", ".directory", ".localized", ".gitkeep", ".keep", ".gitignore", ".picasa.ini"),
    *(".apdisk", ".nomedia"),
}

# Why an entry of a folder is left out, beside the ends of files' names.
HIDDEN, SYSTEM_FOLDER = "hidden", "in the system's folders"
BROKEN_LINK, LINK_LOOP, NOT_A_FILE = "broken links", "links to a folder above", "not files"
NO_EXTENSION, NO_CLASS = "without an extension", "in no class's folder"
NO_SPLIT = "beside the splits"


@dataclass
class LeftOut:
    """What is left out of a folder's images, by reason.

    Args:
        counts: The number of entries by reason: the end of a file's name in lower case, such as
            ".heic", or one of this module's reasons.
        examples: One path by reason.

    Example:
        >>> left_out = LeftOut()
        >>> left_out.add(".heic", "train/cat/1.heic")
        >>> left_out.describe(Path("train"))
        '1 .heic (cat/1.heic)'
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, path: str, count: int = 1) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.examples.setdefault(reason, path)

    def update(self, other: "LeftOut") -> None:
        for reason, count in other.counts.items():
            self.add(reason, other.examples[reason], count)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def describe(self, folder: Path) -> str:
        """Describe the reasons in one line, the most frequent first, with an example of each."""
        reasons = sorted(self.counts, key=lambda reason: (-self.counts[reason], reason))
        texts = [
            f"{self.counts[reason]} {reason} ({format_path(self.examples[reason], folder)})"
            for reason in reasons
        ]
        return join_some(texts, _MAX_REASONS, "reasons")


@dataclass
class ListedSplit:
    """The images of a split, in the same order on every machine, and what was left out.

    Args:
        folder: The split's folder.
        classes: The names of the classes, by label.
        files: The paths of the images, class by class.
        labels: Their labels, int64.
        left_out: What was left out of the folder of each class that it was left out of; under ""
            what lies in no class.

    Example:
        >>> split = list_split(Path("photos/train"))
        >>> split.classes, len(split.files), split.left_out["cat"].counts
        (['cat', 'dog'], 14, {'.heic': 2})
    """

    folder: Path
    classes: list[str]
    files: PackedPaths
    labels: Tensor
    left_out: dict[str, LeftOut]

    def count_by_class(self) -> dict[str, int]:
        """Count the images of each class, also of those that have none."""
        counts = self.labels.bincount(minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))

    def sum_left_out(self) -> LeftOut:
        """Sum what was left out over the classes."""
        total = LeftOut()
        for left_out in self.left_out.values():
            total.update(left_out)
        return total


def find_splits(folder: Path) -> dict[str, Path]:
    """Find the folders of the splits, by any of their usual names.

    A name as it stands in SPLIT_NAMES wins over one with a word beside, such as training_set.

    Returns:
        The folders by "train", "val" and "test", in this order, of those that are there.

    Raises:
        MisconfigurationException: The folder can't be listed, or two folders are of one split.
    """
    if not folder.is_dir():
        return {}
    found: dict[str, dict[bool, list[str]]] = {}
    for entry in _list_folders(folder):
        split, is_exact = read_split_name(entry.name)
        if split is not None:
            found.setdefault(split, {}).setdefault(is_exact, []).append(entry.name)
    splits = {}
    for split in SPLIT_NAMES:
        if split not in found:
            continue
        names = found[split].get(True) or found[split][False]
        if len(names) > 1:
            raise MisconfigurationException(
                f"{folder} has {len(names)} folders for the split {split!r}: {', '.join(names)}; "
                "keep one of them, and merge or rename the others"
            )
        splits[split] = folder / names[0]
    return splits


def list_beside_splits(folder: Path, splits: Iterable[Path]) -> LeftOut:
    """List the folders and images beside those of the splits, which nothing reads."""
    left_out, names = LeftOut(), {split.name for split in splits}
    for entry in _scan(folder):
        if entry.name not in names and _explain_left_out(entry) is None:
            left_out.add(NO_SPLIT, entry.path)
    return left_out


def read_split_name(name: str) -> tuple[str | None, bool]:
    """Read which split a folder's name is of: None where it is of none.

    Returns:
        The split, and whether the name is one of SPLIT_NAMES as it stands.
    """
    lower = name.lower()
    for split, names in SPLIT_NAMES.items():
        if lower in names:
            return split, True
    words = [word for word in re.split(r"[^a-z]+", lower) if word and word not in _FILLERS]
    if len(words) == 1:
        joined = "|".join(_FILLERS)
        for split, names in SPLIT_NAMES.items():
            if re.fullmatch(rf"({'|'.join(names)})({joined})?", words[0]):
                return split, False
    return None, False


def check_is_folder(folder: Path, expected: str) -> None:
    """Check that a path is of a folder.

    Args:
        folder: The path.
        expected: What it takes, for the message.

    Raises:
        MisconfigurationException: There is nothing, or something else.
    """
    if folder.is_dir():
        return
    text = f"{folder} is not a folder; {expected}"
    if folder.is_symlink() and not folder.exists():
        text = f"{folder} is a link to {os.readlink(folder)}, which does not exist"
    elif folder.is_file() and folder.name.lower().endswith(ARCHIVES):
        text = (
            f"{folder} is an archive; unpack it, and give the folder that it makes by --data_path"
        )
    raise MisconfigurationException(text)


def list_classes(folder: Path) -> list[str]:
    """List the classes of a split: the names of its subfolders, sorted.

    Hidden folders and those of the system, such as @eaDir, are no classes.

    Args:
        folder: The folder of a split, such as train/.

    Raises:
        MisconfigurationException: The folder is missing, has no subfolders, or one with a name
            that is not UTF-8.
    """
    check_is_folder(folder, EXPECTED)
    classes = list_folders(folder)
    if not classes:
        raise MisconfigurationException(
            f"{folder} has no folders in it; put the images of each class in a folder of its own, "
            f"{folder}/<class>/<image>"
        )
    for name in classes:
        if not name.isprintable() and format_path(name) != name:
            raise MisconfigurationException(
                f"{folder} has a class with a name that is not UTF-8, or has line breaks in it: "
                f"{format_path(name)}; rename its folder"
            )
    return classes


def list_split(folder: Path, classes: Sequence[str] | None = None) -> ListedSplit:
    """List the images of a split by class, in the same order on every machine.

    Args:
        folder: The folder of a split, with <class>/<image> at any depth below each class.
        classes: The names of the classes, by label; the folder may lack some. By default those of
            the folder.

    Raises:
        MisconfigurationException: There is no image, or a class that is not in `classes`.
    """
    present = list_classes(folder)
    classes = present if classes is None else list(classes)
    if unknown := sorted(set(present) - set(classes)):
        raise MisconfigurationException(_describe_unknown(folder, unknown, classes))
    files: list[str] = []
    labels: list[int] = []
    left_out: dict[str, LeftOut] = {"": _list_beside_classes(folder)}
    for label, name in enumerate(classes):
        if name in present:
            left_out[name] = LeftOut()
            files += _list_files(str(folder / name), left_out[name])
            labels += [label] * (len(files) - len(labels))
    left_out = {name: found for name, found in left_out.items() if found.total}
    split = ListedSplit(folder, classes, PackedPaths(files), torch.tensor(labels), left_out)
    if not files:
        raise MisconfigurationException(
            f"{folder} has no images in its folders{describe_left_out(split)}; files that end in "
            ".jpg, .png and the like count"
        )
    return split


def list_all_images(folder: Path) -> tuple[list[str], LeftOut]:
    """List the images of a folder at any depth, in the same order on every machine.

    Args:
        folder: Any folder; hidden files and folders are left out.

    Returns:
        The paths, and what was left out.

    Raises:
        MisconfigurationException: The folder is missing or has no images.
    """
    check_is_folder(folder, "to predict, data_path takes one with images in it, at any depth")
    left_out = LeftOut()
    files = list(_list_files(str(folder), left_out))
    if not files:
        reason = f" ({left_out.describe(folder)} left out)" if left_out.total else ""
        raise MisconfigurationException(
            f"{folder} has no images, nor have the folders in it{reason}; files that end in .jpg, "
            ".png and the like count"
        )
    return files, left_out


def describe_left_out(split: ListedSplit, classes: Iterable[str] | None = None) -> str:
    """Describe what was left out, as a remark in parentheses; empty where nothing was."""
    left_out = LeftOut()
    for name in split.left_out if classes is None else classes:
        left_out.update(split.left_out.get(name, LeftOut()))
    text = left_out.describe(split.folder.parent)
    return f" (left out: {text})" if text else ""


def normalize_class(name: str, fold_case: bool = True) -> str:
    """Normalize a class's name, so that names that are meant to be the same are equal.

    They may differ by case, blanks, hyphens, underscores and the form of accents: macOS writes a
    letter and its accent one after the other.
    """
    text = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name)).strip()
    return text.casefold() if fold_case else text


def list_folders(folder: Path) -> list[str]:
    """List the names of the folders in a folder, sorted, without hidden ones and the system's."""
    return [entry.name for entry in _list_folders(folder)]


def list_images_beside(folder: Path) -> list[str]:
    """List the names of the images that lie in a folder itself, sorted."""
    return [
        entry.name
        for entry in _scan(folder)
        if not _is_folder(entry) and _explain_left_out(entry) is None
    ]


def format_path(path: str, folder: Path | None = None) -> str:
    """Format a path in one line of UTF-8, relative to a folder."""
    name = os.path.relpath(path, folder) if folder else path
    return escape_path(name)


def cache_images(files: ImageFiles, classes: Sequence[str], num_workers: int) -> CachedImageFiles:
    """Decode and resize all images once, into a cache file that later epochs and runs map.

    The pixels are those of `files`. The cache file's name depends on the content of the files:
    another process may still train on the cache of what the folder held before.

    Args:
        files: The images, with `float_resize=False`: their pixels are whole numbers, which fit in
            bytes.
        classes: The names of the classes, by label.
        num_workers: Processes that decode.

    Raises:
        MisconfigurationException: The images do not fit in memory.
        UnreadableImageError: One does not decode.
    """
    made_by = [f"{library} {version(library)}" for library in ("pillow", "torch", "torchvision")]
    digest = digest_files(files.files, files.folder)
    made_by.append(f"decoder {digest_decoder()}, format {_FORMAT_VERSION}")
    source = f"{digest} {files.size} {', '.join(made_by)}"
    name = f"{files.folder.absolute().name}-{files.size}-{sha256(source.encode()).hexdigest()[:12]}"
    content = load_cached_images(
        find_cache_folder() / "scaled" / f"{name}.mapped",
        source,
        lambda: _decode_images(files, classes, num_workers),
    )
    return CachedImageFiles(content.images, files)


def _decode_images(files: ImageFiles, classes: Sequence[str], num_workers: int) -> LabeledImages:
    dataset = ImageFiles(files.folder, files.files, files.labels, files.size, float_resize=False)
    needed, free = 3 * files.size**2 * len(dataset), psutil.virtual_memory().available
    if needed > free:
        raise MisconfigurationException(
            f"{len(dataset)} images of {files.size} pixels take {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB of memory are free; lower data.resize, or leave data.cache out"
        )
    rank_zero_info(f"{files.folder}: scaling {len(dataset)} images, once ({needed / 1e9:.1f} GB)")
    images = torch.empty(len(dataset), 3, files.size, files.size, dtype=torch.uint8)
    loader = DataLoader(
        dataset,
        _BATCH_SIZE,
        num_workers=num_workers,
        worker_init_fn=init_worker,
        # The default generator would advance in the run that writes the cache alone.
        generator=torch.Generator(),
    )
    try:
        for pixels, _, indices in loader:
            images[indices] = pixels.byte()
    except MisconfigurationException as error:
        raise UnreadableImageError(str(error)) from error
    return LabeledImages(images, dataset.labels, list(classes))


def _describe_unknown(folder: Path, unknown: list[str], classes: list[str]) -> str:
    """Describe a class that is not in `classes`, and the one of them that it may be."""
    name, others = unknown[0], f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    twins = [known for known in classes if normalize_class(known) == normalize_class(name)]
    if twins:
        return (
            f"{folder} has the class {name!r}, which train/ or --data.classes writes {twins[0]!r}; "
            "rename one of them"
        )
    return (
        f"{folder} has the class {name!r}{others}, and the classes are {join_some(classes, 20)}; "
        "they are the folders of train/ or those that --data.classes names"
    )


def _list_beside_classes(folder: Path) -> LeftOut:
    """List what lies in a split's folder itself, in no class."""
    left_out = LeftOut()
    for entry in _scan(folder):
        reason = _explain_left_out(entry)
        if reason is None and not _is_folder(entry):
            reason = NO_CLASS
        if reason is not None and entry.name.lower() not in _METADATA_FILES:
            left_out.add(reason, entry.path)
    return left_out


def _list_folders(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in _scan(folder) if _is_folder(entry) and not _explain_left_out(entry)]


def _list_files(
    folder: str, left_out: LeftOut, trail: tuple[str, ...] | None = None
) -> Iterator[str]:
    """List the images in a folder at any depth, and note what is left out.

    Args:
        folder: The folder.
        left_out: Takes what is left out.
        trail: The real path of the folder, before it those of the folders that links led out of.
    """
    trail = trail or (os.path.realpath(folder),)
    for entry in _scan(folder):
        reason = _explain_left_out(entry)
        if reason is None and _is_folder(entry):
            inner = _follow(entry, trail)
            if inner is not None:
                yield from _list_files(entry.path, left_out, inner)
                continue
            reason = LINK_LOOP
        if reason is None:
            yield entry.path
        elif entry.name.lower() not in _METADATA_FILES:
            left_out.add(reason, entry.path)


def _follow(entry: os.DirEntry[str], trail: tuple[str, ...]) -> tuple[str, ...] | None:
    """Extend a trail by a folder; None where that is a link to a folder of the trail, or above."""
    if not entry.is_symlink():
        return (*trail[:-1], os.path.join(trail[-1], entry.name))
    target = os.path.realpath(entry.path)
    if any(Path(real).is_relative_to(target) for real in trail):
        return None
    return (*trail, target)


def _explain_left_out(entry: os.DirEntry[str]) -> str | None:
    """Explain why an entry is left out; None where it is a folder or an image."""
    name = entry.name
    if name.startswith("."):
        return HIDDEN
    if _is_folder(entry):
        return SYSTEM_FOLDER if name.lower() in _SYSTEM_FOLDERS else None
    if not is_readable(name):
        end = shorten(format_path(os.path.splitext(name)[1].lower()), _MAX_END_LENGTH)
        return end if len(end) > 1 else NO_EXTENSION
    if _is_file(entry):
        return None
    return BROKEN_LINK if entry.is_symlink() else NOT_A_FILE


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in circles, or where nobody may look
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _scan(folder: Path | str) -> list[os.DirEntry[str]]:
    """List a folder, sorted by name.

    Raises:
        MisconfigurationException: It can't be listed, as nothing may be left out for that.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        advice = "give yourself the permission" if error.errno == errno.EACCES else "check the disk"
        raise MisconfigurationException(
            f"{format_path(str(folder))} can't be listed ({error.strerror}); {advice}, or move it "
            "out of the images"
        ) from error
