"""Stop signals, tested in separate processes."""

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


def count_cpu_ticks(pid):
    """The CPU time of a process, in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_process_with_a_hanging_main_thread_ends(script):
    stuck = "hashlib.pbkdf2_hmac('sha256', b'word', b'salt', 2**31 - 1)"  # for many minutes
    process = script(
        "import hashlib\nsignals.GRACE_SECONDS = 0.5\n" + SLEEP.replace("time.sleep(60)", stuck)
    )
    start = count_cpu_ticks(process.pid)
    wait_until(lambda: count_cpu_ticks(process.pid) > start + 20, "the main thread hangs")
    process.send_signal(signal.SIGTERM)

    assert rest(process) == ["marked SIGTERM"]
    assert process.returncode == 128 + signal.SIGTERM


def test_process_whose_on_stop_fails_or_hangs_ends(script):
    for fault in ("1 / 0", "time.sleep(60)"):
        process = script(
            f"""
signals.GRACE_SECONDS = 0.3
def on_stop(name):
    {fault}
with signals.stop_on_signals(on_stop):
    try:
        say("ready")
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(60)
"""
        )
        process.send_signal(signal.SIGTERM)

        assert process.wait(scale(60)) == 128 + signal.SIGTERM


def test_process_with_another_thread_that_never_ends_ends(script):
    # A stop in a thread pool's `submit` leaves a worker that waits forever, and Python for it.
    thread = "import threading\n"
    thread += "threading.Thread(target=threading.Event().wait).start()\n"
    process = script(thread + SLEEP + "        signals.GRACE_SECONDS = 0.3\n")
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


def test_handlers_are_restored_afterwards(script):
    process = script(
        """
before = [signal.getsignal(signum) for signum in signals.STOP_SIGNALS]
with signals.stop_on_signals(lambda name: say("marked", name)):
    inside = [signal.getsignal(signum) for signum in signals.STOP_SIGNALS]
say("ready")
say([signal.getsignal(signum) for signum in signals.STOP_SIGNALS] == before, inside == before)
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
