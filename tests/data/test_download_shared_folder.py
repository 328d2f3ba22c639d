"""Downloads into a folder with files of earlier downloads, or shared with other processes."""

import multiprocessing
import signal
import threading

import pytest
import torchvision.datasets
from tqdm import tqdm

from pyclassify.data.download import fetch_dataset
from tests.support import servers
from tests.support.waiting import scale

CIFAR10 = servers.FIRST_FILES["CIFAR10"]


@pytest.fixture
def server():
    with servers.serve() as server:
        yield server


@pytest.mark.parametrize("name", servers.FIRST_FILES)
def test_partial_download_is_replaced(name, server, monkeypatch, tmp_path):
    servers.offer(monkeypatch, server, name)
    file = servers.FIRST_FILES[name]
    folder = tmp_path / "MNIST/raw" if name == "MNIST" else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(server.bodies[file][0][:100])

    assert len(fetch_dataset(name, tmp_path, train=True)) == servers.TRAIN
    assert server.fetched.count(file) == 1


@pytest.mark.parametrize("left", [0, 3, 200])
@pytest.mark.parametrize(
    ("name", "unpacked"),
    [
        ("CIFAR10", "cifar-10-batches-py/data_batch_2"),
        ("MNIST", "MNIST/raw/train-images-idx3-ubyte"),
        ("MNIST", "MNIST/raw/train-labels-idx1-ubyte"),
    ],
)
def test_truncated_file_is_unpacked_again_without_download(
    name, unpacked, left, server, monkeypatch, tmp_path
):
    halves = servers.offer(monkeypatch, server, name)
    fetch_dataset(name, tmp_path, train=True)
    server.fetched.clear()
    path = tmp_path / unpacked
    path.write_bytes(path.read_bytes()[: min(left, path.stat().st_size - 1)])

    dataset = fetch_dataset(name, tmp_path, train=True)

    assert list(dataset.targets) == list(halves["train"][1])
    assert server.fetched == []


def test_archive_copied_by_hand_needs_no_network(server, monkeypatch, tmp_path):
    servers.offer(monkeypatch, server, "CIFAR10")
    (tmp_path / CIFAR10).write_bytes(server.bodies.pop(CIFAR10)[0])

    assert len(fetch_dataset("CIFAR10", tmp_path, train=True)) == servers.TRAIN


def test_processes_that_share_a_folder_download_once(server, monkeypatch, tmp_path):
    servers.offer(monkeypatch, server, "CIFAR10")
    server.pause = threading.Event()
    processes = [start_fetch(tmp_path) for _ in range(3)]
    assert server.halfway.wait(scale(30))  # one downloads, and the others wait or will
    server.pause.set()

    for process in processes:
        process.join(scale(30))

    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert server.fetched == [CIFAR10]


def test_threads_that_share_a_folder_download_once(server, monkeypatch, tmp_path):
    servers.offer(monkeypatch, server, "MNIST")
    threads = [
        threading.Thread(target=fetch_dataset, args=("MNIST", tmp_path, True)) for _ in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(scale(30))

    assert len(server.fetched) == len(torchvision.datasets.MNIST.resources)
    assert len(fetch_dataset("MNIST", tmp_path, train=True)) == servers.TRAIN


def test_killed_download_is_repeated(server, monkeypatch, tmp_path):
    servers.offer(monkeypatch, server, "CIFAR10")
    server.pause = threading.Event()
    process = start_fetch(tmp_path)
    assert server.halfway.wait(scale(30))
    process.kill()
    process.join(scale(30))
    assert process.exitcode == -signal.SIGKILL
    server.pause.set()

    assert len(fetch_dataset("CIFAR10", tmp_path, train=True)) == servers.TRAIN
    assert server.fetched == [CIFAR10] * 2


def start_fetch(folder):
    # Forked, so that torchvision uses the patched addresses of the server.
    process = multiprocessing.get_context("fork").Process(target=fetch_forked, args=(folder,))
    process.start()
    return process


def fetch_forked(folder):
    # Else the progress bar's lock is the parent's too, and SIGKILL may leave it locked for good.
    tqdm.set_lock(threading.RLock())
    fetch_dataset("CIFAR10", folder, True)
