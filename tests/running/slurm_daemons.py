"""A Slurm cluster of real daemons on this machine: two nodes that can be preempted, cancelled and killed.

Needs root, and Debian's slurm-wlm, munge and util-linux.
"""

import contextlib
import os
import socket
import subprocess
from pathlib import Path

from tests.running.clusters import wait_until
from tests.running.daemons import Daemons, as_a_node, missing_programs, why_no_name_spaces

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "unshare")
NODES = ("n1", "n2")
CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmdTimeout=10
ReturnToService=2
JobRequeue=1
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname=n1 Port={n1} CPUs=4 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname=n2 Port={n2} CPUs=4 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=gpu Nodes=n1,n2 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=120 MaxTime=1-0
PartitionName=urgent Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF MaxTime=1-0
"""


def why_not() -> str | None:
    """Why no cluster can be set up here; None where it can."""
    if os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "setting up Slurm needs root"
    if missing := missing_programs(PROGRAMS):
        return f"Slurm is not installed ({', '.join(missing)} missing): apt-get install slurm-wlm munge"
    return why_no_name_spaces("true")


class SlurmDaemons(Daemons):
    """The daemons, and what tests ask them."""

    def __init__(self, folder: Path) -> None:
        """Keep everything in a folder whose path is short: a socket is in it."""
        super().__init__(folder)
        self.environment["SLURM_CONF"] = str(folder / "slurm.conf")

    def start(self) -> None:
        """Start the daemons, and wait until both nodes are up."""
        for name in ("controller", *NODES):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
            ports = dict(zip(("controller", *NODES), (each.getsockname()[1] for each in sockets), strict=True))
        host = socket.gethostname().partition(".")[0]
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(folder=self.folder, host=host, **ports))
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        munge = {name: str(self.folder / f"munge.{name}") for name in ("socket", "pid", "seed", "log")}
        self.begin(
            "munged",
            *("munged", "--foreground", "--force", "--key-file", str(key), "--socket", munge["socket"]),
            *("--pid-file", munge["pid"], "--seed-file", munge["seed"], "--log-file", munge["log"]),
        )
        wait_until(Path(munge["socket"]).exists, "munged listens")
        self.begin("slurmctld", "slurmctld", "-D")
        wait_until(lambda: "UP" in self.ask("scontrol", "ping"), "slurmctld answers")
        for node in NODES:
            self.start_node(node)

    def start_node(self, node: str) -> None:
        """Give a node its power back."""
        self.begin(node, *as_a_node(node, "slurmd", "-D", "-N", node))
        asked = ("sinfo", "--noheader", "--Node", "--partition", "gpu", "--nodes", node, "--format", "%T")
        wait_until(lambda: self.ask(*asked).strip() in ("idle", "mixed"), f"{node} is up")

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout

    def node_of(self, job: str) -> str:
        """The node that a job runs on; empty where it does not run."""
        return self.ask("squeue", "-h", "-t", "running", "-o", "%N", "-j", job).strip()

    def state_of(self, job: str) -> str:
        """The state of a job; empty where it is forgotten."""
        return self.ask("squeue", "-h", "--states=all", "-o", "%T", "-j", job).strip()
