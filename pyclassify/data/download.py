"""Download data sets of torchvision: once for all processes, verified by checksums."""

import io
import socket
import sys
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import (
    AbstractContextManager,
    contextmanager,
    nullcontext,
    redirect_stderr,
    suppress,
)
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import torchvision.datasets
from filelock import FileLock
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torchvision.datasets.utils import check_integrity

TIMEOUT_SECONDS = 60.0  # without a byte from the server
# torchvision raises RuntimeError for missing or corrupt files, and one of the next three for a
# truncated file of MNIST, as extracted files have no checksum. Transfers raise the others.
_DOWNLOAD_ERRORS = (
    RuntimeError,
    ValueError,
    AssertionError,
    EOFError,
    OSError,
    HTTPException,
    tarfile.TarError,
    zlib.error,
)


def fetch_dataset(name: str, root: Path, train: bool) -> Any:
    """Load the training or test split of a data set of torchvision; download it if needed.

    An incomplete or corrupt download is removed and retried once. Of the processes that share the
    folder, one downloads and the others wait.

    Args:
        name: The class in `torchvision.datasets`.
        root: The folder of the files.
        train: Whether to load the training split; otherwise the test split.

    Returns:
        The data set of torchvision.

    Raises:
        MisconfigurationException: The folder can't be written, the server can't be reached, or
            the download was corrupt twice.
    """
    with suppress(*_DOWNLOAD_ERRORS):
        return _build_dataset(name, root, train)
    with _lock(root):
        with suppress(*_DOWNLOAD_ERRORS):  # another process may have downloaded it
            return _build_dataset(name, root, train)
        _remove_corrupt(name, root, train)
        rank_zero_info(f"Downloading {name} to {root}")
        return _download(name, root, train)


def list_checksums(name: str, train: bool) -> list[str]:
    """List the MD5 sums of the files that torchvision reads for a split.

    Args:
        name: The class in `torchvision.datasets`.
        train: Whether to list those of the training split; otherwise of the test split.
    """
    return _list_files(name, train).sums


class _DatasetFiles(NamedTuple):
    """The files of a split, as paths in the folder of the data set."""

    downloads: dict[str, str]  # with their MD5 sums
    sums: list[str]  # of the files that torchvision reads, archives or extracted files
    unchecked: list[str]  # extracted files, which torchvision reads without a checksum


def _list_files(name: str, train: bool) -> _DatasetFiles:
    dataset = getattr(torchvision.datasets, name)
    if name == "SVHN":
        _, file, md5 = dataset.split_list["train" if train else "test"]
        return _DatasetFiles({file: md5}, [md5], [])
    if name.startswith("CIFAR"):
        files = dataset.train_list if train else dataset.test_list
        sums = [*(md5 for _, md5 in files), dataset.meta["md5"]]
        return _DatasetFiles({dataset.filename: dataset.tgz_md5}, sums, [])
    downloads = {f"{name}/raw/{file}": md5 for file, md5 in dataset.resources}
    unpacked = [file.removesuffix(".gz") for file in downloads]
    return _DatasetFiles(downloads, [*downloads.values()], unpacked)


def _build_dataset(name: str, root: Path, train: bool, download: bool = False) -> Any:
    split = {"split": "train" if train else "test"} if name == "SVHN" else {"train": train}
    return getattr(torchvision.datasets, name)(root, **split, download=download)


def _lock(root: Path) -> AbstractContextManager[Any]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        return FileLock(root / ".lock").acquire()
    except OSError as error:
        raise MisconfigurationException(
            f"data_path {root} can't be written ({error.strerror}); give a writable folder by "
            "--data_path FOLDER"
        ) from error


def _download(name: str, root: Path, train: bool, retry: bool = True) -> Any:
    try:
        with _quiet_download():
            return _build_dataset(name, root, train, download=True)
    except _DOWNLOAD_ERRORS as error:
        reason = (str(error).strip() or repr(error)).splitlines()[-1].strip("<>")
        corrupt = _remove_corrupt(name, root, train)
        if corrupt:
            reason = f"the download of {', '.join(corrupt)} is incomplete or corrupt: {reason}"
        if not (corrupt and retry):
            data = "" if name == "CIFAR10" else f"--data=TorchvisionDataModule --data.name={name} "
            raise MisconfigurationException(
                f"{name} can't be downloaded ({reason}); run `pyclassify prepare {data}"
                f"--data_path {root}` on a machine with network access, or train on a folder of "
                "images (--data=ImageFolderDataModule --data_path FOLDER) or on synthetic images "
                "(--config configs/synthetic.yaml)"
            ) from error
    rank_zero_warn(f"{reason}; the file is removed, and {name} is downloaded a second time")
    return _download(name, root, train, retry=False)


def _remove_corrupt(name: str, root: Path, train: bool) -> list[str]:
    """Remove corrupt downloads, and extracted files without a checksum; name the downloads."""
    files = _list_files(name, train)
    for file in files.unchecked:
        (root / file).unlink(missing_ok=True)
    downloads = [(root / file, md5) for file, md5 in files.downloads.items()]
    corrupt = [path for path, md5 in downloads if path.exists() and not check_integrity(path, md5)]
    for path in corrupt:
        path.unlink()
    return [path.name for path in corrupt]


@contextmanager
def _quiet_download() -> Iterator[None]:
    """Set a timeout for torchvision's transfers, and hide its progress bar from log files."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)  # torchvision waits forever
    try:
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)
