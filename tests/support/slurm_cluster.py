"""A real, temporary Slurm cluster on this machine: its own munged, slurmctld and slurmds, without systemd.

    with SlurmCluster() as cluster:
        job = cluster.sbatch("srun hostname", "--nodes=2")
        cluster.wait_for(job, "COMPLETED")

Timeouts are seconds instead of minutes. Partitions: main; low, whose jobs high preempts by requeue.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psutil
from slurm_node import DIE_WITH_ME, Machine, Node, Share, find_processes, remove_network, run_ip, spawn
from slurm_packages import SBIN

Isolation = Literal["uts", "netns", "none"]
_FIRST_PORT, _NUM_PORTS, _PORTS_EACH = 23000, 8000, 20
# One device file per fake GPU: Slurm requires character devices but does not open them.
_DEVICES = ("null", "zero", "full", "random", "urandom", "ptmx", "kmsg", "tty")
_CONF = """\
ClusterName={name}
SlurmctldHost={host}({control_address})
SlurmctldPort={port}
SlurmUser={user}
# The rendezvous port depends on the job id; clusters on one network must not share job ids.
FirstJobId={port}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for cred_expire + 1 seconds.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/%n.pid
ProctrackType=proctrack/linuxproc
# Nodes may claim more processors than there are.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
KillWait=5
MessageTimeout=5
TCPTimeout=3
SlurmdTimeout=10
SlurmctldTimeout=10
BatchStartTimeout=10
UnkillableStepTimeout=30
ReturnToService=2
MinJobAge=3600
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{gres}
{extra}
{nodes}
PartitionName=DEFAULT Nodes=ALL MaxTime=60 DefaultTime=10 PreemptMode=OFF State=UP
PartitionName=main Default=YES PriorityTier=5
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_s}
PartitionName=high PriorityTier=10
"""


class SlurmCluster:
    """A cluster of `num_nodes` nodes, named node1 and so on, as a context manager.

    isolation: "uts": every node is a machine with its own processes and host name; "netns": and with its own network,
    so that `cut_node` works; "none": all are this machine, and their names do not resolve. user: who runs it, daemons
    and jobs alike (only with "none"; default: this user). directory: where all its files lie, made and removed;
    short, as the paths of sockets have at most 107 characters. base_port: where to look for 20 free ports (default:
    elsewhere for each test run, as several may boot at once).
    gpus: fake ones on each node. grace_s: what a preempted job gets. extra: more lines for slurm.conf.

    Attributes:
        env: environment for commands that use this cluster.
        names: names of the nodes.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        num_nodes: int = 3,
        cpus: int = 4,
        gpus: int = 0,
        memory_mb: int = 8000,
        base_port: int | None = None,
        isolation: Isolation = "uts",
        user: str = "",
        grace_s: int = 0,
        extra: Sequence[str] = (),
    ):
        assert isolation == "none" or not user, "namespaces need root"
        self.folder = directory or Path(tempfile.mkdtemp(prefix="xlslurm", dir="/tmp"))
        self.conf = self.folder / "etc" / "slurm.conf"
        self.names = [f"node{i + 1}" for i in range(num_nodes)]
        self.env = {**os.environ, "SLURM_CONF": str(self.conf), "PATH": SBIN}
        self._isolation = isolation
        if base_port is None:
            base_port = _FIRST_PORT + os.getpid() * _PORTS_EACH % _NUM_PORTS
        self._port = _free_ports(base_port, _PORTS_EACH)
        self._bridge = f"xlb{self._port}" if isolation == "netns" else ""
        self._network = f"10.{self._port // 250}.{self._port % 250}"
        self._user = user or pwd.getpwuid(os.geteuid()).pw_name
        self._become = _become(user) if user else []
        self._warden: subprocess.Popen[bytes] | None = None
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._shape = {"cpus": cpus, "gpus": gpus, "memory_mb": memory_mb, "grace_s": grace_s}
        self._extra = extra
        self._nodes: dict[str, Node] = {}

    def __enter__(self) -> Self:
        warden = [sys.executable, str(Path(__file__).with_name("slurm_warden.py")), str(self.folder), self._bridge]
        self._warden = subprocess.Popen(warden, stdin=subprocess.PIPE, start_new_session=True)
        try:
            self._write_files()
            self._start()
            self.wait_idle()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill all processes of the cluster and remove its files."""
        for node in self._nodes.values():
            node.kill()
        for daemon in reversed(self._daemons):
            daemon.kill()
            daemon.wait()
        if self._warden is not None:
            self._warden.communicate()

    def processes(self) -> list[psutil.Process]:
        """All processes of the cluster: daemons, steps, ranks, commands."""
        return find_processes(f"SLURM_CONF={self.conf}")

    # Commands and jobs

    def run(self, *command: object, expect: int | None = 0, timeout_s: float = 240, text: str = "") -> str:
        """Output of a command run as the cluster's user with `text` on stdin. expect: exit code; None: any."""
        arguments = [*self._become, *map(str, command)]
        done = subprocess.run(
            arguments, env=self.env, input=text, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert expect in (None, done.returncode), f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if expect == 0 else done.stdout + done.stderr

    def run_on(self, name: str, *command: str) -> str:
        """Output of a command on a node."""
        return subprocess.run(
            self._nodes[name].enter(command), env=self.env, capture_output=True, text=True, check=True
        ).stdout

    def sbatch(self, script: str, *options: object) -> str:
        """Submit a job that runs `script` in bash, with output in `<folder>/jobs/<id>.out`. Returns its id."""
        output = f"--output={self.folder}/jobs/%j.out"
        return self.run("sbatch", "--parsable", output, *options, text=f"#!/bin/bash\n{script}\n").strip()

    def output(self, job: str) -> str:
        """Output so far of a job submitted by `sbatch`."""
        path = self.folder / "jobs" / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def job(self, job: str) -> dict[str, str]:
        """Slurm's record of a job, also after its end: JobState, Reason, Restarts, NodeList and so on."""
        words = shlex.split(self.run("scontrol", "--oneliner", "show", "job", job).replace("'", ""))
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, job: str, state: str, *, timeout_s: float = 240) -> dict[str, str]:
        """Wait until a job is in `state`, such as RUNNING or COMPLETED; returns its record."""
        wait_until(lambda: self.job(job)["JobState"] == state, timeout_s, lambda: f"not {state}: {self.job(job)}")
        return self.job(job)

    # Nodes

    def states(self) -> dict[str, str]:
        """State of each node, such as idle, mixed, down, drained; with a * if it does not answer."""
        return dict(line.split() for line in self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines())

    def wait_idle(self, *, timeout_s: float = 30) -> None:
        """Wait until every node is idle and answers."""
        idle = dict.fromkeys(self.names, "idle")
        wait_until(lambda: self.states() == idle, timeout_s, lambda: f"not idle: {self.states()}\n{self.logs()}")

    def reset(self) -> None:
        """Reset the cluster: no jobs, every node up, connected and idle."""
        for name in self.names:
            if self._bridge:
                self.heal_node(name)
            self.revive_node(name)
        self.run("scancel", f"--user={self._user}", expect=None)
        left = time.monotonic() + 60
        while self.states() != dict.fromkeys(self.names, "idle"):
            assert time.monotonic() < left, f"not idle: {self.states()}\n{self.logs()}"
            for name, state in self.states().items():
                if state.startswith(("drain", "down")):
                    self.run("scontrol", "update", f"nodename={name}", "state=resume", expect=None)
            time.sleep(0.2)

    def kill_node(self, name: str, *, only_slurmd: bool = False) -> None:
        """Kill a node. only_slurmd: its steps and ranks keep running unsupervised."""
        if only_slurmd:
            self._nodes[name].kill_slurmd()
        else:
            self._nodes[name].kill()

    def revive_node(self, name: str) -> None:
        """Start a node's stopped processes."""
        self._nodes[name].start()

    def cut_node(self, name: str) -> None:
        """Disconnect a node from the network (isolation "netns"); its processes keep running."""
        self._cable(name, off=True)

    def heal_node(self, name: str) -> None:
        """Reconnect a node."""
        self._cable(name, off=False)

    def _cable(self, name: str, *, off: bool) -> None:
        node = self._nodes[name]
        assert isinstance(node, Machine)
        node.cut(off=off)

    def logs(self) -> str:
        """Last lines of every daemon's log."""
        logs = sorted((self.folder / "log").glob("*"))
        return "\n".join(f"== {log.name}\n" + "\n".join(log.read_text().splitlines()[-15:]) for log in logs)

    # Booting

    def _write_files(self) -> None:
        assert len(str(self.folder)) < 60, f"{self.folder}: too long for the sockets in it"
        for name in ("etc", "log", "state", "run", "munge", "jobs", *(f"spool/{name}" for name in self.names)):
            (self.folder / name).mkdir(parents=True)
        num, shape = len(self.names), self._shape
        numbers = f"[1-{num}]" if num > 1 else "1"
        ports = f"[{self._port + 1}-{self._port + num}]" if num > 1 else f"{self._port + 1}"
        control, address = "127.0.0.1", "127.0.0.1" if self._isolation == "none" else f"127.0.1.{numbers}"
        if self._bridge:
            control, address = f"{self._network}.254", f"{self._network}.{numbers}"
        host = socket.gethostname().partition(".")[0]
        gpus = f" Gres=gpu:{shape['gpus']}" if shape["gpus"] else ""
        self.conf.write_text(
            _CONF.format(
                name=f"test{self._port}",
                host=host,
                control_address=control,
                port=self._port,
                user=self._user,
                folder=self.folder,
                gres="GresTypes=gpu" if gpus else "",
                extra="\n".join(self._extra),
                grace_s=shape["grace_s"],
                nodes=f"NodeName=node{numbers} NodeHostname={host if self._isolation == 'none' else f'node{numbers}'}"
                f" NodeAddr={address} Port={ports} CPUs={shape['cpus']} RealMemory={shape['memory_mb']}{gpus}",
            )
        )
        devices = [f"Name=gpu File=/dev/{device}\n" for device in _DEVICES[: shape["gpus"]]]
        (self.folder / "etc" / "gres.conf").write_text("".join(devices))
        version = self.run("slurmd", "-V").split()[1].split(".")
        disabled = "CgroupPlugin=disabled\n" if [int(part) for part in version[:2]] >= [24, 5] else ""
        (self.folder / "etc" / "cgroup.conf").write_text(disabled)
        self._hosts.write_text(_hosts(host, control, [address.replace(numbers, str(i + 1)) for i in range(num)]))
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.folder.chmod(0o755)
        if self._become:
            for path in [self.folder, *self.folder.rglob("*")]:
                shutil.chown(path, self._user)

    @property
    def _hosts(self) -> Path:
        return self.folder / "etc" / "hosts"

    def _start(self) -> None:
        munge = self.folder / "munge"
        files = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
        self._daemon("munged", "--foreground", *(f"--{option}={munge / name}" for option, name in files.items()))
        wait_until((munge / "socket").exists, 10, lambda: f"munged did not start: {self.logs()}")
        if self._bridge:
            remove_network(self._bridge)  # a leftover of the same name
            run_ip("link", "add", self._bridge, "type", "bridge")
            run_ip("address", "add", f"{self._network}.254/24", "dev", self._bridge)
            run_ip("link", "set", self._bridge, "up")
        self._daemon("slurmctld", "-D", "-i")
        for number, name in enumerate(self.names, 1):
            log = self.folder / "log" / name
            if self._isolation == "none":
                node: Node = Share(name, env=self.env, user=self._become, log=log)
            else:
                address = f"{self._network}.{number}"
                node = Machine(name, env=self.env, hosts=self._hosts, log=log, bridge=self._bridge, address=address)
            self._nodes[name] = node
            node.start()

    def _daemon(self, *command: str) -> None:
        log = self.folder / "log" / command[0]
        self._daemons.append(spawn([*DIE_WITH_ME, *self._become, *command], env=self.env, log=log))


def _become(user: str) -> list[str]:
    return ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]


def _hosts(host: str, control: str, addresses: Sequence[str]) -> str:
    """/etc/hosts of every node."""
    nodes = "".join(f"{address} node{number}\n" for number, address in enumerate(addresses, 1))
    return f"127.0.0.1 localhost\n{control} {host}\n{nodes}"


def _free_ports(first: int, num: int) -> int:
    """First of `num` consecutive free ports."""
    while first < 60000:
        with suppress(OSError):
            for port in range(first, first + num):
                with socket.socket() as listener:
                    listener.bind(("", port))
            return first
        first += num
    raise RuntimeError("no free ports")


def wait_until(until: Callable[[], bool], timeout_s: float, otherwise: Callable[[], str]) -> None:
    """Poll; raises AssertionError with `otherwise` on timeout."""
    deadline = time.monotonic() + timeout_s
    while True:
        with suppress(AssertionError):  # a starting or busy controller does not answer
            if until():
                return
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.1)
