"""Health check of nodes before ranks start there.

    srun --ntasks-per-node=1 ... python -m launcher.slurm.job.node_check RUN GPUS SECONDS

Each node reports its progress in JSON lines: "looked" (checked itself), "joined" the others, "summed" with them.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from launcher.slurm.job import allocation, gpu_check


@dataclass(frozen=True)
class Health:
    """Result of a health check. failed_nodes: reasons by node. error: a failure without a single node at fault."""

    failed_nodes: dict[str, str]
    error: str = ""


def main(run: Path, *, num_gpus: int, timeout_s: float) -> None:
    """Check this node. Exceptions are ignored; a node that does not report has failed."""
    problems = _look(run, num_gpus)
    _report("looked", problems)
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    rank, world_size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    address, port = allocation.choose_address(), int(os.environ["MASTER_PORT"])
    if rank > 0 and not allocation.can_reach(address, port, timeout_s=timeout_s):
        sys.exit(f"{os.uname().nodename} could not connect to {address}:{port} within {timeout_s:g} s")
    store = TCPStore(
        address,
        port,
        world_size,
        is_master=rank == 0,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
    )
    _report("joined")
    store.set(f"problems-{rank}", str(len(problems)))
    if any(store.get(f"problems-{other}") != b"0" for other in range(world_size)):
        store.set(f"left-{rank}", "")
    else:
        device = torch.device("cuda", 0) if num_gpus else torch.device("cpu")
        backend = "nccl" if num_gpus else "gloo"
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s)
        )
        total = torch.ones(1 << 20, device=device)
        dist.all_reduce(total)
        if float(total.mean()) == world_size:
            _report("summed")
        store.set(f"left-{rank}", "")
    if rank == 0:  # the store runs in this process
        store.wait([f"left-{other}" for other in range(world_size)])


def check_reports(said: str, nodes: Sequence[str]) -> Health:
    """Evaluate the nodes' reports. The first node hosted the store."""
    stages: dict[str, set[str]] = {node: set() for node in nodes}
    problems: dict[str, str] = {}
    for line in said.splitlines():
        try:
            message = json.loads(line)
            stages[message["node"]].add(message["stage"])
        except (ValueError, KeyError, TypeError):
            continue  # other output, of libraries
        if message["problems"]:
            problems[message["node"]] = "; ".join(message["problems"])
    if not any(stages.values()):
        return Health({}, "no node answered the health check")
    silent = {node: "did not answer" for node in nodes if not stages[node]}
    broken = problems | silent
    if len(broken) == len(nodes) > 1:  # not the nodes' fault; excluding all of them would block every further attempt
        return Health({}, f"all {len(nodes)} nodes failed the health check; {nodes[0]}: {broken[nodes[0]]}")
    if broken:
        return Health(broken)
    head, *others = nodes
    apart = [node for node in others if "joined" not in stages[node]]
    if len(others) > 1 and apart == others:
        return Health({head: "no other node could reach it"})
    if apart:
        return Health(dict.fromkeys(apart, f"could not reach {head}"))
    if any("summed" not in stages[node] for node in nodes):
        what = f"{', '.join(nodes)} reached each other but" if others else head
        return Health({}, f"{what} did not finish an all-reduce in time; see the job's log")
    return Health({})


def _look(run: Path, num_gpus: int) -> list[str]:
    problems = []
    if num_gpus:
        import torch

        if torch.cuda.device_count() < num_gpus:
            problems.append(f"found {torch.cuda.device_count()} GPUs, expected {num_gpus}")
        problems += gpu_check.check_gpus([torch.device("cuda", i) for i in range(torch.cuda.device_count())])
    probe = run / "slurm" / f".health-{os.uname().nodename}-{secrets.token_hex(4)}.tmp"
    try:
        probe.write_text("written\n", encoding="utf-8")
        if probe.read_text(encoding="utf-8") != "written\n":
            problems.append(f"{run}: a file written there reads back differently")
        probe.unlink()
    except OSError as error:
        problems.append(f"{run}: not writable: {error.strerror}")
    return problems


def _report(stage: str, problems: Sequence[str] = ()) -> None:
    node = os.environ.get("SLURMD_NODENAME", os.uname().nodename)
    print(json.dumps({"node": node, "stage": stage, "problems": list(problems)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), num_gpus=int(sys.argv[2]), timeout_s=float(sys.argv[3]))
