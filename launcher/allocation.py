"""The job that this process runs in: what Slurm gave it, and steps on its nodes. Torch-free."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher import slurm
from launcher.cluster import ClusterConfig
from xlpretrain.errors import LaunchError

LAUNCH_ID = "XLPRETRAIN_LAUNCH_ID"
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
    def this(cls) -> Allocation:
        """The one of this process. Raises `LaunchError` outside a job."""
        env = os.environ
        try:
            number, nodes = env["SLURM_JOB_ID"], env["SLURM_JOB_NODELIST"]
        except KeyError as error:
            raise LaunchError(f"{error.args[0]} is not set: this is not a job of Slurm; use sbatch") from None
        array = env.get("SLURM_ARRAY_JOB_ID")
        return cls(
            job_id=f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else number,
            number=number,
            restart=int(env.get("SLURM_RESTART_COUNT", "0")),
            cluster=env.get("SLURM_CLUSTER_NAME", ""),
            nodes=tuple(slurm.expand_nodes(nodes)),
        )

    @property
    def launch_id(self) -> str:
        """The same for all starts by this job: each may take the run from the one before at once."""
        return f"slurm-{self.cluster}-{self.job_id}"


def step(profile: ClusterConfig, nodes: Sequence[str], *, tasks_per_node: int, cpus_per_task: int | None) -> list[str]:
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


def ranks(
    profile: ClusterConfig, nodes: Sequence[str], arguments: Sequence[str], *, meet_at: str, grace_s: int
) -> list[str]:
    """The command that starts all ranks. meet_at: address and port; grace_s: what torchrun gives them after SIGTERM."""
    run, tasks, cpus = python(profile), profile.num_tasks, profile.cpus_per_task
    if profile.launch == "direct":
        return [*step(profile, nodes, tasks_per_node=tasks, cpus_per_task=cpus), run, "-u", *arguments]
    # A variable, since its option came with torch 2.13: what does not know it gives the ranks 30 s.
    agent = ["env", f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={grace_s}"]
    agent += [run, "-m", "torch.distributed.run", f"--nnodes={len(nodes)}", f"--nproc-per-node={tasks}"]
    agent += ["--rdzv-backend=c10d", f"--rdzv-endpoint={meet_at}", f"--rdzv-id={meet_at}", "--max-restarts=0"]
    agent += arguments
    one_each = step(profile, nodes, tasks_per_node=1, cpus_per_task=cpus * tasks if cpus else None)
    return [*one_each, "bash", "-c", *TORCHRUN, *agent]


def start(command: Sequence[str], environment: Mapping[str, str], **pipes: int) -> subprocess.Popen[str]:
    """Start a step. Raises `LaunchError` where there is no srun."""
    try:
        return subprocess.Popen(command, env={**os.environ, **environment}, text=True, **pipes)  # type: ignore[call-overload,no-any-return]
    except FileNotFoundError:
        raise LaunchError(f"srun: there is no such command on {os.uname().nodename}") from None
