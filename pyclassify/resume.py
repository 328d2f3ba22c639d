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

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


def raise_on_stop() -> None:
    """Turn the stop signals into a KeyboardInterrupt in the main thread, the first time only."""
    if threading.current_thread() is threading.main_thread():
        for signum in STOP_SIGNALS:
            signal.signal(signum, _raise)


def _raise(signum: int, frame: FrameType | None) -> None:
    # A second signal (mlflow run sends SIGTERM after Ctrl-C) must not interrupt the clean-up.
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(signum).name)


def wait_for(child: subprocess.Popen[bytes]) -> int:
    """Wait for a process; a stop is passed on to it, and raised again when it has ended.

    Returns:
        Its exit code, negative for a signal's.
    """
    try:
        return child.wait()
    except KeyboardInterrupt as stop:
        child.send_signal(signal.Signals[str(stop)])
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
            # In a thread too, as it may fail, or wait for a server that is away.
            teller = threading.Thread(target=on_stop, args=(name,), daemon=True)
            teller.start()
            if not left.wait(patience * GRACE_SECONDS):
                teller.join(GRACE_SECONDS)
                os._exit(128 + signals[0])
            teller.join(GRACE_SECONDS)
            threading.Thread(target=_end, args=(128 + signals[0],), daemon=True).start()
            return


def _end(exit_code: int) -> None:
    """End the process a while after its main thread, whatever other threads still wait for."""
    threading.main_thread().join()
    time.sleep(GRACE_SECONDS)
    os._exit(exit_code)


def _forget_in_child() -> None:
    # A worker process shares the socket, and the SIGTERM that ends it is no stop of the run.
    signal.set_wakeup_fd(-1)
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) is _raise:
            signal.signal(signum, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget_in_child)


def stop_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent process ends (Linux; prctl(2)).

    `mlflow run` passes no signal on: killed by SIGTERM alone, it would leave the training behind.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
