"""All checks by name, in the order in which they run. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import NamedTuple

from launcher.doctor.findings import Finding
from launcher.doctor.request import Request


class Check(NamedTuple):
    """A check: its module in this room, which defines `check(request)`, and its time limit in seconds.

    on_nodes: also made on each node of a cluster.
    """

    module: str
    limit_s: float
    on_nodes: bool = False


CHECKS = {
    "versions": Check("machine.versions", 30, on_nodes=True),
    "cores": Check("machine.cores", 30, on_nodes=True),  # before torch, whose threads would disturb it
    "limits": Check("machine.limits", 30, on_nodes=True),
    "network": Check("network.ports", 30, on_nodes=True),
    "config": Check("subject.config", 60),
    "space": Check("disks.space", 60, on_nodes=True),
    "speed": Check("disks.speed", 60, on_nodes=True),
    "names": Check("disks.names", 60, on_nodes=True),
    "clock": Check("disks.clock", 60, on_nodes=True),
    "data": Check("subject.data", 120),
    "trackers": Check("subject.trackers", 90),
    "devices": Check("machine.devices", 180, on_nodes=True),
    "products": Check("machine.products", 120, on_nodes=True),
    "ranks": Check("network.collective", 180),
    "slurm": Check("cluster.login", 120),
    "nodes": Check("cluster.on_nodes", 1200),  # waiting for nodes, and their checks
}


def load(name: str) -> Callable[[Request], Iterator[Finding]]:
    """Import the function of a check."""
    found: Callable[[Request], Iterator[Finding]] = import_module(f"launcher.doctor.{CHECKS[name].module}").check
    return found
