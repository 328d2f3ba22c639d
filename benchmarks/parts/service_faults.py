"""Inject faults into the group's server while runs log to it, and check its database and bucket.

The server is killed, its database is restarted and made read-only, its disk is filled, and its
bucket responds with 503, each for --fault-seconds with a pause of the same length. At the end
`pyclassify sync` uploads the rest. It prints the number of lost and duplicate values and files.
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
    """The service with its database on a small disk, and a `proxy` between server and bucket."""

    def __init__(self, workers):
        super().__init__(workers)
        self.proxy = BucketProxy(self.s3_uri)
        self.env["AWS_ENDPOINT_URL_S3"] = self.proxy.address

    def make_database(self):
        super().make_database()
        data, original = self.folder / "postgres", self.folder / "original"
        data.rename(original)
        data.mkdir()
        user = getpwnam("postgres")
        options = f"size={DISK_MB}m,uid={user.pw_uid},gid={user.pw_gid},mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "faults", str(data)], check=True)
        subprocess.run(["cp", "--archive", f"{original}/.", str(data)], check=True)
        shutil.rmtree(original)

    def stop(self):
        subprocess.run(["umount", "--lazy", str(self.folder / "postgres")], check=True)
        self.proxy.stop()
        super().stop()


@contextmanager
def disk_full(service):
    """Fill the disk of the database and its transaction log."""
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
    examples = ("--fault-seconds 20", "--runs 10 --fault-seconds 5")
    parser = load.make_parser("parts.service_faults", __doc__, examples)
    parser.add_argument(
        "--fault-seconds", type=float, default=20, help="Inject each fault for this many seconds."
    )
    args = parser.parse_args(sys.argv[1:])
    service = OnSmallDisk(args.workers)
    faults = {
        "server killed": service_faults.server_killed,
        "database restarted": service_faults.database_restarted,
        "database read-only": service_faults.database_read_only,
        "disk full": disk_full,
        "bucket busy": service_faults.bucket_busy(service.proxy),
    }
    args.seconds = (2 * len(faults) + 1) * args.fault_seconds
    with load.started(service) as folder:
        runs = load.make_runs(service, args.runs)
        options = {"files_every": FILES_EVERY}
        with load.log_concurrently(service, runs, args, folder, **options) as futures:
            wait_until(lambda: len([*folder.iterdir()]) == args.runs, "the spools of all runs")
            for fault in faults.values():
                time.sleep(args.fault_seconds)
                with fault(service):
                    time.sleep(args.fault_seconds)
            results = [future.result() for future in futures]
        exit_code = pyclassify(["sync", str(folder)])
        result = {
            "faults": [*faults],
            "fault_seconds": args.fault_seconds,
            "runs": len(runs),
            "sync_exit_code": exit_code,
            **load.count(service, results),
            "files": sum(result["files"] for result in results),
            "files_in_bucket": count_files(service),
            "responses_of_503": service.proxy.refused,
        }
    is_wrong = load.print_result(result)
    return is_wrong or exit_code or result["files"] != result["files_in_bucket"]


def count_files(service):
    pages = service.bucket.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return sum("/notes/" in each["Key"] for page in pages for each in page.get("Contents", ()))


if __name__ == "__main__":
    sys.exit(main())
