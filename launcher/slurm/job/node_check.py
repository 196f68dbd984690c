"""Looks at nodes before ranks start there.

    srun --ntasks-per-node=1 ... python -m launcher.slurm.job.node_check RUN GPUS SECONDS

Each node says in lines of JSON how far it has come: "looked" at itself, "joined" the others, "summed" with them.
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

from launcher.slurm.job import allocation


@dataclass(frozen=True)
class Health:
    """The result of a node check. failed_nodes: reasons by node. error: a failure without a node to blame."""

    failed_nodes: dict[str, str]
    error: str = ""


def main(run: Path, *, num_gpus: int, timeout_s: float) -> None:
    """Look at this node. Nothing raised means anything: silence does."""
    problems = _look(run, num_gpus)
    _say("looked", problems)
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    rank, world_size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    address, port = allocation.choose_address(), int(os.environ["MASTER_PORT"])
    if rank > 0 and not allocation.can_reach(address, port, timeout_s=timeout_s):
        sys.exit(f"{address}:{port} cannot be reached from {os.uname().nodename} within {timeout_s:g} s")
    store = TCPStore(
        address,
        port,
        world_size,
        is_master=rank == 0,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
    )
    _say("joined")
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
            _say("summed")
        store.set(f"left-{rank}", "")
    if rank == 0:  # the store lives here
        store.wait([f"left-{other}" for other in range(world_size)])


def check_reports(said: str, nodes: Sequence[str]) -> Health:
    """Judge `nodes` by the reports that they sent; the first of them hosted the meeting."""
    stages: dict[str, set[str]] = {node: set() for node in nodes}
    problems: dict[str, str] = {}
    for line in said.splitlines():
        try:
            told = json.loads(line)
            stages[told["node"]].add(told["stage"])
        except (ValueError, KeyError, TypeError):
            continue  # whatever else libraries print
        if told["problems"]:
            problems[told["node"]] = "; ".join(told["problems"])
    if not any(stages.values()):
        return Health({}, "no node answered the health check")
    silent = {node: "did not answer" for node in nodes if not stages[node]}
    broken = problems | silent
    if len(broken) == len(nodes) > 1:  # it is not the nodes: were they all left out, no start could ever be
        return Health({}, f"none of {len(nodes)} nodes is sound; {nodes[0]} {broken[nodes[0]]}")
    if broken:
        return Health(broken)
    head, *others = nodes
    apart = [node for node in others if "joined" not in stages[node]]
    if len(others) > 1 and apart == others:
        return Health({head: "no other node could reach it"})
    if apart:
        return Health(dict.fromkeys(apart, f"could not reach {head}"))
    if any("summed" not in stages[node] for node in nodes):
        what = f"{', '.join(nodes)} reached each other, but" if others else head
        return Health({}, f"{what} did not come to a sum in time; what was said is in the job's log")
    return Health({})


def _look(run: Path, num_gpus: int) -> list[str]:
    problems = []
    if num_gpus:
        import torch

        if torch.cuda.device_count() < num_gpus:
            problems.append(f"shows {torch.cuda.device_count()} GPUs, expected {num_gpus}")
    probe = run / "slurm" / f".health-{os.uname().nodename}-{secrets.token_hex(4)}.tmp"
    try:
        probe.write_text("written\n", encoding="utf-8")
        if probe.read_text(encoding="utf-8") != "written\n":
            problems.append(f"{run}: what is written there does not read back")
        probe.unlink()
    except OSError as error:
        problems.append(f"{run}: cannot be written: {error.strerror}")
    return problems


def _say(stage: str, problems: Sequence[str] = ()) -> None:
    node = os.environ.get("SLURMD_NODENAME", os.uname().nodename)
    print(json.dumps({"node": node, "stage": stage, "problems": list(problems)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), num_gpus=int(sys.argv[2]), timeout_s=float(sys.argv[3]))
