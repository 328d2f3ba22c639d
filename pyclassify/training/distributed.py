"""Synchronize a run's processes: on stops and checkpoints, on results, and as they end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SYNC_SECONDS = 2.0  # between two synchronizations, which take a fraction of a millisecond each


class StopSynchronizer:
    """Have all processes stop, or write a checkpoint, between the same two steps.

    They synchronize every few steps and on the host, so that no device is waited for.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._reset()

    def _reset(self) -> None:
        self._last_sync = time.monotonic()
        self._steps_to_sync = self._steps_since_sync = 0

    def open(self, world_size: int) -> None:
        """Make the process group; all processes call it."""
        self._reset()
        if self._group is None and world_size > 1 and dist.is_initialized():
            self._group = dist.new_group(backend="gloo")  # the main one may be the devices' own

    def close(self) -> None:
        """Destroy the process group; all processes call it."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def should_sync(self) -> bool:
        """Count a step, and tell whether to synchronize now: the same in all processes."""
        self._steps_to_sync -= 1
        self._steps_since_sync += 1
        return self._steps_to_sync <= 0

    def all_reduce_stop(self, signum: int, due: bool) -> tuple[int, bool]:
        """Synchronize stop signals and due checkpoints; all processes call it.

        Args:
            signum: This process's pending stop signal, 0 for none.
            due: Whether a checkpoint is due; that of rank zero counts.

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
        """Gather a dictionary from each process, by rank; all processes call it."""
        if self._group is None:
            return [state]
        states: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size(self._group))]
        dist.all_gather_object(states, state, self._group)
        return states


def gather_tensors(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Gather each process's tensors, which may differ in length; all processes call it.

    Processes without a tensor are left out.
    """
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, tensors)
    return [theirs for theirs in gathered if theirs]


@contextmanager
def destroy_process_group_on_exit() -> Iterator[None]:
    """Destroy the default process group when this context ends normally or by a stop.

    gloo's threads release the tensors of the last exchange some time later. Where that is after
    Python has begun to close, the process aborts, whatever its exit code was to be
    (pytorch/pytorch#190489). After an error the group is left alone: its threads may wait for what
    another process never sends. After a stop too, and `signals` ends a process that waits too long.

    A group's threads end only when nothing holds it any more: close a `StopSynchronizer` before.
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
