"""Stop a process on a signal, at once or between two steps, so that its run gets a final status.

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

# A batch system sends SIGUSR1, if it is asked to, some time before a job's time is up.
# A terminal that is closed, or a connection that is lost, sends SIGHUP, which nohup has ignored.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
GRACE_SECONDS = 5.0  # for the main thread to stop, and for other threads to end
_CHILD_SECONDS = 180.0  # for a child to write a checkpoint and to end
WORKER_SECONDS = 60.0  # for which a data worker may be needed after a SIGTERM
_PR_SET_PDEATHSIG = 1


class _Deferral:
    """Whether a stop waits until the main thread is between two steps, and how long it may."""

    def __init__(self) -> None:
        self.is_on = False
        self.pending_signal = 0
        self.last_heartbeat = self.longest_pause = self.silent_until = 0.0

    def is_silent(self, signum: int) -> bool:
        """Whether the main thread sent no heartbeat for twice its longest pause so far."""
        # SIGUSR1 comes well before the time is up; the kill that follows a SIGTERM comes soon.
        grace = GRACE_SECONDS * (12 if signum == signal.SIGUSR1 else 1)
        timeout = max(grace, 2 * self.longest_pause)
        return time.monotonic() > max(self.last_heartbeat + timeout, self.silent_until)


_deferral = _Deferral()


def raise_on_stop() -> None:
    """Turn the stop signals into a KeyboardInterrupt in the main thread, the first time only."""
    if threading.current_thread() is threading.main_thread() and not _deferral.pending_signal:
        for signum in STOP_SIGNALS:
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
                signal.signal(signum, _raise)


def _raise(signum: int, frame: FrameType | None) -> None:
    # A second signal (mlflow run sends SIGTERM after Ctrl-C) must not interrupt the clean-up.
    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, signal.SIG_IGN)
    if _deferral.is_on:
        _deferral.pending_signal = signum
        return
    raise KeyboardInterrupt(signal.Signals(signum).name)


def defer_signals() -> None:
    """Let stops wait for `stop_now` or `restore_handlers` while `send_heartbeat` is called."""
    _deferral.__init__()  # type: ignore[misc]
    _deferral.is_on, _deferral.last_heartbeat = True, time.monotonic()


def send_heartbeat() -> None:
    """Show that the main thread is alive: while it sends none, a stop ends it as one that hangs."""
    now = time.monotonic()
    _deferral.longest_pause = max(_deferral.longest_pause, now - _deferral.last_heartbeat)
    _deferral.last_heartbeat = now


@contextmanager
def pause_heartbeat(seconds: float) -> Iterator[None]:
    """Within this context let the main thread send no heartbeat: a file is being written.

    Args:
        seconds: How long it may take.
    """
    _deferral.silent_until = time.monotonic() + seconds
    try:
        yield
    finally:
        # A long pause here says nothing about the pauses elsewhere.
        _deferral.last_heartbeat, _deferral.silent_until = time.monotonic(), 0.0


def get_pending_signal() -> int:
    """Get the number of the stop signal that waits, 0 for none."""
    return _deferral.pending_signal


def stop_now(signum: int) -> NoReturn:
    """Stop now, by a signal that waited in this process or in another one of the run.

    Raises:
        KeyboardInterrupt: Always; its text is the signal's name.
    """
    pending, _deferral.is_on, _deferral.pending_signal = _deferral.pending_signal, False, 0
    if not pending:
        signal.raise_signal(signum)  # so that this process is ended as well if it hangs from here
    raise KeyboardInterrupt(signal.Signals(signum).name)


def _get_exit_code(name: str) -> int:
    """The exit code after a stop: after SIGUSR1 the one that has a job's script requeue the job.

    It is meant for ending a process from outside its main thread; the main thread ends with 1 after
    the other signals.
    """
    return REQUEUE_EXIT_CODE if name == "SIGUSR1" else 128 + signal.Signals[name]


def restore_handlers() -> None:
    """Let stop signals act at once again, one that waits too.

    Raises:
        KeyboardInterrupt: One waits.
    """
    pending, _deferral.is_on, _deferral.pending_signal = _deferral.pending_signal, False, 0
    if pending:
        raise KeyboardInterrupt(signal.Signals(pending).name)


def _cancel_deferral() -> None:
    """Let stop signals act at once again, except one that waits: the process ends anyway."""
    _deferral.is_on, _deferral.pending_signal = False, 0


def wait_for_child(child: subprocess.Popen[bytes]) -> int:
    """Wait for a process; pass a stop on to it, and raise it again when the process has ended.

    Returns:
        The exit code, negative if a signal ended the process.
    """
    try:
        return child.wait()
    except KeyboardInterrupt as stop:
        child.send_signal(signal.Signals[str(stop)])
        with pause_heartbeat(_CHILD_SECONDS):
            child.wait()
        raise


@contextmanager
def stop_on_signals(on_stop: Callable[[str], None], grace_factor: float = 1.0) -> Iterator[None]:
    """Within this context a stop signal ends the process, whatever it is doing.

    The main thread gets a KeyboardInterrupt. It may be deep in a collective that never returns,
    where Python runs no handler; so a thread calls `on_stop` at once, and exits the process when
    the main thread has not left after `GRACE_SECONDS`, or when other threads outlive it by that.

    Args:
        on_stop: Called with the signal's name, at most once, in another thread.
        grace_factor: Multiplies `GRACE_SECONDS` for the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    has_left = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(receiver, has_left, on_stop, grace_factor), daemon=True
    )
    watcher.start()
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    raise_on_stop()
    try:
        yield
    finally:
        _cancel_deferral()
        signal.set_wakeup_fd(-1)
        has_left.set()
        sender.close()
        watcher.join()
        receiver.close()
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def _watch(
    receiver: socket.socket,
    has_left: threading.Event,
    on_stop: Callable[[str], None],
    grace_factor: float,
) -> None:
    while signals := receiver.recv(1):
        if signals[0] in STOP_SIGNALS:
            name = signal.Signals(signals[0]).name
            while _deferral.is_on and not _deferral.is_silent(signals[0]):
                if has_left.wait(0.05):
                    break
            # In a thread too, as it may fail, or wait for a server that does not answer.
            reporter = threading.Thread(target=on_stop, args=(name,), daemon=True)
            reporter.start()
            limit = time.monotonic() + grace_factor * GRACE_SECONDS
            while not has_left.wait(0.05):
                if time.monotonic() > max(limit, _deferral.silent_until):
                    reporter.join(GRACE_SECONDS)
                    os._exit(_get_exit_code(name))
            reporter.join(GRACE_SECONDS)
            threading.Thread(target=_end, args=(_get_exit_code(name),), daemon=True).start()
            return


def _end(exit_code: int) -> None:
    """End the process `GRACE_SECONDS` after its main thread, whatever other threads wait for."""
    threading.main_thread().join()
    time.sleep(GRACE_SECONDS)
    os._exit(exit_code)


def _restore_handlers_in_child() -> None:
    # A worker process shares the socket, and the SIGTERM that ends it is no stop of the run. The
    # others are sent to a whole job or terminal: a worker continues until the run does not need it.
    signal.set_wakeup_fd(-1)
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) in (_raise, signal.SIG_IGN):
            is_end = signum == signal.SIGTERM
            signal.signal(signum, signal.SIG_DFL if is_end else signal.SIG_IGN)


def ignore_sigterm() -> None:
    """Ignore SIGTERM for `WORKER_SECONDS`, in a worker process: a batch system sends it to all.

    Otherwise the run would fail for a lost worker before it is between two steps.
    """
    signal.signal(signal.SIGTERM, lambda *_: _exit_later())


def _exit_later() -> None:
    timer = threading.Timer(WORKER_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()


os.register_at_fork(after_in_child=_restore_handlers_in_child)


def stop_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent process ends (Linux; prctl(2)).

    `mlflow run` passes no signal on: killed by SIGTERM alone, it would leave the training behind.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
