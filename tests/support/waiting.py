"""Waiting for what other processes do: for events, with bounds that follow the machine's speed.

A bound is there to end a test that hangs, not to demand a speed. It is given in the seconds of a
quiet machine; `scale` gives what this one may take now.
"""

import hashlib
import time

HEADROOM = 3  # in every bound, for what no measurement foresees
QUIET_SECONDS = 0.1  # what the work of `measure` takes on a quiet machine of those CI has


def measure():
    """How many times as long as on a quiet machine a fixed piece of work takes now, at least 1."""
    start = time.perf_counter()
    for _ in range(15):
        hashlib.pbkdf2_hmac("sha256", b"work", b"fixed", 20_000)
    return max(1.0, (time.perf_counter() - start) / QUIET_SECONDS)


def scale(seconds):
    """A bound for what takes at most some seconds on a quiet machine."""
    return seconds * HEADROOM * measure()


def wait_until(condition, what, seconds=100, pause=0.05):
    """Wait until a condition holds, and return what it gives.

    Args:
        condition: Called without arguments until it gives something true.
        what: The event that is waited for, for the message where it does not come.
        seconds: What it takes at most on a quiet machine.
        pause: Seconds between two calls.

    Raises:
        TimeoutError: It does not hold in time.
    """
    start, bound = time.monotonic(), seconds * HEADROOM
    while not (found := condition()):
        if time.monotonic() - start > bound:
            bound = scale(seconds)  # measured when it matters
            if time.monotonic() - start > bound:
                raise TimeoutError(f"not after {bound:.0f} s: {what}")
        time.sleep(pause)
    return found
