"""Processor cores: share of time and speed that each gives to a thread that computes. Torch-free.

A thread on each core hashes for half a second. On a free core its processor time equals the wall time; on a core that
another process uses it gets about half, and a quota of a container or a hypervisor takes the rest from all cores.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from launcher.doctor.findings import Finding, passed, warning
from launcher.doctor.request import Request

_FOR_S = 0.5
_BUSY_SHARE = 0.8
_SLOW_SPEED = 0.6
_PIECE = bytes(1 << 20)  # hashing releases the GIL


class Core(NamedTuple):
    """Measurement of a core: share of the wall time, and relative speed while it ran (bytes per processor second)."""

    number: int
    share: float
    speed: float


def check(request: Request) -> Iterator[Finding]:
    """Measure all cores that this process may use, at the same time."""
    stolen = _stolen_s()
    cores = measure(sorted(os.sched_getaffinity(0)))
    stolen = (_stolen_s() - stolen) / (len(cores) * _FOR_S)
    yield from judge(cores, stolen=stolen, quota=quota())


def judge(cores: Sequence[Core], *, stolen: float, quota: float | None) -> Iterator[Finding]:
    """Judge measurements. stolen: share of the time that the hypervisor took; quota: cores of the container's limit."""
    busy = [core for core in cores if core.share < _BUSY_SHARE]
    fastest = max(core.speed for core in cores)
    slow = [core for core in cores if core.speed < _SLOW_SPEED * fastest]
    if quota is not None and quota < len(cores):
        yield warning(
            f"{len(cores)} cores are visible, but the container's quota is {quota:g}: all are time-sliced",
            "raise the quota, or start at most that many ranks (--nproc)",
        )
    if busy:
        yield warning(
            f"{_names(busy)} busy (of {len(cores)}): a thread got {_percent(busy)} of the time",
            "end other work there (`top`, key 1, shows each core), or leave these cores out with `taskset`",
        )
    if slow:
        yield warning(
            f"{_names(slow)} slower than the fastest (of {len(cores)}): {_percent(slow, fastest)} of its speed",
            "efficiency cores or heat; leave them out with `taskset`, since a step takes as long as its slowest rank",
        )
    if stolen > 1 - _BUSY_SHARE:
        yield warning(
            f"the hypervisor took {stolen:.0%} of the time (steal)",
            "other virtual machines use this host; ask for another",
        )
    if not busy and not slow:
        least = min(core.share for core in cores)
        yield passed(f"{len(cores)} cores, each free for at least {least:.0%} of the time")


def measure(numbers: Sequence[int]) -> list[Core]:
    """Measure these cores at the same time, with a thread on each."""
    found: list[Core] = []
    together = threading.Barrier(len(numbers))

    def run(number: int) -> None:
        os.sched_setaffinity(0, {number})  # of this thread
        together.wait()
        started, used = time.perf_counter(), time.thread_time()
        pieces = 0
        while (wall := time.perf_counter() - started) < _FOR_S:
            hashlib.sha256(_PIECE)
            pieces += 1
        used = time.thread_time() - used
        found.append(Core(number, min(1.0, used / wall), pieces / max(used, 1e-9)))

    threads = [threading.Thread(target=run, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(found)


def quota() -> float | None:
    """Cores of the container's limit of processor time (cgroup v2 or v1); None without a limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            v1 = Path("/sys/fs/cgroup/cpu")
            limit, period = (
                (v1 / f"cpu.cfs_{key}_us").read_text(encoding="ascii").strip() for key in ("quota", "period")
            )
        except OSError:
            return None
    return None if limit in ("max", "-1") else int(limit) / int(period)


def _stolen_s() -> float:
    """Seconds that the hypervisor took from all cores since boot."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def _names(cores: Sequence[Core]) -> str:
    numbers = ", ".join(str(core.number) for core in cores[:8])
    more = f" and {len(cores) - 8} more" if len(cores) > 8 else ""
    return f"core {numbers} is" if len(cores) == 1 else f"cores {numbers}{more} are"


def _percent(cores: Sequence[Core], fastest: float | None = None) -> str:
    return f"{statistics.median(c.speed / fastest if fastest else c.share for c in cores):.0%}"
