"""What befalls a training on a cluster, each drawn from a seeded `random.Random`.

A kill takes the torture and its dice; it does its harm, undoes what a person would (a server that
is started again, a job that is submitted again) and says in words what it did.
"""

import contextlib
import os
import shutil
import time

from pyclassify.spool import records


def kill_rank(torture, draw):
    """SIGKILL of one process of the training."""
    ranks = torture.training.ranks()
    rank = draw.choice(sorted(ranks))
    ranks[rank].kill()
    torture.training.wait_for_end()
    return f"rank {rank}"


def kill_batch_shell(torture, draw):
    """SIGKILL of the job's script, which can say nothing any more."""
    torture.training.cluster.run(
        *("scancel", "--signal=KILL", "--batch", torture.training.job),
    )
    torture.training.wait_for_end()
    return "nobody said the run's end"


def kill_server(torture, draw):
    """SIGKILL of the tracking server, which is away for a while."""
    seconds = draw.uniform(1, torture.away)
    torture.server.kill()
    time.sleep(seconds)
    torture.server.start()
    return f"away {seconds:.0f} s"


def cancel(torture, draw):
    """scancel, and `pyclassify slurm resume`."""
    torture.training.cluster.run("scancel", torture.training.job)
    torture.training.wait_for_end()
    return "cancelled"


def requeue(torture, draw):
    """`scontrol requeue`, as an administrator does it."""
    torture.training.cluster.run("scontrol", "requeue", torture.training.job)
    return "by scontrol"


def warn(torture, draw):
    """The signal before the time limit: the training saves, leaves with 75 and is requeued."""
    torture.training.cluster.run("scancel", "--signal=USR1", "--batch", torture.training.job)
    return "time limit near"


def fill_disk(torture, draw):
    """No byte free for the run's folder for a while."""
    ballast, seconds = torture.disk / "ballast", draw.uniform(1, 5)
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:  # the training takes what is left meanwhile
            file.write(bytes(1 << 16))
    left = shutil.disk_usage(torture.disk).free
    time.sleep(seconds)
    ballast.unlink()
    return f"{left} bytes free for {seconds:.0f} s"


def tear_record(torture, draw):
    """A node lost while a record is written: the newest segment ends in the midst of one."""
    step = torture.training.step  # none is saved any more: nobody is told
    for process in torture.training.ranks().values():
        process.kill()
    torture.training.wait_for_end()
    return tear(newest_segment(torture), draw, max(step, torture.training.step))


def truncate_checkpoint(torture, draw):
    """The newest checkpoint is shorter than it was."""
    kill_batch_shell(torture, draw)
    path = torture.training.checkpoints()[0]
    size = path.stat().st_size
    os.truncate(path, draw.randrange(size))
    return f"{path.name} cut from {size} to {path.stat().st_size} bytes"


def flip_bit(torture, draw):
    """One bit of the newest checkpoint is another."""
    kill_batch_shell(torture, draw)
    path = torture.training.checkpoints()[0]
    place, bit = draw.randrange(path.stat().st_size), draw.randrange(8)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))
    return f"{path.name}, bit {bit} of byte {place}"


def newest_segment(torture):
    """The segment of the spool that was written last."""
    folder = torture.training.folder / "spool" / torture.training.run_id
    return max(folder.glob("*.records"), key=lambda path: path.stat().st_mtime_ns)


def tear(path, draw, step):
    """Cut a file of records anywhere after the last that a checkpoint's training had logged.

    What was logged before a checkpoint is on the disk when the checkpoint is.
    """
    kept, size = 0, path.stat().st_size
    for offset, record in records.read_records(path):
        points = record["points"] if record["kind"] == "metrics" else []
        if record["kind"] != "metrics" or any(0 < point[3] < step for point in points):
            kept = offset
    if kept < size:
        os.truncate(path, draw.randrange(kept, size))
        return f"{path.name} cut from {size} to {path.stat().st_size} bytes"
    torn = path.read_bytes().splitlines(keepends=True)[-1][: draw.randrange(1, 40)]
    with path.open("ab") as file:
        file.write(torn)
    return f"{path.name} ends with {len(torn)} bytes of a record"


KILLS = {
    "SIGKILL of a rank": kill_rank,
    "SIGKILL of the batch shell": kill_batch_shell,
    "kill -9 of the server": kill_server,
    "scancel": cancel,
    "scontrol requeue": requeue,
    "warning of the time limit": warn,
    "full disk": fill_disk,
    "torn record": tear_record,
    "truncated checkpoint": truncate_checkpoint,
    "flipped bit": flip_bit,
}

# What a job is to survive.
LASTS = ("kill -9 of the server", "full disk")


def draw_kills(count, draw, kinds=tuple(KILLS)):
    """Draw kills: each kind once before any comes again."""
    drawn = []
    while len(drawn) < count:
        drawn += draw.sample(kinds, len(kinds))
    return drawn[:count]
