"""Two processes that are stopped and go on do what two that were never stopped do."""

import gc
import os
import sys
from functools import partial
from pathlib import Path
from signal import SIGTERM, SIGUSR1

import pytest
import torch

from pyclassify.datamodule import ImageFolderDataModule
from pyclassify.module import Classifier
from pyclassify.training import distributed
from pyclassify.training.optim import EMAWeights
from tests.support import processes, stopping
from tests.support.ports import free_port
from tests.support.processes import PIPE, ROOT, STDOUT


def averaging():
    return [EMAWeights(decay=0.5)]


# Whichever process hears of it, and at whatever batch: both stop at the same.
STOPS = [(3, SIGUSR1, 1), (0, SIGTERM, 0), (2, SIGUSR1, None), (3, 0, None), (1, SIGUSR1, 0)]
CASES = {
    "plain": {},
    "accumulating": {"accumulate_grad_batches": 2, "val_check_interval": 2},
    "with workers": {},
    "averaging": {"more": averaging},
}


def launch(folder):
    """Start this file as torchrun and srun start a script: one process a rank, by environment."""
    port = str(free_port())
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"TORCHELASTIC_RUN_ID": "tested", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    return [
        processes.start(
            __file__,
            str(folder),
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=PIPE,
            stderr=STDOUT,
            finalizes=True,  # gloo may abort a process that is done
        )
        for rank in (0, 1)
    ]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What both processes found: by case, undisturbed and disturbed."""
    folder = tmp_path_factory.mktemp("ranks")
    stopping.draw_folder(folder / "images")
    ranks = launch(folder)
    try:
        outputs = [each.communicate()[0] for each in ranks]
    finally:
        for each in ranks:
            each.kill()
    assert [each.returncode for each in ranks] == [0, 0], outputs[0] + outputs[1]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_interrupted_processes_end_as_uninterrupted_ones(found, case):
    for rank in found:
        alone, disturbed = rank[case]
        assert alone["ended"]["at"] > 0
        assert disturbed["rows"] == alone["rows"]
        assert stopping.same(disturbed["ended"], alone["ended"])


def test_no_gloo_thread_is_left_when_python_exits(found):
    for rank in found:
        assert not [name for name in rank["threads"] if "gloo" in name]


if __name__ == "__main__":
    place, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    distributed.SYNC_SECONDS = 0.0  # at each step, as in training whose steps take long
    results = {}
    with distributed.destroy_process_group_on_exit():
        for case, options in CASES.items():
            data = stopping.ours
            if case == "with workers":
                folder = str(place / "images")
                sizes = {"batch_size": 4, "resize": 12, "crop": 8}
                data = partial(ImageFolderDataModule, folder, num_workers=2, **sizes)
            results[case] = []
            for name, disturbances in (("alone", []), ("disturbed", STOPS)):
                rows, ended = stopping.train(
                    place / case / name,
                    partial(Classifier, stopping.Net),
                    data,
                    disturbances,
                    resume={"every_n_train_steps": 2},
                    devices=2,
                    strategy="ddp",
                    **options,
                )
                results[case].append({"rows": rows, "ended": ended})
    gc.collect()  # the trainers that an error ended
    threads = Path("/proc/self/task").glob("*/comm")
    results["threads"] = [thread.read_text() for thread in threads]
    torch.save(results, place / f"{rank}.pt")
