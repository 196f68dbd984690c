"""The Slurm allocation of this process: its nodes, steps on them, and an address where ranks meet. Torch-free.

The names that Slurm has for nodes need not be known to anyone else, so that ranks get several addresses to try.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.slurm import client as slurm
from launcher.slurm.profile import ClusterConfig
from xlpretrain.errors import LaunchError
from xlpretrain.extras import optional

MASTERS = "XLPRETRAIN_MASTERS"
"""The environment variable that lists the addresses of the first node, the best first."""
# Below what systems give to outgoing connections (from 32768 on Linux), above what services use.
_FIRST_PORT, _NUM_PORTS = 12000, 20000


def addresses(head: str) -> list[str]:
    """The names under which the first node may be reached: its host name, Slurm's name, its own answer.

    Raises `LaunchError` if none of them means anything here.
    """
    found = [head]
    try:
        said = slurm.ask("scontrol", "--oneliner", "show", "node", head)
        found += re.findall(r"\b(?:NodeAddr|NodeHostName)=(\S+)", said)
    except LaunchError as error:
        print(f"not asked for the address of {head}: {error}", flush=True)
    if not any(map(_resolves, found)):
        # IPv6 addresses last: torch takes them, but not every site routes them.
        own = slurm.ask("srun", "--nodes=1", "--ntasks=1", f"--nodelist={head}", "hostname", "-I").split()
        found += sorted(own, key=lambda address: ":" in address)
    if not any(map(_resolves, found)):
        raise LaunchError(
            f"{head}: none of its addresses ({', '.join(found)}) can be resolved on {os.uname().nodename};"
            " ranks cannot meet there. Ask the site for names of nodes that resolve on nodes"
        )
    return list(dict.fromkeys(found))


def choose_address(candidates: Sequence[str] = ()) -> str:
    """The first of the candidates (default: of the environment) that this node can resolve. `LaunchError`: none."""
    candidates = candidates or os.environ[MASTERS].split()
    for address in candidates:
        if _resolves(address):
            return address
    raise LaunchError(f"{os.uname().nodename}: can resolve none of {', '.join(candidates)}, where ranks meet")


def free_port(job_id: int, restart: int) -> int:
    """A port for this start of a job: another one for other jobs, and free on this machine."""
    for attempt in range(100):
        port = _FIRST_PORT + (job_id + 7919 * restart + 101 * attempt) % _NUM_PORTS
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise LaunchError(f"{os.uname().nodename}: a hundred ports were tried, none of them is free")


def can_reach(address: str, port: int, *, timeout_s: float) -> bool:
    """True if something listens there, now or within the time. torch's store tries for nearly twice its timeout
    instead."""
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        try:
            socket.create_connection((address, port), timeout=left).close()
            return True
        except OSError:
            time.sleep(min(0.2, left))
    return False


def _resolves(address: str) -> bool:
    try:
        return bool(socket.getaddrinfo(address, None))
    except (OSError, UnicodeError):
        return False


TORCHRUN = ('trap "" USR1 USR2; exec "$@"', "torchrun")
"""A shell's way to keep torchrun alive through signals, at which it would end at once; its ranks hear them."""


@dataclass(frozen=True)
class Allocation:
    """A job as it sees itself.

    job_id: such as "123_4" in an array, as Slurm's commands are to be told: the bare number of an array's last element
    is that of the whole array, too. number: that number, unlike for each element. restart: how often Slurm had put it
    back into the queue.
    """

    job_id: str
    number: str
    restart: int
    cluster: str
    nodes: tuple[str, ...]

    @classmethod
    def current(cls) -> Allocation:
        """The allocation of this process. Raises `LaunchError` outside a job."""
        env = os.environ
        try:
            number, _ = env["SLURM_JOB_ID"], env["SLURM_JOB_NODELIST"]
        except KeyError as error:
            raise LaunchError(f"{error.args[0]} is not set: this is not a job of Slurm; use sbatch") from None
        # Not at the top: ranks import this module too, possibly in a container that has no submitit.
        with optional("submitit", "a Slurm job"):
            from submitit.slurm.slurm import SlurmJobEnvironment

        array = env.get("SLURM_ARRAY_JOB_ID")
        return cls(
            job_id=f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else number,
            number=number,
            restart=int(env.get("SLURM_RESTART_COUNT", "0")),
            cluster=env.get("SLURM_CLUSTER_NAME", ""),
            nodes=tuple(SlurmJobEnvironment().hostnames),
        )

    @property
    def launch_id(self) -> str:
        """The same for all starts by this job: each may take the run from the one before at once."""
        return f"slurm-{self.cluster}-{self.job_id}"


def srun_command(
    profile: ClusterConfig, nodes: Sequence[str], *, tasks_per_node: int, cpus_per_task: int | None
) -> list[str]:
    """The command that runs Python on these nodes, but for what it runs."""
    return [
        "srun",
        f"--nodes={len(nodes)}",
        f"--ntasks={len(nodes) * tasks_per_node}",
        f"--ntasks-per-node={tasks_per_node}",
        f"--nodelist={','.join(nodes)}",
        "--export=ALL",
        "--kill-on-bad-exit=1",
        # Should a task be lost without a word, srun would wait for it until the time limit.
        "--wait=60",
        # Since 22.05, srun does not take this one from sbatch.
        *([f"--cpus-per-task={cpus_per_task}"] if cpus_per_task else []),
        # No --gpu-bind: each task sees all GPUs of the job on its node, as NCCL wants it. With "none" it would not be
        # told which of the node's GPUs these are (CUDA_VISIBLE_DEVICES), and take those of other jobs.
        *profile.container,
        *profile.srun,
    ]


def python(profile: ClusterConfig) -> str:
    """The interpreter of ranks."""
    return profile.container_python if profile.container else profile.python


def rank_command(
    profile: ClusterConfig, nodes: Sequence[str], arguments: Sequence[str], *, meet_at: str, grace_s: int
) -> list[str]:
    """The command that starts all ranks. meet_at: address and port; grace_s: what torchrun gives them after SIGTERM."""
    run, tasks, cpus = python(profile), profile.num_tasks, profile.cpus_per_task
    if profile.launch == "direct":
        return [*srun_command(profile, nodes, tasks_per_node=tasks, cpus_per_task=cpus), run, "-u", *arguments]
    # A variable, since its option came with torch 2.13: what does not know it gives the ranks 30 s.
    agent = ["env", f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={grace_s}"]
    agent += [run, "-m", "torch.distributed.run", f"--nnodes={len(nodes)}", f"--nproc-per-node={tasks}"]
    agent += ["--rdzv-backend=c10d", f"--rdzv-endpoint={meet_at}", f"--rdzv-id={meet_at}", "--max-restarts=0"]
    agent += arguments
    one_each = srun_command(profile, nodes, tasks_per_node=1, cpus_per_task=cpus * tasks if cpus else None)
    return [*one_each, "bash", "-c", *TORCHRUN, *agent]


def spawn(command: Sequence[str], environment: Mapping[str, str], **pipes: int) -> subprocess.Popen[str]:
    """Start a step. Raises `LaunchError` where there is no srun."""
    try:
        return subprocess.Popen(command, env={**os.environ, **environment}, text=True, **pipes)  # type: ignore[call-overload,no-any-return]
    except FileNotFoundError:
        raise LaunchError(f"srun: there is no such command on {os.uname().nodename}") from None
