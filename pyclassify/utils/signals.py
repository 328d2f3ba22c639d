"""Stopping on a signal, so that a run that is stopped says so.

Nothing heavy is imported here: the handlers stand before torch is loaded.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from pyclassify.utils.launcher import REQUEUE_EXIT_CODE

# SIGUSR1 is what a batch system is asked to send some time before a job's time is up.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
GRACE_SECONDS = 5.0
CHILD_SECONDS = 180.0  # that a child may take to write a checkpoint and to end
WORKER_SECONDS = 60.0  # that a worker may be needed after a SIGTERM
_PR_SET_PDEATHSIG = 1


class _Deferral:
    """Whether a stop waits for the main thread to come to a good moment, and how long it may."""

    def __init__(self) -> None:
        self.on = False
        self.asked = 0
        self.beaten = self.longest = self.busy_until = 0.0

    def is_silent(self, signum: int) -> bool:
        """Whether the main thread gave no sign of life for twice its longest pause so far."""
        # SIGUSR1 comes well before the time is up; the kill that follows a SIGTERM comes soon.
        grace = GRACE_SECONDS * (12 if signum == signal.SIGUSR1 else 1)
        patience = max(grace, 2 * self.longest)
        return time.monotonic() > max(self.beaten + patience, self.busy_until)


_deferral = _Deferral()


def raise_on_stop() -> None:
    """Turn the stop signals into a KeyboardInterrupt in the main thread, the first time only."""
    if threading.current_thread() is threading.main_thread() and not _deferral.asked:
        for signum in STOP_SIGNALS:
            signal.signal(signum, _raise)


def _raise(signum: int, frame: FrameType | None) -> None:
    # A second signal (mlflow run sends SIGTERM after Ctrl-C) must not interrupt the clean-up.
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    if _deferral.on:
        _deferral.asked = signum
        return
    raise KeyboardInterrupt(signal.Signals(signum).name)


def defer_signals() -> None:
    """Let stops wait for `stop_now` or `restore_handlers` while `send_heartbeat` is called."""
    _deferral.__init__()  # type: ignore[misc]
    _deferral.on, _deferral.beaten = True, time.monotonic()


def send_heartbeat() -> None:
    """Tell that the main thread goes on: one that stays silent is ended as one that hangs."""
    now = time.monotonic()
    _deferral.longest = max(_deferral.longest, now - _deferral.beaten)
    _deferral.beaten = now


@contextmanager
def pause_heartbeat(seconds: float) -> Iterator[None]:
    """Within this context the main thread may stay silent for so long: a file is being written."""
    _deferral.busy_until = time.monotonic() + seconds
    try:
        yield
    finally:
        # What took long here says nothing about the pauses elsewhere.
        _deferral.beaten, _deferral.busy_until = time.monotonic(), 0.0


def get_pending_signal() -> int:
    """The number of the stop signal that waits, 0 for none."""
    return _deferral.asked


def stop_now(signum: int) -> NoReturn:
    """Stop now, by a signal that waited here or, in another process of this run, there.

    Raises:
        KeyboardInterrupt: Always; its text is the signal's name.
    """
    heard, _deferral.on, _deferral.asked = _deferral.asked, False, 0
    if not heard:
        signal.raise_signal(signum)  # so that who hangs from here on is ended as well
    raise KeyboardInterrupt(signal.Signals(signum).name)


def get_exit_code(name: str) -> int:
    """The exit code after a stop: after SIGUSR1 the one that has a job's script requeue the job.

    It is meant for ending a process from outside its main thread; the main thread ends with 1 after
    the other signals.
    """
    return REQUEUE_EXIT_CODE if name == "SIGUSR1" else 128 + signal.Signals[name]


def restore_handlers() -> None:
    """Have stops act at once again, one that waits too.

    Raises:
        KeyboardInterrupt: One waits.
    """
    waited, _deferral.on, _deferral.asked = _deferral.asked, False, 0
    if waited:
        raise KeyboardInterrupt(signal.Signals(waited).name)


def cancel_deferral() -> None:
    """Have stops act at once again, but for one that waits: the process ends as it is."""
    _deferral.on, _deferral.asked = False, 0


def wait_for_child(child: subprocess.Popen[bytes]) -> int:
    """Wait for a process; a stop is passed on to it, and raised again when it has ended.

    Returns:
        Its exit code, negative for a signal's.
    """
    try:
        return child.wait()
    except KeyboardInterrupt as stop:
        child.send_signal(signal.Signals[str(stop)])
        with pause_heartbeat(CHILD_SECONDS):
            child.wait()
        raise


@contextmanager
def stop_on_signals(on_stop: Callable[[str], None], patience: float = 1.0) -> Iterator[None]:
    """Within this context a stop signal ends the process, whatever it is doing.

    The main thread gets a KeyboardInterrupt. It may be deep in a collective that never returns,
    where Python runs no handler; so a thread calls `on_stop` at once, and exits the process when
    the main thread has not left after `GRACE_SECONDS`, or when other threads outlive it by that.

    Args:
        on_stop: Called with the signal's name, at most once, in another thread.
        patience: How many times as long the main thread has.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    heard, woken = socket.socketpair()
    woken.setblocking(False)
    left = threading.Event()
    watcher = threading.Thread(target=_watch, args=(heard, left, on_stop, patience), daemon=True)
    watcher.start()
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    raise_on_stop()
    try:
        yield
    finally:
        cancel_deferral()
        signal.set_wakeup_fd(-1)
        left.set()
        woken.close()
        watcher.join()
        heard.close()
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _watch(
    heard: socket.socket, left: threading.Event, on_stop: Callable[[str], None], patience: float
) -> None:
    while signals := heard.recv(1):
        if signals[0] in STOP_SIGNALS:
            name = signal.Signals(signals[0]).name
            while _deferral.on and not _deferral.is_silent(signals[0]) and not left.wait(0.05):
                pass
            # In a thread too, as it may fail, or wait for a server that is away.
            teller = threading.Thread(target=on_stop, args=(name,), daemon=True)
            teller.start()
            limit = time.monotonic() + patience * GRACE_SECONDS
            while not left.wait(0.05):
                if time.monotonic() > max(limit, _deferral.busy_until):
                    teller.join(GRACE_SECONDS)
                    os._exit(get_exit_code(name))
            teller.join(GRACE_SECONDS)
            threading.Thread(target=_end, args=(get_exit_code(name),), daemon=True).start()
            return


def _end(exit_code: int) -> None:
    """End the process a while after its main thread, whatever other threads still wait for."""
    threading.main_thread().join()
    time.sleep(GRACE_SECONDS)
    os._exit(exit_code)


def _forget_in_child() -> None:
    # A worker process shares the socket, and the SIGTERM that ends it is no stop of the run. The
    # others are sent to a whole job or terminal: a worker goes on until the run needs it no more.
    signal.set_wakeup_fd(-1)
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) in (_raise, signal.SIG_IGN):
            ends = signum == signal.SIGTERM
            signal.signal(signum, signal.SIG_DFL if ends else signal.SIG_IGN)


def ignore_sigterm() -> None:
    """In a worker process: go on for a while after SIGTERM, which a batch system sends to all.

    Else the run would fail for a lost worker before it has come to a good moment to stop.
    """
    signal.signal(signal.SIGTERM, lambda *_: _leave_later())


def _leave_later() -> None:
    timer = threading.Timer(WORKER_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()


os.register_at_fork(after_in_child=_forget_in_child)


def stop_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent process ends (Linux; prctl(2)).

    `mlflow run` passes no signal on: killed by SIGTERM alone, it would leave the training behind.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
