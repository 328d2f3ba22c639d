"""Runs that log while the group's server fails them in all ways, counted in its database.

    python -m benchmarks.parts.service_trouble --trouble 20

The server is killed, its database restarted and made read-only, its disk filled and its bucket
made to answer 503, each for `--trouble` seconds with as long a rest after it; `pyclassify sync`
delivers what is left at the end. Prints what the database and the bucket lack or have twice.
"""

import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pwd import getpwnam

from benchmarks import service as load
from pyclassify.cli.main import main as pyclassify
from tests.support import service_faults
from tests.support.servers import BucketProxy
from tests.support.service import BUCKET, Service
from tests.support.waiting import wait_until

DISK_MB = 600
FILES_EVERY = 20  # steps


class OnSmallDisk(Service):
    """With its database on a disk of its own, and a `proxy` between server and bucket."""

    def __init__(self, workers):
        super().__init__(workers)
        self.proxy = BucketProxy(self.s3_uri)
        self.env["AWS_ENDPOINT_URL_S3"] = self.proxy.address

    def make_database(self):
        super().make_database()
        data, aside = self.folder / "postgres", self.folder / "aside"
        data.rename(aside)
        data.mkdir()
        user = getpwnam("postgres")
        options = f"size={DISK_MB}m,uid={user.pw_uid},gid={user.pw_gid},mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "trouble", str(data)], check=True)
        subprocess.run(["cp", "--archive", f"{aside}/.", str(data)], check=True)
        shutil.rmtree(aside)

    def stop(self):
        subprocess.run(["umount", "--lazy", str(self.folder / "postgres")], check=True)
        self.proxy.stop()
        super().stop()


@contextmanager
def disk_full(service):
    """The whole disk of the database is full, with its log of transactions."""
    path = service.folder / "postgres" / "ballast"
    with path.open("wb", buffering=0) as ballast, suppress(OSError):
        while ballast.write(bytes(1 << 16)):
            pass
    try:
        yield
    finally:
        path.unlink()
        if service.daemons.processes["postgres"].poll() is not None:
            service.start_postgres()  # as systemd does


def main():
    parser = load.options(__doc__.splitlines()[0])
    parser.add_argument("--trouble", type=float, default=20, help="seconds of each kind")
    asked = parser.parse_args()
    service = OnSmallDisk(asked.workers)
    faults = {
        "server killed": service_faults.server_killed,
        "database restarted": service_faults.database_restarted,
        "database read-only": service_faults.database_read_only,
        "disk full": disk_full,
        "bucket busy": service_faults.bucket_busy(service.proxy),
    }
    asked.seconds = (2 * len(faults) + 1) * asked.trouble
    with load.started(service) as folder:
        runs = load.make_runs(service, asked.runs)
        with load.logging(service, runs, asked, folder, files_every=FILES_EVERY) as logs:
            wait_until(lambda: len([*folder.iterdir()]) == asked.runs, 120)
            for fault in faults.values():
                time.sleep(asked.trouble)
                with fault(service):
                    time.sleep(asked.trouble)
            done = [each.result() for each in logs]
        left = pyclassify(["sync", str(folder)])
        found = {
            "faults": [*faults],
            "seconds_each": asked.trouble,
            "runs": len(runs),
            "left_after_sync": left,
            **load.count(service, done),
            "files": sum(each["files"] for each in done),
            "files_in_bucket": count_files(service),
            "answers_of_503": service.proxy.refused,
        }
    return load.tell(found) or left or found["files"] != found["files_in_bucket"]


def count_files(service):
    pages = service.bucket.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return sum("/notes/" in each["Key"] for page in pages for each in page.get("Contents", ()))


if __name__ == "__main__":
    sys.exit(main())
