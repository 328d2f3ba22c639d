"""A process that is done leaves the others before Python closes; one that failed does not wait."""

import pytest
import torch.distributed as dist

from pyclassify.cli.main import main
from pyclassify.training.distributed import destroy_process_group_on_exit


@pytest.fixture(autouse=True)
def group(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_process_group_is_destroyed_after_a_command():
    assert main(["prepare", "--data", "SyntheticDataModule"]) == 0

    assert not dist.is_initialized()


def test_process_group_is_destroyed_after_a_stop():
    with pytest.raises(KeyboardInterrupt), destroy_process_group_on_exit():
        raise KeyboardInterrupt("SIGUSR1")

    assert not dist.is_initialized()


def test_process_group_is_left_alone_after_an_error():
    with pytest.raises(OSError, match="disk"), destroy_process_group_on_exit():
        raise OSError("disk full")

    assert dist.is_initialized()
