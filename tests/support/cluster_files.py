"""The files a private SLURM cluster of two nodes starts from: slurm.conf(5) and those beside it.

All of it is in one folder and on loopback, and wants neither systemd nor a GPU. The nodes declare
more than the machine has, and their GPUs are links to /dev/null: SLURM counts and hands them out,
and names them in CUDA_VISIBLE_DEVICES, as it does with real ones.
"""

import os
import socket
from pathlib import Path

from tests.support.ports import free_ports

NAME = "private"
NODES = ("n1", "n2")
GPUS_PER_NODE = 4

# Where root may not set limits the accounting ends a job that takes too much, a second later and
# as CANCELLED or FAILED in place of OUT_OF_MEMORY. SLURM 22.05 needs systemd for version 2.
CGROUPS = Path("/sys/fs/cgroup/memory")
LIMITS_MEMORY = os.access(CGROUPS / "cgroup.procs", os.W_OK)

SLURM = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld}
SlurmUser=root
AuthType=auth/munge
# slurmdbd's connections take AccountingStoragePass for the socket
AuthInfo=socket={folder}/munge.socket,cred_expire=20
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log

SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ProctrackType=proctrack/linuxproc
TaskPlugin={task_plugin}
MpiDefault=none
GresTypes=gpu

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd}
AccountingStoragePass={folder}/munge.socket
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams={limit}

# A job's end and its next start take seconds, in place of minutes; so does cred_expire.
MessageTimeout=5
MinJobAge=5
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2

SlurmdParameters=config_overrides
NodeName=DEFAULT CPUs=32 RealMemory=128000 Gres=gpu:{gpus}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefMemPerCPU=1000
# Whose jobs make room for those of main, a second after they are told.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL MaxTime=60 DefMemPerCPU=1000 PriorityTier=0 GraceTime=1
"""

SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={slurmdbd}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadbd}
StorageUser=slurm
StoragePass={password}
"""

CGROUP = """\
CgroupPlugin=cgroup/v1
CgroupAutomount=no
CgroupMountpoint={folder}/cgroup
ConstrainRAMSpace=yes
"""

# A line is a statement.
DATABASE = """\
CREATE USER slurm@'127.0.0.1' IDENTIFIED BY '{password}';
GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1';
"""


def write(folder: Path):
    """Write what the daemons read; returns the ports by name."""
    values = {
        "folder": folder,
        "host": socket.gethostname().split(".")[0],
        "password": os.urandom(16).hex(),
        "name": NAME,
        "gpus": GPUS_PER_NODE,
        "task_plugin": "task/cgroup" if LIMITS_MEMORY else "task/none",
        "limit": "UsePss" if LIMITS_MEMORY else "OverMemoryKill",
    }
    ports = free_ports("mariadbd", "slurmdbd", "slurmctld", *NODES)
    gpus = f"gpu[0-{GPUS_PER_NODE - 1}]"
    gres = [f"NodeName={node} Name=gpu File={folder}/{node}/{gpus}" for node in NODES]
    files = {
        "slurm.conf": SLURM,
        "slurmdbd.conf": SLURMDBD,
        "cgroup.conf": CGROUP,
        "gres.conf": "\n".join(["AutoDetect=off", *gres, ""]),
        "database.sql": DATABASE,
    }
    for name, text in files.items():
        (folder / name).write_text(text.format(**values, **ports))
    (folder / "slurmdbd.conf").chmod(0o600)
    (folder / "munge.key").write_bytes(os.urandom(64))
    (folder / "munge.key").chmod(0o600)
    for node in NODES:
        (folder / node).mkdir()
        for index in range(GPUS_PER_NODE):
            (folder / node / f"gpu{index}").symlink_to("/dev/null")
    (folder / "state").mkdir()
    if LIMITS_MEMORY:
        write_cgroup(folder)
    return ports


def write_cgroup(folder):
    """Make the cluster a cgroup of its own: SLURM names those in it by the node alone."""
    cgroup = CGROUPS / folder.name
    cgroup.mkdir()
    (folder / "cgroup").mkdir()
    (folder / "cgroup" / "memory").symlink_to(cgroup)
