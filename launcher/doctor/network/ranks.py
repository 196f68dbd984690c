"""One rank of the check of collectives: python -m launcher.doctor.network.ranks

It starts as a rank of a run does. Rank 0 prints findings as JSON lines; a rank that cannot join prints the reason.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from launcher.doctor.findings import Finding, failure, passed, warning
from launcher.doctor.network import shared_folder
from launcher.doctor.request import Request
from launcher.units import format_bytes
from xlpretrain import distributed
from xlpretrain.errors import XLPretrainError, exit_rank, print_error_once
from xlpretrain.run_dir.lease import HEARTBEAT_S, STALE_S
from xlpretrain.run_dir.watchdog import Watchdog

JOIN_S = 60.0
"""Time for all ranks to connect, and for each collective."""
_SMALL, _LARGE_CPU, _LARGE_GPU = 8, 16 << 20, 256 << 20
"""Bytes of a message between ranks in each step, and of gradients."""
_REPEATS = 5
_SLOW_BYTES_PER_S = {"gloo": 100e6, "nccl": 5e9}


def main(request: Request | None = None) -> int:
    """Run the collectives and, given a request, the check of its folder of runs. Returns the exit code."""
    with Watchdog() as watchdog:
        try:
            device = distributed.init(timeout_s=JOIN_S)
        except XLPretrainError as error:
            return print_error_once(error)
        try:
            places = distributed.gather_objects((os.uname().nodename, str(device)))
            findings = list(measure(torch.device("cpu"), "gloo", _LARGE_CPU, places))
            if device.type == "cuda":
                findings += measure(device, "nccl", _LARGE_GPU, places)
            hosts = [str(host) for host, _ in places]
            findings += check_clocks(hosts)
            if request is not None:
                findings += shared_folder.check(request, hosts)
            watchdog.close()
            distributed.barrier()
        finally:
            distributed.shutdown()
    if os.environ.get("RANK", "0") == "0":
        for finding in findings:
            print(finding.to_json(), flush=True)
    return 0


def measure(device: torch.device, backend: str, size: int, places: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """Sum known numbers over all ranks: correctness, bandwidth of large messages, latency of small ones.

    Every rank must call it.
    """
    rank, world_size = distributed.rank(), distributed.world_size()
    numbers = torch.arange(size // 4, device=device) % 1000
    expected = (numbers * world_size + sum(range(world_size))).float()  # exact: below 2^24
    large = (numbers + rank).float()
    dist.all_reduce(large)
    wrong = distributed.all_reduce_sum([float(not torch.equal(large, expected))])[0]
    times_s = {number: _time_s(torch.zeros(number // 4, device=device)) for number in (_SMALL, size)}
    gathered = distributed.gather_objects(rank)
    hosts = list(dict.fromkeys(host for host, _ in places))
    where = f"{world_size} ranks" + (f" of {len(hosts)} nodes" if len(hosts) > 1 else "")
    if world_size == 1:
        where = "1 rank, nothing to exchange"
    yield from judge(
        backend, where, wrong=int(wrong) + (gathered != list(range(world_size))), size=size, times_s=times_s,
        exchanged=2 * (world_size - 1) / world_size,
    )  # fmt: skip


def judge(
    backend: str, where: str, *, wrong: int, size: int, times_s: dict[int, float], exchanged: float
) -> Iterator[Finding]:
    """Judge an all-reduce. wrong: number of ranks with a wrong sum. exchanged: share of the bytes each rank sends."""
    if wrong:
        yield failure(
            f"{backend}: {wrong} ranks got a wrong sum over {where}",
            "faulty memory, GPU or network card; run the check on fewer nodes (--nodes) to find it",
        )
        return
    rate = exchanged * size / times_s[size]
    text = f"{backend}: all-reduce over {where} is correct"
    if not exchanged:
        yield passed(text)
        return
    text += f": {format_bytes(rate)}/s for {format_bytes(size)}, {1e6 * times_s[_SMALL]:.0f} µs for {_SMALL} bytes"
    if rate < _SLOW_BYTES_PER_S[backend]:
        yield warning(
            text,
            "for NCCL: `nvidia-smi topo -m`, NCCL_DEBUG=INFO, NCCL_SOCKET_IFNAME, NCCL_IB_DISABLE"
            if backend == "nccl"
            else "busy cores, or a slow network chosen: see `cores`; set GLOO_SOCKET_IFNAME",
        )
    else:
        yield passed(text)


def check_clocks(hosts: Sequence[str]) -> Iterator[Finding]:
    """Compare the clocks of all ranks just after a barrier. Every rank must call it."""
    distributed.barrier()
    times = distributed.gather_objects(time.time())
    yield from judge_clocks(dict(zip(hosts, times, strict=True)))


def judge_clocks(clocks: dict[str, float]) -> Iterator[Finding]:
    """Judge clocks by host, in seconds, read at the same moment."""
    if len(clocks) < 2:
        return
    middle = statistics.median(clocks.values())
    off = {host: clock - middle for host, clock in clocks.items()}
    worst = max(off, key=lambda host: abs(off[host]))
    spread = max(clocks.values()) - min(clocks.values())
    if spread > HEARTBEAT_S:
        say = failure if spread > STALE_S else warning
        yield say(
            f"the clocks of {len(clocks)} nodes differ by {spread:.1f} s; farthest off: {worst} ({off[worst]:+.1f} s)",
            "set the clocks of the nodes (NTP); logs and times of metrics would mislead",
        )
    else:
        yield passed(f"the clocks of {len(clocks)} nodes agree within {spread:.2f} s")


def _time_s(tensor: torch.Tensor) -> float:
    """Median seconds of an all-reduce, the slowest rank's."""
    found = []
    for _ in range(_REPEATS):
        distributed.barrier()
        _wait(tensor)
        started = time.perf_counter()
        dist.all_reduce(tensor)
        _wait(tensor)
        found.append(time.perf_counter() - started)
    return float(max(distributed.gather_objects(statistics.median(found))))


def _wait(tensor: torch.Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)


if __name__ == "__main__":
    exit_rank(main() if len(sys.argv) == 1 else 2)
