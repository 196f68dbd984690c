"""The memory that a rank may take: of its GPU, or what this machine, a cgroup and resource limits leave it."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from xlpretrain.planning.memory import MemoryPlan, readable


@dataclass(frozen=True)
class MemoryLimit:
    """Bytes that this process may take in addition to what it has.

    Attributes:
        touched: of memory that is used, and what sets this limit.
        reserved: of address space, used or not, and the name of that limit; None if there is none.
    """

    touched: tuple[int, str]
    reserved: tuple[int, str] | None = None

    def fits(self, plan: MemoryPlan) -> bool:
        """True if a plan stays within the limits."""
        return plan.peak <= self.touched[0] and (
            self.reserved is None or plan.peak + plan.untouched <= self.reserved[0]
        )

    def describe(self) -> str:
        """The limits and where they come from."""
        return ", ".join(f"{readable(size)} ({name})" for size, name in filter(None, (self.touched, self.reserved)))


def memory_limit(device: torch.device, *, ranks_here: int, root: Path = Path("/")) -> MemoryLimit:
    """The limit of this process, one of `ranks_here` on this machine that share what there is.

    root: where /proc and /sys are.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return MemoryLimit((free, f"free on {torch.cuda.get_device_name(device)}"))
    shared = [(_field(root / "proc/meminfo", "MemAvailable"), "available on this machine"), *_cgroups(root)]
    size, name = min(shared)
    share = f", one of {ranks_here} equal parts" if ranks_here > 1 else ""
    return MemoryLimit((max(size, 0) // ranks_here, name + share), _address_space(root))


def _address_space(root: Path) -> tuple[int, str] | None:
    """The bytes that RLIMIT_DATA and RLIMIT_AS leave; limits of a process."""
    found = []
    for name, field in (("RLIMIT_DATA", "VmData"), ("RLIMIT_AS", "VmSize")):
        limit, _ = resource.getrlimit(getattr(resource, name))
        if limit != resource.RLIM_INFINITY:
            found.append((max(limit - _field(root / "proc/self/status", field), 0), name))
    return min(found, default=None)


def _cgroups(root: Path) -> Iterator[tuple[int, str]]:
    """The bytes left by each memory cgroup of this process, versions 2 and 1; pages of files do not count as taken."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                top = root / "sys/fs/cgroup/memory"
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            else:
                continue
            here = top / path.lstrip("/")
            for folder in (here, *here.parents):
                if folder == top.parent:
                    break
                with suppress(OSError, ValueError):  # "max", or a folder of another container
                    limit = int((folder / names[0]).read_text())
                    files = _field(folder / "memory.stat", names[2])
                    yield limit - int((folder / names[1]).read_text()) + files, f"left in the cgroup {folder}"


def _field(path: Path, name: str) -> int:
    """A number in a file of names and numbers, in bytes; 0 if it is not there."""
    with suppress(OSError):
        found = re.search(rf"^{name}:?\s+(\d+)( kB)?$", path.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * (1024 if found[2] else 1)
    return 0


def ranks_on_this_machine() -> int:
    """Number of ranks that share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
