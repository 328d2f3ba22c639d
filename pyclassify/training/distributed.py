"""How the processes of a run agree to write or to stop between two steps, and what they gather."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SYNC_SECONDS = 2.0  # between two agreements, which take a fraction of a millisecond each


class StopSynchronizer:
    """Agrees each so many steps, on the host: the devices are not waited for."""

    def __init__(self) -> None:
        self._group: Any = None
        self._last, self._wait, self._passed = time.monotonic(), 0, 0

    def open(self, world_size: int) -> None:
        """Get ready; all processes call it."""
        self._last, self._wait, self._passed = time.monotonic(), 0, 0
        if self._group is None and world_size > 1 and dist.is_initialized():
            self._group = dist.new_group(backend="gloo")  # the main one may be the devices' own

    def close(self) -> None:
        """Give back what `open` took; all processes call it."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def should_sync(self) -> bool:
        """Count a step, and tell whether to agree now, which is the same in all processes."""
        self._wait, self._passed = self._wait - 1, self._passed + 1
        return self._wait <= 0

    def all_reduce_stop(self, signum: int, due: bool) -> tuple[int, bool]:
        """Agree.

        Args:
            signum: The stop signal that this process has heard, 0 for none.
            due: Whether a checkpoint is due; the first process's word counts.

        Returns:
            The highest signal that any has heard, and whether a checkpoint is due.
        """
        if self._group is None:
            return signum, due
        now = time.monotonic()
        seconds, self._last = (now - self._last) / max(self._passed, 1), now
        first = dist.get_rank() == 0
        steps = max(1, min(1000, int(SYNC_SECONDS / max(seconds, 1e-6))))
        notes = torch.tensor([signum, int(first and due), steps if first else 0])
        dist.all_reduce(notes, dist.ReduceOp.MAX, self._group)
        agreed, writes, self._wait = notes.tolist()
        self._passed = 0
        return agreed, bool(writes)

    def gather(self, mine: dict[str, Any]) -> list[dict[str, Any]]:
        """What each process has, by rank."""
        if self._group is None:
            return [mine]
        ranks: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size(self._group))]
        dist.all_gather_object(ranks, mine, self._group)
        return ranks


def gather_tensors(mine: list[Tensor]) -> list[list[Tensor]]:
    """Each process's tensors, which may differ in length; all processes call it."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return [theirs for theirs in everyone if theirs]  # what a process without a batch has


@contextmanager
def destroy_process_group_on_exit() -> Iterator[None]:
    """Leave the other processes for good, once what is done here is done or was stopped.

    gloo's threads let go of the tensors of the last exchange when they come to it. Where that is
    after Python has begun to close, the process aborts, whatever its exit code was to be
    (pytorch/pytorch#190489). After an error they are left alone: what they still wait for, another
    process may never send. After a stop that may be so too, and `signals` ends who waits too long.

    A group's threads end only where nothing holds it any more: close `StopSynchronizer` before.
    """
    failed = False
    try:
        yield
    except Exception:
        failed = True
        raise
    finally:
        if not failed and dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
