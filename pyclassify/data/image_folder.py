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
_MAX_EXTENSION_LENGTH = 20
_MAX_REASONS = 6  # in one message

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
EXPECTED = (
    "data_path must be a folder with train/<class>/<image>, test/<class>/<image> and optionally "
    "val/<class>/<image>"
)

_EXTENSIONS = "images are files with the extension .jpg, .png or another of docs/images.md"

# The names of split folders, in any case: those of Hugging Face's imagefolder and more.
# https://huggingface.co/docs/hub/datasets-file-names-and-splits
SPLIT_NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
# Words that such a name may have besides, as in training_set or test-images.
_FILLERS = {"set", "data", "dataset", "image", "images", "img", "imgs", "seg", "split"}

# Folders that file servers and operating systems add, in lower case: trash, metadata, and the
# thumbnails of Synology (@eaDir) and QNAP (@__thumb), which have the names of the images.
_SYSTEM_FOLDERS = {
    *("@eadir", "@__thumb", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "@sharesnap"),
    *("#recycle", "#snapshot", "~snapshot", "$recycle.bin", "recycler", "recycled", "_gsdata_"),
    *("system volume information", "lost+found", "lost.dir", "dfsrprivate", "found.000"),
    *("__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder"),
    *("__pycache__", "cvs"),
}
# Files that are obviously not images; no message counts them.
_METADATA_FILES = {
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "picasa.ini"),
    *(".ds_store", ".directory", ".localized", ".gitkeep", ".keep", ".gitignore", ".picasa.ini"),
    *(".apdisk", ".nomedia"),
}

# Why an entry of a folder is left out, if not for the extension of its name.
HIDDEN, SYSTEM_FOLDER = "hidden", "in system folders"
BROKEN_LINK, LINK_LOOP = "broken links", "links to a parent folder"
NOT_A_FILE, NO_EXTENSION = "not regular files", "without an extension"
NO_CLASS, NO_SPLIT = "outside of the class folders", "outside of the split folders"


@dataclass
class LeftOut:
    """Files and folders that are not read as images, by reason.

    Args:
        counts: The number of entries by reason: the extension of a file in lower case, such as
            ".heic", or one of this module's reasons, such as "hidden".
        examples: The path of one entry, by reason.

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
        """Describe the reasons in one line, the most frequent first, each with an example."""
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
        folder: The folder of the split.
        classes: The names of the classes, by label.
        files: The paths of the n images, class by class.
        labels: Their labels, int64 [n].
        left_out: What was left out, by class, for classes where something was; the key "" has what
            is outside of the class folders.

    Example:
        >>> split = list_split(Path("photos/train"))
        >>> split.count_by_class(), split.left_out
        ({'cat': 10, 'dog': 10}, {})
    """

    folder: Path
    classes: list[str]
    files: PackedPaths
    labels: Tensor
    left_out: dict[str, LeftOut]

    def count_by_class(self) -> dict[str, int]:
        """Count the images of each class; 0 for a class without images."""
        counts = self.labels.bincount(minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))

    def sum_left_out(self) -> LeftOut:
        """Sum up what was left out of all classes."""
        total = LeftOut()
        for left_out in self.left_out.values():
            total.update(left_out)
        return total


def find_splits(folder: Path) -> dict[str, Path]:
    """Find the folders of the splits, by any of their usual names.

    A name in SPLIT_NAMES, such as train, has priority over one with another word, such as
    training_set.

    Returns:
        The folder of each split that exists, by "train", "val" and "test", in this order.

    Raises:
        MisconfigurationException: The folder can't be listed, or has two folders for one split.
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
                f"{folder} has {len(names)} folders for the split {split!r}: {', '.join(names)} "
                "(expected one); merge them, or rename those that are not this split"
            )
        splits[split] = folder / names[0]
    return splits


def list_beside_splits(folder: Path, splits: Iterable[Path]) -> LeftOut:
    """List the folders and images outside of the split folders; nothing reads them."""
    left_out, names = LeftOut(), {split.name for split in splits}
    for entry in _scan(folder):
        if entry.name not in names and _get_reason(entry) is None:
            left_out.add(NO_SPLIT, entry.path)
    return left_out


def read_split_name(name: str) -> tuple[str | None, bool]:
    """Read the name of a folder as that of a split.

    Returns:
        The split, or None, and whether the name is in SPLIT_NAMES without another word.
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
    """Check that a path is a folder.

    Args:
        folder: The path.
        expected: What is expected, for the message.

    Raises:
        MisconfigurationException: The path does not exist, or is not a folder.
    """
    if folder.is_dir():
        return
    text = f"{folder} is not a folder; {expected}"
    if folder.is_symlink() and not folder.exists():
        text = f"{folder} is a link to {os.readlink(folder)}, which does not exist"
    elif folder.is_file() and folder.name.lower().endswith(ARCHIVES):
        text = f"{folder} is an archive; extract it, and give the extracted folder by --data_path"
    raise MisconfigurationException(text)


def list_classes(folder: Path) -> list[str]:
    """List the classes of a split: the names of its subfolders, sorted.

    Hidden folders and system folders, such as @eaDir, are not classes.

    Args:
        folder: The folder of a split, such as train/.

    Raises:
        MisconfigurationException: The folder is missing, has no subfolders, or has a subfolder
            whose name is not UTF-8 or contains a line break.
    """
    check_is_folder(folder, EXPECTED)
    classes = list_folders(folder)
    if not classes:
        raise MisconfigurationException(
            f"{folder} has no class folders; put the images of each class in a separate folder, "
            f"{folder}/<class>/<image>"
        )
    for name in classes:
        if not name.isprintable() and format_path(name) != name:
            raise MisconfigurationException(
                f"{folder} has a class whose name is not UTF-8 or contains a line break: "
                f"{format_path(name)}; rename this folder"
            )
    return classes


def list_split(folder: Path, classes: Sequence[str] | None = None) -> ListedSplit:
    """List the images of a split by class, in the same order on every machine.

    Args:
        folder: The folder of a split, with <class>/<image> at any depth below each class.
        classes: The names of the classes, by label; the folder may lack some. By default the
            subfolders, sorted.

    Raises:
        MisconfigurationException: The folder has no images, or a class that is not in `classes`.
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
            f"{folder} has no images in its class folders{describe_left_out(split)}; {_EXTENSIONS}"
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
    check_is_folder(folder, "to predict, data_path must be a folder with images, at any depth")
    left_out = LeftOut()
    files = list(_list_files(str(folder), left_out))
    if not files:
        reason = f" ({left_out.describe(folder)} left out)" if left_out.total else ""
        raise MisconfigurationException(
            f"{folder} has no images, at any depth{reason}; {_EXTENSIONS}"
        )
    return files, left_out


def describe_left_out(split: ListedSplit, classes: Iterable[str] | None = None) -> str:
    """Describe what was left out, in parentheses; empty if nothing was."""
    left_out = LeftOut()
    for name in split.left_out if classes is None else classes:
        left_out.update(split.left_out.get(name, LeftOut()))
    text = left_out.describe(split.folder.parent)
    return f" (left out: {text})" if text else ""


def normalize_class(name: str, fold_case: bool = True) -> str:
    """Normalize the name of a class, so that different spellings of one name are equal.

    Spellings differ by case, spaces, hyphens, underscores and the form of accents: macOS stores a
    letter and its accent as two characters.
    """
    text = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name)).strip()
    return text.casefold() if fold_case else text


def list_folders(folder: Path) -> list[str]:
    """List the names of the folders in a folder, sorted, without hidden and system folders."""
    return [entry.name for entry in _list_folders(folder)]


def list_images_beside(folder: Path) -> list[str]:
    """List the names of the images directly in a folder, sorted."""
    return [
        entry.name
        for entry in _scan(folder)
        if not _is_folder(entry) and _get_reason(entry) is None
    ]


def format_path(path: str, folder: Path | None = None) -> str:
    """Format a path in one line of UTF-8, relative to a folder."""
    name = os.path.relpath(path, folder) if folder else path
    return escape_path(name)


def cache_images(files: ImageFiles, classes: Sequence[str], num_workers: int) -> CachedImageFiles:
    """Decode and resize all images once, into a cache file that later epochs and runs map.

    The pixels are those of `files`. The name of the cache file depends on the content of the files:
    another process may still train on the cache of the earlier content.

    Args:
        files: The images, with `float_resize=False`, so that their pixels fit in bytes.
        classes: The names of the classes, by label.
        num_workers: The number of processes that decode.

    Raises:
        MisconfigurationException: The images do not fit in memory.
        UnreadableImageError: An image does not decode.
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
            f"data.cache needs {needed / 1e9:.1f} GB of memory for {len(dataset)} images of "
            f"{files.size} x {files.size} pixels, and {free / 1e9:.1f} GB are available; lower "
            "data.resize, or train without data.cache"
        )
    rank_zero_info(
        f"{files.folder}: decoding and resizing {len(dataset)} images once, into a cache of "
        f"{needed / 1e9:.1f} GB"
    )
    images = torch.empty(len(dataset), 3, files.size, files.size, dtype=torch.uint8)
    loader = DataLoader(
        dataset,
        _BATCH_SIZE,
        num_workers=num_workers,
        worker_init_fn=init_worker,
        # The default generator would advance only in the run that writes the cache.
        generator=torch.Generator(),
    )
    try:
        for pixels, _, indices in loader:
            images[indices] = pixels.byte()
    except MisconfigurationException as error:
        raise UnreadableImageError(str(error)) from error
    return LabeledImages(images, dataset.labels, list(classes))


def _describe_unknown(folder: Path, unknown: list[str], classes: list[str]) -> str:
    """Describe a class that is not in `classes`, and the class of another spelling."""
    name, others = unknown[0], f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    twins = [known for known in classes if normalize_class(known) == normalize_class(name)]
    if twins:
        return (
            f"{folder} has the class {name!r}, which train/ or --data.classes spells {twins[0]!r}; "
            "rename one of them"
        )
    return (
        f"{folder} has the class {name!r}{others} (expected {join_some(classes, 20)}); the classes "
        "are the folders of train/, or those that --data.classes names"
    )


def _list_beside_classes(folder: Path) -> LeftOut:
    """List what is in the folder of a split, outside of its class folders."""
    left_out = LeftOut()
    for entry in _scan(folder):
        reason = _get_reason(entry)
        if reason is None and not _is_folder(entry):
            reason = NO_CLASS
        if reason is not None and entry.name.lower() not in _METADATA_FILES:
            left_out.add(reason, entry.path)
    return left_out


def _list_folders(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in _scan(folder) if _is_folder(entry) and not _get_reason(entry)]


def _list_files(
    folder: str, left_out: LeftOut, trail: tuple[str, ...] | None = None
) -> Iterator[str]:
    """List the images in a folder at any depth, and record what is left out.

    Args:
        folder: The folder.
        left_out: Gets what is left out.
        trail: The real paths of the folders from which links led here, and of this folder.
    """
    trail = trail or (os.path.realpath(folder),)
    for entry in _scan(folder):
        reason = _get_reason(entry)
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
    """Extend a trail by a folder; None for a link to a folder of the trail or a parent of one."""
    if not entry.is_symlink():
        return (*trail[:-1], os.path.join(trail[-1], entry.name))
    target = os.path.realpath(entry.path)
    if any(Path(real).is_relative_to(target) for real in trail):
        return None
    return (*trail, target)


def _get_reason(entry: os.DirEntry[str]) -> str | None:
    """Return why an entry is left out; None for a folder or an image."""
    name = entry.name
    if name.startswith("."):
        return HIDDEN
    if _is_folder(entry):
        return SYSTEM_FOLDER if name.lower() in _SYSTEM_FOLDERS else None
    if not is_readable(name):
        extension = os.path.splitext(name)[1].lower()
        if len(extension) > 1:
            return shorten(format_path(extension), _MAX_EXTENSION_LENGTH)
        return NO_EXTENSION
    if _is_file(entry):
        return None
    return BROKEN_LINK if entry.is_symlink() else NOT_A_FILE


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder without permission
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _scan(folder: Path | str) -> list[os.DirEntry[str]]:
    """List a folder, sorted by name.

    Raises:
        MisconfigurationException: The folder can't be listed: its images must not be left out.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        advice = "check the file system"
        if error.errno == errno.EACCES:
            advice = "change its permissions (chmod u+rx)"
        raise MisconfigurationException(
            f"{format_path(str(folder))} can't be listed ({error.strerror}); {advice}, or move the "
            "folder elsewhere"
        ) from error
