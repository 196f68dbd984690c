"""Shared memory, memory, and limits of processes (ulimit). Torch-free."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from launcher.doctor.findings import Finding, failure, passed, skipped, warning
from launcher.doctor.request import Request
from launcher.units import format_bytes

_MIN_FILES, _FEW_FILES = 256, 1024
_FEW_PROCESSES = 1024
_LITTLE_SHM = 1 << 30
_TINY_SHM = 32 << 20
_UNLIMITED = resource.RLIM_INFINITY


def check(request: Request) -> Iterator[Finding]:
    """Check each limit of this process, which the ranks inherit."""
    yield check_shared_memory(Path("/dev/shm"))
    yield _memory()
    yield check_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield check_processes(resource.getrlimit(resource.RLIMIT_NPROC)[0])
    has_rdma = any(Path("/sys/class/infiniband").glob("*"))
    yield check_locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], has_rdma=has_rdma)
    pattern = Path("/proc/sys/kernel/core_pattern").read_text(encoding="utf-8", errors="replace").strip()
    yield check_cores(resource.getrlimit(resource.RLIMIT_CORE)[0], pattern=pattern)


def check_shared_memory(folder: Path) -> Finding:
    """Check the size of /dev/shm, which NCCL and gloo use between ranks of a machine."""
    try:
        stats = os.statvfs(folder)
    except OSError as error:
        return failure(f"{folder}: {error.strerror}", "mount a tmpfs there; ranks exchange data through it")
    free, total = stats.f_bavail * stats.f_frsize, stats.f_blocks * stats.f_frsize
    text = f"{folder}: {format_bytes(free)} of {format_bytes(total)} free"
    remedy = "give the container more: `--shm-size=8g` or `--ipc=host`; else remove files there"
    if free < _TINY_SHM:
        return failure(text, remedy)
    return warning(text, remedy) if free < _LITTLE_SHM else passed(text)


def check_files(soft: int) -> Finding:
    """Check the limit of open files."""
    text = f"open files: {_shown(soft)}"
    remedy = "raise it with `ulimit -n 65536`; a rank keeps shards, sockets and libraries open"
    if 0 <= soft < _MIN_FILES:
        return failure(text, remedy)
    return warning(text, remedy) if 0 <= soft < _FEW_FILES else passed(text)


def check_processes(soft: int) -> Finding:
    """Check the limit of processes and threads of this user."""
    text = f"processes and threads of this user: {_shown(soft)}"
    if 0 <= soft < _FEW_PROCESSES:
        return warning(text, "raise it with `ulimit -u`; each rank starts tens of threads")
    return passed(text)


def check_locked_memory(soft: int, *, has_rdma: bool) -> Finding:
    """Check the limit of page-locked memory, which InfiniBand and RoCE need."""
    if not has_rdma:
        return skipped(
            f"locked memory ({_shown(soft, is_bytes=True)}): only matters with InfiniBand or RoCE, not found here"
        )
    if soft != _UNLIMITED:
        return warning(
            f"locked memory: {_shown(soft, is_bytes=True)}",
            "InfiniBand needs `ulimit -l unlimited` (in Slurm: PropagateResourceLimitsExcept=MEMLOCK)",
        )
    return passed("locked memory: unlimited")


def check_cores(soft: int, *, pattern: str) -> Finding:
    """Check the size of core dumps: those of ranks are as large as their memory. pattern: the kernel's core_pattern."""
    if soft == 0 or pattern.startswith("|"):
        return passed("core dumps: off" if soft == 0 else "core dumps: handled by the system")
    return warning(
        f"core dumps: {_shown(soft, is_bytes=True)}, written as {pattern!r}",
        "turn them off with `ulimit -c 0`, unless you want one of each crashed rank",
    )


def _memory() -> Finding:
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    free, total = (1024 * int(fields[key].split()[0]) for key in ("MemAvailable", "MemTotal"))
    text = f"memory: {format_bytes(free)} of {format_bytes(total)} available"
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            free, text = min(free, int(limit)), f"{text}; limit of the container: {format_bytes(int(limit))}"
    except OSError:
        pass
    return (
        warning(text, "end other programs, or ask for more; a rank needs about 1 GB for libraries")
        if free < 2 << 30
        else passed(text)
    )


def _shown(limit: int, *, is_bytes: bool = False) -> str:
    if limit == _UNLIMITED:
        return "unlimited"
    return f"at most {format_bytes(limit) if is_bytes else limit}"
