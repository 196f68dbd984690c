"""A node of the test cluster: slurmd, in an isolated environment if requested."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil
from slurm_packages import UNSHARE

DIE_WITH_ME = ("setpriv", "--pdeathsig", "KILL")
"""Command prefix that kills a daemon when its parent dies."""
# The init process of a machine: it reaps its children, and exits when its standard input is closed.
_MACHINE = 'set -e; mount --bind "$2" /etc/hosts; hostname "$1"; [ -z "$3" ] || ip link set lo up; echo up; read -r _'


class Node(Protocol):
    """Interface of a node. `name` is its name in Slurm."""

    name: str

    def start(self) -> None:
        """Start slurmd, and the machine if it is down."""

    def kill(self) -> None:
        """Send SIGKILL to all processes of the node, as in a power failure."""

    def kill_slurmd(self) -> None:
        """Send SIGKILL to slurmd only; steps and their ranks keep running."""

    def enter(self, command: Sequence[str]) -> list[str]:
        """The command that runs `command` on this node."""


class Machine:
    """A node with its own process, mount and host name namespaces and, with `address` on `bridge`, network.

    Processes of different nodes do not see each other, as on real machines.
    """

    def __init__(self, name: str, *, env: Mapping[str, str], hosts: Path, log: Path, bridge: str, address: str):
        self.name = name
        self._env, self._hosts, self._log, self._bridge, self._address = env, hosts, log, bridge, address
        self._machine: subprocess.Popen[bytes] | None = None
        self._slurmd: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """See `Node`."""
        if self._machine is None:
            self._boot()
        if self._slurmd is None or self._slurmd.poll() is not None:
            self._slurmd = spawn(self.enter(["slurmd", "-D", "-N", self.name]), env=self._env, log=self._log)

    def kill(self) -> None:
        """See `Node`."""
        if self._machine is None:
            return
        self._machine.kill()  # its only child is the machine's init process, which dies with all others
        self._machine.communicate()
        self._machine = None
        if self._slurmd is not None:
            self._slurmd.wait()

    def kill_slurmd(self) -> None:
        """See `Node`."""
        if self._slurmd is not None:
            for inside in psutil.Process(self._slurmd.pid).children():
                inside.kill()
            self._slurmd.wait()

    def cut(self, *, off: bool = True) -> None:
        """Disconnect or reconnect the network."""
        assert self._bridge, "only nodes with isolation='netns' have their own network"
        if self._machine is not None:
            self._ip("link", "set", "eth0", "down" if off else "up")

    def enter(self, command: Sequence[str]) -> list[str]:
        """See `Node`."""
        return ["nsenter", f"--target={self._first_process()}", "--mount", "--uts", "--pid", "--net", *command]

    def _boot(self) -> None:
        network = ["--net"] if self._bridge else []
        command = [*UNSHARE, *network, "bash", "-c", _MACHINE, "machine", self.name, str(self._hosts), *network]
        with self._log.open("ab") as log:
            self._machine = subprocess.Popen(
                command if network else [*command, ""],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._env,
            )
        assert self._machine.stdout is not None
        if self._machine.stdout.readline() != b"up\n":
            raise RuntimeError(f"{self.name} did not come up: {self._log.read_text()}")
        if self._bridge:
            outside = f"{self._bridge}{self.name[-1]}"
            peer = ["type", "veth", "peer", "name", "eth0", "netns", str(self._first_process())]
            run_ip("link", "add", outside, *peer)
            run_ip("link", "set", outside, "master", self._bridge, "up")
            self._ip("address", "add", f"{self._address}/24", "dev", "eth0")
            self._ip("link", "set", "eth0", "up")

    def _first_process(self) -> int:
        if self._machine is None:
            raise RuntimeError(f"{self.name} is down")
        return int(psutil.Process(self._machine.pid).children()[0].pid)

    def _ip(self, *arguments: str) -> None:
        subprocess.run(self.enter(["ip", *arguments]), check=True, env=self._env)


class Share:
    """A node without isolation: a slurmd on this machine, run as `user`, without root."""

    def __init__(self, name: str, *, env: Mapping[str, str], user: Sequence[str], log: Path):
        self.name = name
        # Ranks get their node's name from Slurm; setting it here also marks the daemons.
        self._env, self._user, self._log = {**env, "SLURMD_NODENAME": name}, user, log
        self._slurmd: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """See `Node`."""
        if self._slurmd is None or self._slurmd.poll() is not None:
            self._slurmd = spawn(self.enter(["slurmd", "-D", "-N", self.name]), env=self._env, log=self._log)

    def kill(self) -> None:
        """See `Node`."""
        self.kill_slurmd()
        kill_all(find_processes(f"SLURM_CONF={self._env['SLURM_CONF']}", f"SLURMD_NODENAME={self.name}"))

    def kill_slurmd(self) -> None:
        """See `Node`."""
        if self._slurmd is not None:
            self._slurmd.kill()
            self._slurmd.wait()

    def enter(self, command: Sequence[str]) -> list[str]:
        """See `Node`."""
        return [*DIE_WITH_ME, *self._user, *command]


def find_processes(*variables: str) -> list[psutil.Process]:
    """Other processes that were started with all of these environment variables, each as NAME=VALUE."""
    found = []
    for process in psutil.process_iter():
        with suppress(OSError):
            environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if process.pid != os.getpid() and all(variable.encode() in environment for variable in variables):
                found.append(process)
    return found


def kill_all(processes: Sequence[psutil.Process]) -> None:
    """Send SIGKILL to all processes at once, and wait until they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def run_ip(*arguments: str, check: bool = True) -> None:
    """Run `ip` on this machine."""
    subprocess.run(["ip", *arguments], check=check, capture_output=True)


def remove_network(bridge: str) -> None:
    """Remove a bridge and the links to its nodes, including links that are still in use."""
    for link in Path("/sys/class/net").glob(f"{bridge}*"):
        run_ip("link", "delete", link.name, check=False)


def spawn(command: Sequence[str], *, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a daemon in the foreground, with output to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
