"""torchvision's data sets, fetched whole or not at all."""

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

TIMEOUT_SECONDS = 60.0  # seconds that a server may be silent
# torchvision's word for "not there or not whole" is RuntimeError. MNIST's unpacked files have no
# hash, so that its reader trips over what they lack. The rest is what a transfer fails with.
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
    """Read a half of one of torchvision's data sets, and download it first unless it is there.

    What arrives incomplete or corrupt is removed and fetched once more. Processes that share the
    folder wait for each other, so that one of them downloads.

    Args:
        name: The set's class in `torchvision.datasets`.
        root: The folder it is kept in.
        train: Which half: for training, or for the test.

    Returns:
        torchvision's data set.

    Raises:
        MisconfigurationException: The folder can't be written, the set can't be reached, or it
            arrived corrupt twice.
    """
    with suppress(*_DOWNLOAD_ERRORS):
        return _build_dataset(name, root, train)
    with _lock(root):
        with suppress(*_DOWNLOAD_ERRORS):  # another process may have been faster
            return _build_dataset(name, root, train)
        _remove_corrupt(name, root, train)
        rank_zero_info(f"Fetching {name} into {root}")
        return _download(name, root, train)


def list_checksums(name: str, train: bool) -> list[str]:
    """The MD5 sums by which torchvision knows what a half of a set is read from."""
    return _list_files(name, train).sums


class _DatasetFiles(NamedTuple):
    """The files of a half of a set, by their paths in its folder.

    downloads: with their MD5 sums; sums: of what is read, packed or not; unchecked: what
    torchvision unpacks and takes as it is.
    """

    downloads: dict[str, str]
    sums: list[str]
    unchecked: list[str]


def _list_files(name: str, train: bool) -> _DatasetFiles:
    kind = getattr(torchvision.datasets, name)
    if name == "SVHN":
        _, file, md5 = kind.split_list["train" if train else "test"]
        return _DatasetFiles({file: md5}, [md5], [])
    if name.startswith("CIFAR"):
        files = kind.train_list if train else kind.test_list
        sums = [*(md5 for _, md5 in files), kind.meta["md5"]]
        return _DatasetFiles({kind.filename: kind.tgz_md5}, sums, [])
    downloads = {f"{name}/raw/{file}": md5 for file, md5 in kind.resources}
    unpacked = [file.removesuffix(".gz") for file in downloads]
    return _DatasetFiles(downloads, [*downloads.values()], unpacked)


def _build_dataset(name: str, root: Path, train: bool, download: bool = False) -> Any:
    half = {"split": "train" if train else "test"} if name == "SVHN" else {"train": train}
    return getattr(torchvision.datasets, name)(root, **half, download=download)


def _lock(root: Path) -> AbstractContextManager[Any]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        return FileLock(root / ".lock").acquire()
    except OSError as error:
        raise MisconfigurationException(
            f"data_path {root} can't be written ({error.strerror}); give a folder of your own: "
            "--data_path FOLDER"
        ) from error


def _download(name: str, root: Path, train: bool, again: bool = True) -> Any:
    try:
        with _quiet_download():
            return _build_dataset(name, root, train, download=True)
    except _DOWNLOAD_ERRORS as error:
        reason = (str(error).strip() or repr(error)).splitlines()[-1].strip("<>")
        broken = _remove_corrupt(name, root, train)
        if broken:
            reason = f"{', '.join(broken)} arrived incomplete or corrupt: {reason}"
        if not (broken and again):
            data = "" if name == "CIFAR10" else f"--data=TorchvisionDataModule --data.name={name} "
            raise MisconfigurationException(
                f"{name} can't be fetched ({reason}); on a machine with network run `pyclassify "
                f"prepare {data}--data_path {root}`, or name a folder of images "
                "(--data=ImageFolderDataModule --data_path FOLDER), or the set drawn on the spot "
                "(--config configs/synthetic.yaml)"
            ) from error
    rank_zero_warn(f"{reason}; removed, fetching {name} once more")
    return _download(name, root, train, again=False)


def _remove_corrupt(name: str, root: Path, train: bool) -> list[str]:
    """Remove the downloads whose hash is wrong, and what torchvision takes unpacked as it is.

    Returns:
        The names of the downloads removed.
    """
    files = _list_files(name, train)
    for file in files.unchecked:
        (root / file).unlink(missing_ok=True)
    downloads = [(root / file, md5) for file, md5 in files.downloads.items()]
    broken = [path for path, md5 in downloads if path.exists() and not check_integrity(path, md5)]
    for path in broken:
        path.unlink()
    return [path.name for path in broken]


@contextmanager
def _quiet_download() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)  # torchvision would wait for ever
    try:
        # Its progress bar is for who watches; in a job's log it would run into other lines.
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)
