"""Waiting for what other processes do."""

import time


def wait_until(is_so, seconds=300):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"waited for {seconds} s in vain"
        time.sleep(0.2)
