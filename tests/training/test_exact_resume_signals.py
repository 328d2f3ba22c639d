"""A stop that waits until the main thread has come to a good moment."""

import signal

import pytest

from tests.support.processes import rest

# None of these hangs: a machine that is slow must not look as if.
PATIENT = "signals.GRACE_SECONDS = 60\n"
STOPPABLE = """
with signals.stop_on_signals(lambda name: say("marked", name)):
    signals.defer_signals()
    try:
        say("ready")
        work()
    except KeyboardInterrupt as stop:
        time.sleep(0.2)
        say("cleaned up after", stop)
"""
STEPS = """
def work():
    step = 0
    while True:
        step += 1
        time.sleep(0.02)
        signals.send_heartbeat()
        if step % 10 == 9 and signals.get_pending_signal():
            say("saved")
            signals.stop_now(signals.get_pending_signal())
"""
STUCK = """
import hashlib
signals.GRACE_SECONDS = 0.5
def work():
    hashlib.pbkdf2_hmac("sha256", b"w", b"s", 2**31 - 1)
"""


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_deferred_stop_is_reported_when_it_is_handled(signum, script):
    process = script(PATIENT + STEPS + STOPPABLE)
    process.send_signal(signum)

    assert rest(process) == ["saved", f"marked {signum.name}", f"cleaned up after {signum.name}"]


def test_deferred_stop_waits_while_heartbeats_come(script):
    work = """
signals.GRACE_SECONDS = 1
def work():
    while not signals.get_pending_signal():
        time.sleep(0.01)
        signals.send_heartbeat()
    end = time.monotonic() + 2.5  # more than twice what a silent process has
    while time.monotonic() < end:
        time.sleep(0.01)
        signals.send_heartbeat()
    signals.GRACE_SECONDS = 60
    say("saved")
    signals.stop_now(signals.get_pending_signal())
"""
    process = script(work + STOPPABLE)
    process.send_signal(signal.SIGTERM)

    assert rest(process) == ["saved", "marked SIGTERM", "cleaned up after SIGTERM"]


def test_second_stop_neither_hastens_nor_renames_the_first(script):
    process = script(PATIENT + STEPS + STOPPABLE)
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)

    lines = rest(process)
    assert lines[0] == "saved"
    assert lines[-1] in ("cleaned up after SIGUSR1", "cleaned up after SIGTERM")


def test_process_without_a_heartbeat_is_ended(script):
    process = script(STUCK + STOPPABLE)
    process.send_signal(signal.SIGTERM)

    assert rest(process) == ["marked SIGTERM"]
    assert process.returncode == 128 + signal.SIGTERM


def test_process_that_writes_a_checkpoint_is_not_ended(script):
    write = """
def work():
    with signals.pause_heartbeat(60):
        while not signals.get_pending_signal():
            time.sleep(0.02)
        signals.GRACE_SECONDS = 0.02
        time.sleep(1)  # four times as long as a silent process has after SIGUSR1
        signals.GRACE_SECONDS = 60
    say("written")
    signals.restore_handlers()
"""
    process = script(PATIENT + write + STOPPABLE)
    process.send_signal(signal.SIGUSR1)

    assert rest(process) == ["written", "marked SIGUSR1", "cleaned up after SIGUSR1"]


def test_long_steps_get_twice_their_time(script):
    slow = """
signals.GRACE_SECONDS = 0.1
def work():
    time.sleep(1.5)
    signals.send_heartbeat()
    say("goes on")
    while not signals.get_pending_signal():
        time.sleep(0.01)
        signals.send_heartbeat()
    time.sleep(0.8)  # eight times the grace, and half of the time that it has
    signals.GRACE_SECONDS = 60
    signals.stop_now(signals.get_pending_signal())
"""
    process = script(slow + STOPPABLE)
    while process.stdout.readline() != "goes on\n":
        pass
    process.send_signal(signal.SIGTERM)

    assert rest(process)[-1] == "cleaned up after SIGTERM"


def test_stop_from_another_process_is_handled_as_a_signal(script):
    process = script(PATIENT + "def work():\n    signals.stop_now(signal.SIGUSR1)\n" + STOPPABLE)

    assert rest(process) == ["marked SIGUSR1", "cleaned up after SIGUSR1"]


def test_worker_outlives_a_stop_of_the_whole_job(script):
    process = script(
        """
with signals.stop_on_signals(lambda name: None):
    read, write = os.pipe()
    worker = os.fork()
    if worker == 0:
        signals.ignore_sigterm()
        signals.WORKER_SECONDS = 1
        os.read(read, 1)
        for signum in signals.STOP_SIGNALS:
            os.kill(os.getpid(), signum)
        say("works on")
        time.sleep(60)
    say("ready")
    os.write(write, b"1")
    say("ended with", os.waitpid(worker, 0)[1])
"""
    )

    assert rest(process) == ["works on", "ended with 0"]
