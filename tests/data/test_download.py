"""Downloads that succeed and that fail."""

import os
import socket
import sys

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyclassify.data import download
from pyclassify.data.download import fetch_dataset
from tests.support import servers

CIFAR10 = servers.FIRST_FILES["CIFAR10"]
NAMES = list(servers.FIRST_FILES)
ERRORS = ["HTTP Error 404: Not Found", "Connection refused", "timed out"]


@pytest.fixture
def server():
    with servers.serve() as server:
        yield server


@pytest.mark.parametrize("name", [*NAMES, "CIFAR100"])
def test_files_are_downloaded_once(name, server, monkeypatch, tmp_path):
    servers.offer(monkeypatch, server, name)

    for _ in range(2):
        assert len(fetch_dataset(name, tmp_path / "new", train=True)) == servers.TRAIN
        assert len(fetch_dataset(name, tmp_path / "new", train=False)) == servers.TEST

    assert sorted(server.fetched) == sorted(file for file, body in server.bodies.items() if body)


def test_complete_data_set_is_read_without_writing_to_its_folder(server, monkeypatch, tmp_path):
    servers.offer(monkeypatch, server, "CIFAR10")
    fetch_dataset("CIFAR10", tmp_path, train=True)
    (tmp_path / ".lock").unlink(missing_ok=True)
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}

    fetch_dataset("CIFAR10", tmp_path, train=True)

    assert {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]} == before


@pytest.mark.parametrize("name", NAMES)
def test_truncated_download_is_removed_and_retried_once(name, server, monkeypatch, tmp_path):
    servers.offer(monkeypatch, server, name)
    file = servers.FIRST_FILES[name]
    whole = server.bodies[file][0]
    server.bodies[file] = [whole[:100], whole]

    with pytest.warns(UserWarning, match=f"download of {file} .*, and {name} is downloaded a sec"):
        dataset = fetch_dataset(name, tmp_path, train=True)

    assert len(dataset) == servers.TRAIN
    assert server.fetched.count(file) == 2


@pytest.mark.filterwarnings("ignore:.*CIFAR10 is downloaded a second time")
def test_second_corrupt_download_is_an_error_and_removed(server, monkeypatch, tmp_path):
    servers.offer(monkeypatch, server, "CIFAR10")
    whole = server.bodies[CIFAR10][0]
    server.bodies[CIFAR10] = [bytes(len(whole)), bytes(len(whole)), whole]

    with pytest.raises(MisconfigurationException, match=rf"CIFAR10 can't be .*{CIFAR10} is inc"):
        fetch_dataset("CIFAR10", tmp_path, train=True)

    assert server.fetched == [CIFAR10] * 2
    assert not (tmp_path / CIFAR10).exists()
    assert len(fetch_dataset("CIFAR10", tmp_path, train=True)) == servers.TRAIN


@pytest.mark.filterwarnings("ignore:.*SVHN is downloaded a second time")
def test_corrupt_download_removes_no_other_file(server, monkeypatch, tmp_path):
    servers.offer(monkeypatch, server, "SVHN")
    fetch_dataset("SVHN", tmp_path, train=True)
    (tmp_path / "mlflow.db").touch()
    os.utime(tmp_path / "mlflow.db", (2**32, 2**32))  # as if written during the download
    server.bodies["test_32x32.mat"].insert(0, b"")

    fetch_dataset("SVHN", tmp_path, train=False)

    assert (tmp_path / "mlflow.db").exists()
    assert server.fetched.count("train_32x32.mat") == 1


@pytest.mark.filterwarnings("error::UserWarning")  # a second try would warn
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", ERRORS)
def test_unreachable_server_error_names_the_alternatives(
    name, error, server, monkeypatch, tmp_path
):
    if error == "timed out":
        monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.1)
    data = "" if name == "CIFAR10" else f"--data=TorchvisionDataModule --data.name={name} "
    with socket.create_server(("127.0.0.1", 0)) as silent:
        if error != ERRORS[0]:
            server.url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        if error == "Connection refused":
            silent.close()
        servers.offer(monkeypatch, server, name)
        server.bodies.clear()

        with pytest.raises(
            MisconfigurationException,
            # the form of this message
            match=rf"^{name} can't be downloaded \(.*{error}\); run `pyclassify prepare {data}"
            rf"--data_path {tmp_path}` on a machine with network access, or train on a folder of "
            r"images \(--data=ImageFolderDataModule --data_path FOLDER\) or on synthetic images "
            r"\(--config configs/synthetic\.yaml\)$",
        ):
            fetch_dataset(name, tmp_path, train=True)


@pytest.mark.parametrize("watched", [False, True])
def test_progress_is_shown_in_a_terminal_alone(watched, server, monkeypatch, tmp_path, capsys):
    servers.offer(monkeypatch, server, "CIFAR10")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched)

    fetch_dataset("CIFAR10", tmp_path, train=True)

    shown = capsys.readouterr()
    assert ("100%" in shown.err) == watched
    assert shown.out == ""


def test_file_in_place_of_the_folder_is_named(tmp_path):
    path = tmp_path / "file"
    path.touch()

    with pytest.raises(
        MisconfigurationException,
        match=rf"data_path {path} .*written \(.*\).*--data_path",
    ):
        fetch_dataset("CIFAR10", path, train=True)
