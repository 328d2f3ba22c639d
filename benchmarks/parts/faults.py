"""Faults for a training on a cluster, with random parameters from a seeded `random.Random`.

A fault is a function of the `FaultInjector` and the random number generator. It injects the fault,
restarts what a user would restart, such as the server, and returns a description.
"""

import contextlib
import os
import shutil
import time

from pyclassify.spool import records


def kill_rank(injector, rng):
    """Send SIGKILL to one process of the training."""
    ranks = injector.training.list_ranks()
    rank = rng.choice(sorted(ranks))
    ranks[rank].kill()
    injector.training.wait_for_end()
    return f"rank {rank}"


def kill_batch_shell(injector, rng):
    """Send SIGKILL to the job's script, which can't report its end."""
    injector.training.cluster.run(
        *("scancel", "--signal=KILL", "--batch", injector.training.job),
    )
    injector.training.wait_for_end()
    return "the end was not reported"


def kill_server(injector, rng):
    """Send SIGKILL to the tracking server, and restart it after some seconds."""
    seconds = rng.uniform(1, injector.max_downtime)
    injector.server.kill()
    time.sleep(seconds)
    injector.server.start()
    return f"down for {seconds:.0f} s"


def cancel(injector, rng):
    """Cancel the job by `scancel`."""
    injector.training.cluster.run("scancel", injector.training.job)
    injector.training.wait_for_end()
    return "cancelled"


def requeue(injector, rng):
    """Requeue the job by `scontrol requeue`, as an administrator does."""
    injector.training.cluster.run("scontrol", "requeue", injector.training.job)
    return "by scontrol"


def send_time_limit_signal(injector, rng):
    """Send the signal before the time limit: the training saves, exits with 75, is requeued."""
    injector.training.cluster.run("scancel", "--signal=USR1", "--batch", injector.training.job)
    return "time limit near"


def fill_disk(injector, rng):
    """Fill the disk of the run's folder for some seconds."""
    ballast, seconds = injector.disk / "ballast", rng.uniform(1, 5)
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:  # the training may use the rest meanwhile
            file.write(bytes(1 << 16))
    left = shutil.disk_usage(injector.disk).free
    time.sleep(seconds)
    ballast.unlink()
    return f"{left} bytes free for {seconds:.0f} s"


def tear_record(injector, rng):
    """Lose a node while a record is written: the newest segment ends within a record."""
    step = injector.training.step  # no checkpoint is saved after SIGKILL
    for process in injector.training.list_ranks().values():
        process.kill()
    injector.training.wait_for_end()
    return _tear(_find_newest_segment(injector), rng, max(step, injector.training.step))


def truncate_checkpoint(injector, rng):
    """Truncate the newest checkpoint."""
    kill_batch_shell(injector, rng)
    path = injector.training.list_checkpoints()[0]
    size = path.stat().st_size
    os.truncate(path, rng.randrange(size))
    return f"{path.name} cut from {size} to {path.stat().st_size} bytes"


def flip_bit(injector, rng):
    """Flip one bit of the newest checkpoint."""
    kill_batch_shell(injector, rng)
    path = injector.training.list_checkpoints()[0]
    offset, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))
    return f"{path.name}, bit {bit} of byte {offset}"


def _find_newest_segment(injector):
    """Find the segment of the spool that was written last."""
    folder = injector.training.folder / "spool" / injector.training.run_id
    return max(folder.glob("*.records"), key=lambda path: path.stat().st_mtime_ns)


def _tear(path, rng, step):
    """Truncate a segment at a random byte after the records before the last checkpoint.

    Records that were logged before a checkpoint are on the disk when the checkpoint is.
    """
    min_size, size = 0, path.stat().st_size
    for offset, record in records.read_records(path):
        points = record["points"] if record["kind"] == "metrics" else []
        if record["kind"] != "metrics" or any(0 < point[3] < step for point in points):
            min_size = offset
    if min_size < size:
        os.truncate(path, rng.randrange(min_size, size))
        return f"{path.name} cut from {size} to {path.stat().st_size} bytes"
    torn = path.read_bytes().splitlines(keepends=True)[-1][: rng.randrange(1, 40)]
    with path.open("ab") as file:
        file.write(torn)
    return f"{path.name} ends with {len(torn)} bytes of a record"


FAULTS = {
    "SIGKILL of a rank": kill_rank,
    "SIGKILL of the batch shell": kill_batch_shell,
    "SIGKILL of the server": kill_server,
    "scancel": cancel,
    "scontrol requeue": requeue,
    "signal before the time limit": send_time_limit_signal,
    "full disk": fill_disk,
    "torn record": tear_record,
    "truncated checkpoint": truncate_checkpoint,
    "flipped bit": flip_bit,
}

# After these faults the same job continues.
SURVIVED_BY_JOB = ("SIGKILL of the server", "full disk")


def choose_faults(count, rng, kinds=tuple(FAULTS)):
    """Choose faults at random: each kind once before any is repeated."""
    chosen = []
    while len(chosen) < count:
        chosen += rng.sample(kinds, len(kinds))
    return chosen[:count]
