"""Stop a process on a signal, at once or between two steps, so that its run gets a final status.

Nothing expensive is imported here: the handlers are installed before torch is imported.
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

# A batch system can be configured to send SIGUSR1 some time before a job's time limit.
# A closed terminal or a lost connection sends SIGHUP, which nohup ignores.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
GRACE_SECONDS = 5.0  # for the main thread to stop, and for other threads to end
_CHILD_SECONDS = 180.0  # for a child to write a checkpoint and exit
WORKER_SECONDS = 60.0  # for which a data worker may be needed after SIGTERM
_PR_SET_PDEATHSIG = 1


class _Deferral:
    """Whether stop signals are deferred until the main thread is between two steps."""

    def __init__(self) -> None:
        self.is_on = False
        self.pending_signal = 0
        self.last_heartbeat = self.longest_pause = self.silent_until = 0.0

    def is_silent(self, signum: int) -> bool:
        """Whether the main thread sent no heartbeat for twice its longest pause so far."""
        # SIGUSR1 is sent minutes before the time limit; SIGKILL follows SIGTERM within seconds.
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
    # A second signal (`mlflow run` sends SIGTERM after Ctrl-C) must not interrupt the clean-up.
    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, signal.SIG_IGN)
    if _deferral.is_on:
        _deferral.pending_signal = signum
        return
    raise KeyboardInterrupt(signal.Signals(signum).name)


def ignore_stop_signals() -> None:
    """Ignore the stop signals from now on, until `stop_on_signals` ends: the run is complete."""
    if threading.current_thread() is threading.main_thread():
        for signum in STOP_SIGNALS:
            if signal.getsignal(signum) is _raise:
                signal.signal(signum, signal.SIG_IGN)


def defer_signals() -> None:
    """Defer stop signals to `stop_now` or `restore_handlers` while heartbeats are sent."""
    _deferral.__init__()  # type: ignore[misc]
    _deferral.is_on, _deferral.last_heartbeat = True, time.monotonic()


def send_heartbeat() -> None:
    """Send a heartbeat of the main thread; without heartbeats a stop signal ends the process."""
    now = time.monotonic()
    _deferral.longest_pause = max(_deferral.longest_pause, now - _deferral.last_heartbeat)
    _deferral.last_heartbeat = now


@contextmanager
def pause_heartbeat(seconds: float) -> Iterator[None]:
    """Within this context the main thread may send no heartbeat, such as while it writes a file.

    Args:
        seconds: The maximum duration.
    """
    _deferral.silent_until = time.monotonic() + seconds
    try:
        yield
    finally:
        # This pause does not count as the longest pause between heartbeats.
        _deferral.last_heartbeat, _deferral.silent_until = time.monotonic(), 0.0


def get_pending_signal() -> int:
    """Get the number of the deferred stop signal, or 0."""
    return _deferral.pending_signal


def stop_now(signum: int) -> NoReturn:
    """Stop now by a signal that was deferred in this process or another one of the run.

    Raises:
        KeyboardInterrupt: Always; its message is the signal's name.
    """
    pending, _deferral.is_on, _deferral.pending_signal = _deferral.pending_signal, False, 0
    if not pending:
        signal.raise_signal(signum)  # so that the watcher ends this process if it hangs from here
    raise KeyboardInterrupt(signal.Signals(signum).name)


def _get_exit_code(name: str) -> int:
    """Get the exit code after a stop signal: after SIGUSR1 the one that requests a requeue.

    It is used to end a process from outside its main thread; the main thread exits with 1 after the
    other signals.
    """
    return REQUEUE_EXIT_CODE if name == "SIGUSR1" else 128 + signal.Signals[name]


def restore_handlers() -> None:
    """Restore immediate stop signals, and raise a deferred one.

    Raises:
        KeyboardInterrupt: A stop signal was deferred.
    """
    pending, _deferral.is_on, _deferral.pending_signal = _deferral.pending_signal, False, 0
    if pending:
        raise KeyboardInterrupt(signal.Signals(pending).name)


def _cancel_deferral() -> None:
    """Restore immediate stop signals, and drop a deferred one: the process is ending."""
    _deferral.is_on, _deferral.pending_signal = False, 0


def wait_for_child(child: subprocess.Popen[bytes]) -> int:
    """Wait for a process; forward a stop signal to it, and raise it when the process has ended.

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
    """Within this context a stop signal ends the process, even if its main thread hangs.

    The main thread gets a KeyboardInterrupt. It may be in a collective that never returns, where
    Python runs no handler; so a thread calls `on_stop` at once, and exits the process if the main
    thread has not left after `GRACE_SECONDS`, or if other threads are alive that long after it.

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
            # In another thread, as it may fail, or wait for a server that does not respond.
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
    """End the process `GRACE_SECONDS` after its main thread, even if other threads are alive."""
    threading.main_thread().join()
    time.sleep(GRACE_SECONDS)
    os._exit(exit_code)


def _restore_handlers_in_child() -> None:
    # A worker process inherits the socket, and the SIGTERM that ends it does not stop the run. The
    # other signals are sent to a whole job or terminal: a worker continues while the run needs it.
    signal.set_wakeup_fd(-1)
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) in (_raise, signal.SIG_IGN):
            is_end = signum == signal.SIGTERM
            signal.signal(signum, signal.SIG_DFL if is_end else signal.SIG_IGN)


def ignore_sigterm() -> None:
    """Ignore SIGTERM in a worker process for `WORKER_SECONDS`: a batch system sends it to all.

    Otherwise the run fails with a lost worker before the main thread is between two steps.
    """
    signal.signal(signal.SIGTERM, lambda *_: _exit_later())


def _exit_later() -> None:
    timer = threading.Timer(WORKER_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()


os.register_at_fork(after_in_child=_restore_handlers_in_child)


def stop_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent process ends (Linux; prctl(2)).

    `mlflow run` forwards no signal: if it is killed by SIGTERM, the training would continue.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
