"""The Slurm allocation of this process: nodes, job steps, and the rendezvous address. Torch-free.

Slurm's node names need not resolve on the nodes, so ranks get several addresses to try.
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

MASTERS = "XLPRETRAIN_MASTERS"
"""Environment variable with the addresses of the first node, best first."""
# Below the ephemeral ports (from 32768 on Linux), above most services.
_FIRST_PORT, _NUM_PORTS = 12000, 20000


def addresses(head: str) -> list[str]:
    """Candidate addresses of the first node: Slurm's names, and if none resolves, the node's own IP addresses.

    Raises `LaunchError` if none of them can be resolved here.
    """
    found = [head]
    try:
        said = slurm.ask("scontrol", "--oneliner", "show", "node", head)
        found += re.findall(r"\b(?:NodeAddr|NodeHostName)=(\S+)", said)
    except LaunchError as error:
        print(f"cannot query the address of {head}: {error}", flush=True)
    if not any(map(_resolves, found)):
        # IPv6 addresses last: torch takes them, but not every site routes them.
        own = slurm.ask("srun", "--nodes=1", "--ntasks=1", f"--nodelist={head}", "hostname", "-I").split()
        found += sorted(own, key=lambda address: ":" in address)
    if not any(map(_resolves, found)):
        raise LaunchError(
            f"{head}: none of its addresses ({', '.join(found)}) can be resolved on {os.uname().nodename};"
            " ranks cannot connect to it. Ask your site for node names that resolve on the nodes"
        )
    return list(dict.fromkeys(found))


def choose_address(candidates: Sequence[str] = ()) -> str:
    """The first candidate (default: from the environment) that resolves on this node. `LaunchError` if none does."""
    candidates = candidates or os.environ[MASTERS].split()
    for address in candidates:
        if _resolves(address):
            return address
    raise LaunchError(f"{os.uname().nodename}: cannot resolve any rendezvous address ({', '.join(candidates)})")


def free_port(job_id: int, restart: int) -> int:
    """A free port on this machine that differs between jobs and between restarts of a job."""
    for attempt in range(100):
        port = _FIRST_PORT + (job_id + 7919 * restart + 101 * attempt) % _NUM_PORTS
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise LaunchError(f"{os.uname().nodename}: no free port among the 100 that were tried")


def can_reach(address: str, port: int, *, timeout_s: float) -> bool:
    """True if the port accepts a connection within timeout_s. (torch's store retries for nearly twice its timeout.)"""
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
"""Shell command that keeps torchrun alive on USR1 and USR2, which would kill it; its ranks still receive them."""


@dataclass(frozen=True)
class Allocation:
    """The job that this process runs in.

    job_id: for Slurm's commands, such as "123_4" in an array: the bare number of an array's last task also means the
    whole array. number: the bare number, unique to each task. restart: number of earlier requeues.
    """

    job_id: str
    number: str
    restart: int
    cluster: str
    nodes: tuple[str, ...]

    @classmethod
    def current(cls) -> Allocation:
        """The allocation of this process. Raises `LaunchError` outside a job."""
        # Not at the top: ranks import this module too, possibly in a container that has no submitit.
        from submitit.slurm.slurm import _parse_node_list

        env = os.environ
        try:
            number, nodes = env["SLURM_JOB_ID"], env["SLURM_JOB_NODELIST"]
        except KeyError as error:
            raise LaunchError(f"{error.args[0]} is not set: not inside a Slurm job; use sbatch") from None
        array = env.get("SLURM_ARRAY_JOB_ID")
        return cls(
            job_id=f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else number,
            number=number,
            restart=int(env.get("SLURM_RESTART_COUNT", "0")),
            cluster=env.get("SLURM_CLUSTER_NAME", ""),
            nodes=tuple(map(str, _parse_node_list(nodes))),
        )

    @property
    def launch_id(self) -> str:
        """Launch id shared by all attempts of this job, so that each can take over the lease of the one before."""
        return f"slurm-{self.cluster}-{self.job_id}"


def srun_command(
    profile: ClusterConfig, nodes: Sequence[str], *, tasks_per_node: int, cpus_per_task: int | None
) -> list[str]:
    """The srun command and its options for these nodes, without the program to run."""
    return [
        "srun",
        f"--nodes={len(nodes)}",
        f"--ntasks={len(nodes) * tasks_per_node}",
        f"--ntasks-per-node={tasks_per_node}",
        f"--nodelist={','.join(nodes)}",
        "--export=ALL",
        "--kill-on-bad-exit=1",
        # Without it, srun waits for a lost task until the time limit.
        "--wait=60",
        # Since 22.05, srun does not inherit it from sbatch.
        *([f"--cpus-per-task={cpus_per_task}"] if cpus_per_task else []),
        # No --gpu-bind: each task sees all GPUs of the job on its node, as NCCL needs. With "none",
        # CUDA_VISIBLE_DEVICES is not set, and tasks would use GPUs of other jobs.
        *profile.container,
        *profile.srun,
    ]


def python(profile: ClusterConfig) -> str:
    """The Python interpreter of the ranks."""
    return profile.container_python if profile.container else profile.python


def rank_command(
    profile: ClusterConfig, nodes: Sequence[str], arguments: Sequence[str], *, meet_at: str, grace_s: int
) -> list[str]:
    """The command that starts all ranks. meet_at: address:port; grace_s: seconds torchrun waits after SIGTERM."""
    run, tasks, cpus = python(profile), profile.num_tasks, profile.cpus_per_task
    if profile.launch == "direct":
        return [*srun_command(profile, nodes, tasks_per_node=tasks, cpus_per_task=cpus), run, "-u", *arguments]
    # A variable, since the option only exists from torch 2.13 on; earlier versions wait for 30 s.
    agent = ["env", f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={grace_s}"]
    agent += [run, "-m", "torch.distributed.run", f"--nnodes={len(nodes)}", f"--nproc-per-node={tasks}"]
    agent += ["--rdzv-backend=c10d", f"--rdzv-endpoint={meet_at}", f"--rdzv-id={meet_at}", "--max-restarts=0"]
    agent += arguments
    one_each = srun_command(profile, nodes, tasks_per_node=1, cpus_per_task=cpus * tasks if cpus else None)
    return [*one_each, "bash", "-c", *TORCHRUN, *agent]


def spawn(command: Sequence[str], environment: Mapping[str, str], **pipes: int) -> subprocess.Popen[str]:
    """Start a job step. Raises `LaunchError` if there is no srun."""
    try:
        return subprocess.Popen(command, env={**os.environ, **environment}, text=True, **pipes)  # type: ignore[call-overload,no-any-return]
    except FileNotFoundError:
        raise LaunchError(f"srun: command not found on {os.uname().nodename}") from None
