"""A real SLURM cluster of the tests' own: two nodes on loopback, accounting and made-up GPUs."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from tests.support import sweep
from tests.support.daemons import Daemons
from tests.support.ports import free_ports
from tests.support.waiting import wait_until

NAME = "private"
NODES = ("n1", "n2")
GPUS_PER_NODE = 4
# Nodes with several types of GPUs, which a test starts by `typed_nodes`: types and numbers.
TYPED_NODES = {
    "n3": {"a100": 2, "v100": 2},
    "n4": {"a100": 2, "nvidia_h100_80gb_hbm3_1g.10gb": 2},
}

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
JobSubmitPlugins=lua

SlurmdParameters=config_overrides
NodeName=DEFAULT CPUs=32 RealMemory=128000
{nodes}
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=60 DefMemPerCPU=1000
PartitionName=typed Nodes=n[3-4] MaxTime=60 DefMemPerCPU=1000
# It takes no job whose GPUs have no type, or are not asked for by --gres.
PartitionName=strict Nodes=n[3-4] MaxTime=60 DefMemPerCPU=1000
# Whose jobs make room for those of main, a second after they are told.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=n[1-2] MaxTime=60 DefMemPerCPU=1000 PriorityTier=0 GraceTime=1
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

# As the plugin of sites that demand a type of GPU; for one of the partitions.
JOB_SUBMIT = """\
function slurm_job_submit(job, partitions, uid)
  if job.partition ~= "strict" then return slurm.SUCCESS end
  local gres = job.tres_per_node or ""
  if job.tres_per_job or not gres:find("^gres:gpu:[^:]+:%d+") then
    slurm.log_user("ask for GPUs by --gres=gpu:TYPE:NUMBER")
    return slurm.ERROR
  end
  return slurm.SUCCESS
end

function slurm_job_modify(job, known, partitions, uid)
  return slurm.SUCCESS
end
"""

# A line is a statement.
DATABASE = """\
CREATE USER slurm@'127.0.0.1' IDENTIFIED BY '{password}';
GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1';
"""


def write(folder: Path):
    """Write what the daemons read; returns the ports by name."""
    gpus = {node: {"": GPUS_PER_NODE} for node in NODES} | TYPED_NODES
    ports = free_ports("mariadbd", "slurmdbd", "slurmctld", *gpus)
    values = {
        "folder": folder,
        "host": socket.gethostname().split(".")[0],
        "password": os.urandom(16).hex(),
        "name": NAME,
        "task_plugin": "task/cgroup" if LIMITS_MEMORY else "task/none",
        "limit": "UsePss" if LIMITS_MEMORY else "OverMemoryKill",
    }
    values["nodes"] = "\n".join(
        f"NodeName={node} NodeHostname={values['host']} NodeAddr=127.0.0.1 Port={ports[node]} "
        f"Gres={','.join(_format_gpus(kind, count) for kind, count in kinds.items())}"
        for node, kinds in gpus.items()
    )
    files = {
        "slurm.conf": SLURM,
        "slurmdbd.conf": SLURMDBD,
        "cgroup.conf": CGROUP,
        "database.sql": DATABASE,
    }
    for name, text in files.items():
        (folder / name).write_text(text.format(**values, **ports))
    (folder / "job_submit.lua").write_text(JOB_SUBMIT)
    (folder / "slurmdbd.conf").chmod(0o600)
    (folder / "munge.key").write_bytes(os.urandom(64))
    (folder / "munge.key").chmod(0o600)
    rows = [row for node, kinds in gpus.items() for row in write_gpus(folder, node, kinds)]
    (folder / "gres.conf").write_text("\n".join(["AutoDetect=off", *rows, ""]))
    (folder / "state").mkdir()
    if LIMITS_MEMORY:
        write_cgroup(folder)
    return ports


def _format_gpus(kind, count):
    return ":".join(filter(None, ("gpu", kind, str(count))))


def write_gpus(folder, node, kinds):
    """Make the files of a node's GPUs, numbered through; returns their lines of gres.conf."""
    (folder / node).mkdir()
    index = 0
    for kind, count in kinds.items():
        files = [folder / node / f"gpu{number}" for number in range(index, index + count)]
        for file in files:
            file.symlink_to("/dev/null")
        index += count
        names = f"{folder}/{node}/gpu[{index - count}-{index - 1}]"
        yield f"NodeName={node} Name=gpu {kind and f'Type={kind} '}File={names}"


def write_cgroup(folder):
    """Make the cluster a cgroup of its own: SLURM names those in it by the node alone."""
    cgroup = CGROUPS / folder.name
    cgroup.mkdir()
    (folder / "cgroup").mkdir()
    (folder / "cgroup" / "memory").symlink_to(cgroup)


SYSTEM_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch")


def missing():
    """Say what keeps the cluster from starting here, or nothing."""
    if programs := [name for name in PROGRAMS if not shutil.which(name, path=SYSTEM_PATH)]:
        packages = "slurm-wlm, munge, slurmdbd and mariadb-server"
        return f"a SLURM cluster needs {', '.join(programs)}: Debian has them in {packages}"
    return None if os.geteuid() == 0 else "only root starts a SLURM cluster"


class Cluster:
    """Its daemons, and what happens to clusters. `env` is what a program needs to speak to it."""

    def __init__(self):
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        self.daemons = Daemons({**outer, "PATH": SYSTEM_PATH})
        self.folder = self.daemons.folder
        self.daemons.env["SLURM_CONF"] = str(self.folder / "slurm.conf")
        self.env = self.daemons.env

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error):
        self.stop()

    def start(self):
        self.ports = write(self.folder)
        self.start_munge()
        self.start_database()
        self.start_accounting()
        for node in NODES:
            self.start_node(node)
        self.start_controller()
        self.wait_for_nodes(*NODES)

    def stop(self):
        self.daemons.stop()

    def start_munge(self):
        options = ["--foreground", "--force"]
        for kind in ("socket", "key-file", "log-file", "pid-file", "seed-file"):
            options.append(f"--{kind}={self.folder}/munge.{kind.removesuffix('-file')}")
        self.daemons.start("munged", "munged", *options)

    def start_database(self):
        data = self.folder / "data"
        data.mkdir()
        shutil.chown(data, "mysql", "mysql")
        # It is thrown away, and syncing to the disk is most of the time that making it takes.
        options = ["--no-defaults", "--user=mysql", f"--datadir={data}", "--debug-no-sync"]
        options += ["--skip-name-resolve", "--innodb-log-file-size=8M"]
        self.run("mariadb-install-db", "--skip-test-db", *options)
        options += ["--bind-address=127.0.0.1", f"--port={self.ports['mariadbd']}"]
        options += [f"--socket={data}/socket", f"--init-file={self.folder}/database.sql"]
        self.daemons.start("mariadbd", "mariadbd", *options)
        self.daemons.wait("mariadbd", lambda: self.answers("mariadbd"))

    def start_accounting(self):
        self.daemons.wait("munged", (self.folder / "munge.socket").exists)
        self.daemons.start("slurmdbd", "slurmdbd", "-D")
        self.daemons.wait("slurmdbd", lambda: self.answers("slurmdbd"))
        self.run("sacctmgr", "--immediate", "add", "cluster", NAME)

    def start_controller(self):
        self.daemons.start("slurmctld", "slurmctld", "-D")
        self.daemons.wait("slurmctld", lambda: self.answers("slurmctld"))

    def start_node(self, node):
        self.daemons.start(node, "slurmd", "-D", "-N", node)

    @contextlib.contextmanager
    def typed_nodes(self):
        """The nodes of the partitions typed and strict, which are down otherwise."""
        for node in TYPED_NODES:
            self.start_node(node)
        self.wait_for_nodes(*TYPED_NODES)
        try:
            yield
        finally:
            for node in TYPED_NODES:
                self.daemons.processes[node].terminate()
                self.daemons.processes[node].wait()

    def wait_for_nodes(self, *nodes):
        """Wait until they take jobs, or have some; a star says that a node does not answer."""
        up = ("idle", "mixed", "allocated", "completing")
        for node in nodes:
            self.daemons.wait(node, lambda node=node: self.node_state(node) in up)

    def answers(self, name):
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.ports[name])) == 0

    def node_state(self, node):
        return self.run("sinfo", "--noheader", f"--nodes={node}", "--format=%T")

    def run(self, *command):
        """Run a program of SLURM's; returns its output, or shows what it said and fails."""
        ended = subprocess.run(command, env=self.env, capture_output=True, text=True)
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)}: {ended.stdout}{ended.stderr}")
        return ended.stdout.strip()

    def submit(self, command, *options):
        """Submit a line of shell; returns the job's id. Without --output there is none."""
        return self.run("sbatch", "--parsable", "--output=/dev/null", f"--wrap={command}", *options)

    def state(self, job):
        """The job's state as the controller has it, who forgets it soon, or else accounting."""
        jobs = self.run("squeue", "--noheader", "--states=all", "--format=%i %T").splitlines()
        states = dict(line.split() for line in jobs)
        return states.get(job) or self.accounting(job, "state").partition(" ")[0]

    def accounting(self, job, *fields):
        return self.run("sacct", "-XPn", f"--jobs={job}", f"--format={','.join(fields)}")

    def wait_for(self, job, *states, seconds=60):
        """Wait for one of the states; where it is an end, until accounting knows of it too."""
        what = f"job {job} is {' or '.join(states)}"
        try:
            return wait_until(lambda: self._state_of(job, states), what, seconds, pause=0.1)
        except TimeoutError as late:
            late.add_note(f"it is {self.state(job)}")
            raise

    def _state_of(self, job, states):
        """The job's state, once it is one of some; nothing before."""
        state = self.state(job)
        return state if state in states and not self._is_told_later(job, state) else None

    def _is_told_later(self, job, state):
        # The controller tells accounting in batches, so that sacct may be behind for a second.
        going = ("COMPLETING", "CONFIGURING", "PENDING", "RUNNING", "SUSPENDED")
        if state in going:
            return False
        told = self.accounting(job, "state")
        return not told or told.startswith(going)

    @contextlib.contextmanager
    def controller_down(self):
        """No controller, for which the programs that start meanwhile wait one second, not five."""
        controller = self.daemons.processes["slurmctld"]
        controller.terminate()
        controller.wait()
        try:
            with self._message_timeout(1):
                yield
        finally:
            self.start_controller()

    @contextlib.contextmanager
    def _message_timeout(self, seconds):
        path = self.folder / "slurm.conf"
        usual = shutil.copy(path, self.folder / "usual.conf")
        other = self.folder / "other.conf"
        text = re.sub("(?m)^MessageTimeout=.*", f"MessageTimeout={seconds}", path.read_text())
        other.write_text(text)
        other.rename(path)  # at once, as others read it at any time
        try:
            yield
        finally:
            usual.rename(path)

    @contextlib.contextmanager
    def crashed(self, node):
        """A node lost, as by a power cut; the controller is told, as it waits minutes otherwise."""
        sweep.kill(self.folder / f"{node}.log")
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=crashed")
        try:
            yield
        finally:
            self.start_node(node)
            self.wait_for_nodes(node)
