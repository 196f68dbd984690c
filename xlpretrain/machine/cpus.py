"""CPUs and network interfaces of this machine, as Linux describes them. Torch-free.

A rank that runs on the CPUs of its GPU's NUMA node has the shortest way to pinned memory and to the GPU's queues.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Sequence, Set
from contextlib import suppress
from pathlib import Path

AFFINITY_ENV = "XLPRETRAIN_CPU_AFFINITY"
"""Environment variable; `off` leaves ranks on all CPUs that they may use."""
SYS = Path("/sys")
_SIOCGIFADDR = 0x8915


def numa_node_of_pci(address: str) -> int | None:
    """The NUMA node of a PCI device, such as "0000:3b:00.0"; None where the kernel does not know it."""
    try:
        node = int((SYS / "bus/pci/devices" / address / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def cpu_share(local_rank: int, nodes: Sequence[int | None], allowed: Sequence[Set[int]]) -> set[int] | None:
    """The CPUs on which to run a rank, or None to leave it where it is.

    The allowed CPUs of a NUMA node are divided among the ranks whose GPUs are on it, by whole cores (the hardware
    threads of a core stay together). A rank is left where it is if its node is unknown, if the node has fewer allowed
    cores than ranks, and if the ranks of the machine may use different CPUs: then the scheduler has bound them already.

    Args:
        nodes: NUMA node of each local rank's GPU (`numa_node_of_pci`).
        allowed: CPUs that each local rank may use (`os.sched_getaffinity`).
    """
    node = nodes[local_rank]
    if node is None or any(cpus != allowed[local_rank] for cpus in allowed):
        return None
    try:
        of_node = _cpus((SYS / f"devices/system/node/node{node}/cpulist").read_text()) & allowed[local_rank]
    except (OSError, ValueError):
        return None
    cores = sorted({tuple(sorted(_siblings(cpu) & of_node)) for cpu in of_node})
    sharing = [rank for rank, other in enumerate(nodes) if other == node]
    index, number = sharing.index(local_rank), len(sharing)
    if len(cores) < number:
        return None
    mine = cores[index * len(cores) // number : (index + 1) * len(cores) // number]
    return {cpu for core in mine for cpu in core}


def affinity_is_off() -> bool:
    """True if the user wants ranks left on all CPUs that they may use."""
    return os.environ.get(AFFINITY_ENV, "").lower() in ("off", "0", "false")


def interface_towards(host: str, port: int) -> str | None:
    """The network interface through which this machine reaches a host by IPv4; None if it cannot be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect((host, port))  # selects a route; sends nothing
        mine = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                found = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(found[20:24]) == mine:
                    return name
    return None


def _cpus(text: str) -> set[int]:
    """Parse the kernel's list format, such as "0-3,8"."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _siblings(cpu: int) -> set[int]:
    """The hardware threads of a CPU's core; only itself if the kernel does not tell."""
    try:
        text = (SYS / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        return {cpu} | _cpus(text)
    except (OSError, ValueError):
        return {cpu}
