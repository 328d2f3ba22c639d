"""Stopping on a signal, in processes of their own."""

import signal
from pathlib import Path

import pytest

from tests.support.processes import rest
from tests.support.waiting import scale, wait_until

SLEEP = """
with signals.stop_on_signals(lambda name: say("marked", name)):
    try:
        say("ready")
        time.sleep(60)
    except KeyboardInterrupt as stop:
        say("stopped by", stop)
        time.sleep(0.2)
        say("cleaned up")
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_stop_signal_raises_an_interrupt_with_its_name(signum, script):
    process = script(SLEEP)
    process.send_signal(signum)

    assert sorted(rest(process)) == [
        "cleaned up",
        f"marked {signum.name}",
        f"stopped by {signum.name}",
    ]
    assert process.returncode == 0


def test_second_signal_does_not_interrupt_the_clean_up(script):
    process = script(SLEEP)
    process.send_signal(signal.SIGINT)
    while process.stdout.readline() != "stopped by SIGINT\n":
        pass
    process.send_signal(signal.SIGTERM)

    assert rest(process)[-1] == "cleaned up"


def processor_ticks(pid):
    """What a process has taken of a processor, in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_process_ends_though_its_main_thread_hangs(script):
    stuck = "hashlib.pbkdf2_hmac('sha256', b'word', b'salt', 2**31 - 1)"  # for many minutes
    process = script(
        "import hashlib\nsignals.GRACE_SECONDS = 0.5\n" + SLEEP.replace("time.sleep(60)", stuck)
    )
    start = processor_ticks(process.pid)
    wait_until(lambda: processor_ticks(process.pid) > start + 20, "it is well inside")
    process.send_signal(signal.SIGTERM)

    assert rest(process) == ["marked SIGTERM"]
    assert process.returncode == 128 + signal.SIGTERM


def test_process_ends_though_on_stop_fails_or_hangs(script):
    for trouble in ("1 / 0", "time.sleep(60)"):
        process = script(
            f"""
signals.GRACE_SECONDS = 0.3
def tell(name):
    {trouble}
with signals.stop_on_signals(tell):
    try:
        say("ready")
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(60)
"""
        )
        process.send_signal(signal.SIGTERM)

        assert process.wait(scale(60)) == 128 + signal.SIGTERM


def test_process_ends_though_another_thread_never_does(script):
    # A stop in a thread pool's `submit` leaves a worker that waits for ever, and Python for it.
    left = "import threading\n"
    left += "threading.Thread(target=threading.Event().wait).start()\n"
    process = script(left + SLEEP + "        signals.GRACE_SECONDS = 0.3\n")
    process.send_signal(signal.SIGTERM)

    assert rest(process)[-1] == "cleaned up"
    assert process.returncode == 128 + signal.SIGTERM


def test_worker_process_ends_by_the_signal_only(script):
    process = script(
        """
with signals.stop_on_signals(lambda name: say("marked", name)):
    read, write = os.pipe()
    worker = os.fork()
    if worker == 0:
        say("ready")
        os.write(write, b"1")
        time.sleep(60)
    os.read(read, 1)
    os.kill(worker, signal.SIGTERM)
    say("worker died of", os.WTERMSIG(os.waitpid(worker, 0)[1]))
"""
    )

    assert rest(process) == [f"worker died of {signal.SIGTERM.value}"]


def test_handlers_are_as_before_afterwards(script):
    process = script(
        """
before = [signal.getsignal(each) for each in signals.STOP_SIGNALS]
with signals.stop_on_signals(lambda name: say("marked", name)):
    inside = [signal.getsignal(each) for each in signals.STOP_SIGNALS]
say("ready")
say([signal.getsignal(each) for each in signals.STOP_SIGNALS] == before, inside == before)
"""
    )

    assert rest(process) == ["True False"]


def test_process_is_stopped_when_its_parent_is_killed(script):
    parent = script(
        """
if os.fork() == 0:
    with signals.stop_on_signals(lambda name: say("marked", name)):
        signals.stop_with_parent()
        say("ready")
        time.sleep(60)
else:
    time.sleep(60)
"""
    )
    parent.kill()

    # The pipe closes when the child has ended too.
    assert rest(parent) == ["marked SIGTERM"]


def test_signals_do_not_load_torch(script):
    process = script("say('ready')\nsay('torch' in sys.modules)\n")

    assert rest(process) == ["False"]
