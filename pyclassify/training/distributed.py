"""Synchronize the processes of a run: stops, checkpoints, results, and process-group teardown."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SYNC_SECONDS = 2.0  # between two synchronizations; each takes less than a millisecond


class StopSynchronizer:
    """Synchronize stops and checkpoints, so that all processes do them between the same two steps.

    The processes synchronize every few steps and on the host, without waiting for the device.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._reset()

    def _reset(self) -> None:
        self._last_sync = time.monotonic()
        self._steps_to_sync = self._steps_since_sync = 0

    def open(self, world_size: int) -> None:
        """Create the process group. All processes must call it."""
        self._reset()
        if self._group is None and world_size > 1 and dist.is_initialized():
            self._group = dist.new_group(backend="gloo")  # the default group may be NCCL's

    def close(self) -> None:
        """Destroy the process group. All processes must call it."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def should_sync(self) -> bool:
        """Count a step, and return whether to synchronize now: the same in all processes."""
        self._steps_to_sync -= 1
        self._steps_since_sync += 1
        return self._steps_to_sync <= 0

    def all_reduce_stop(self, signum: int, due: bool) -> tuple[int, bool]:
        """Synchronize stop signals and due checkpoints. All processes must call it.

        Args:
            signum: The pending stop signal of this process, 0 for none.
            due: Whether a checkpoint is due; only rank zero's value counts.

        Returns:
            The highest pending signal of all processes, and whether a checkpoint is due.
        """
        if self._group is None:
            return signum, due
        now = time.monotonic()
        step_seconds = (now - self._last_sync) / max(self._steps_since_sync, 1)
        self._last_sync, self._steps_since_sync = now, 0
        rank_zero = dist.get_rank() == 0
        steps = max(1, min(1000, int(SYNC_SECONDS / max(step_seconds, 1e-6))))
        votes = torch.tensor([signum, int(rank_zero and due), steps if rank_zero else 0])
        dist.all_reduce(votes, dist.ReduceOp.MAX, self._group)
        signum, due, self._steps_to_sync = votes.tolist()
        return signum, bool(due)

    def gather(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """Gather a dictionary from each process, by rank. All processes must call it."""
        if self._group is None:
            return [state]
        states: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size(self._group))]
        dist.all_gather_object(states, state, self._group)
        return states


def gather_tensors(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Gather the tensors of each process, which may differ in length. All processes must call it.

    Returns:
        The tensors of each process that has any, by rank.
    """
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, tensors)
    return [tensors for tensors in gathered if tensors]


@contextmanager
def destroy_process_group_on_exit() -> Iterator[None]:
    """Destroy the default process group when this context ends normally or by a stop signal.

    gloo's threads release the tensors of the last collective operation with a delay. If that is
    after Python has begun to shut down, the process aborts with another exit code
    (pytorch/pytorch#190489). After an error the group is not destroyed: its threads may wait for a
    message that another process never sends. After a stop they may too, but `signals` ends a
    process that waits too long.

    The threads of a group end only when nothing refers to the group: close a `StopSynchronizer`
    before.
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
