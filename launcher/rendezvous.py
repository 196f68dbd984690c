"""Where ranks of several nodes meet: an address of the first node that each can resolve, and a port. Torch-free.

The names that Slurm has for nodes need not be known to anybody else.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Sequence

from launcher import slurm
from xlpretrain.errors import LaunchError

MASTERS = "XLPRETRAIN_MASTERS"
"""The environment variable that lists the addresses of the first node, the best first."""
# Below what systems give to outgoing connections (from 32768 on Linux), above what services use.
_FIRST_PORT, _NUM_PORTS = 12000, 20000


def addresses(head: str) -> list[str]:
    """What the first node may be reached by: its name, what Slurm calls it by, what it says itself.

    Raises `LaunchError` if none of them means anything here.
    """
    found = [head]
    try:
        said = slurm.ask("scontrol", "--oneliner", "show", "node", head)
        found += re.findall(r"\b(?:NodeAddr|NodeHostName)=(\S+)", said)
    except LaunchError as error:
        print(f"not asked for the address of {head}: {error}", flush=True)
    if not any(map(_resolves, found)):
        # IPv6 addresses last: torch takes them, but not every site routes them.
        own = slurm.ask("srun", "--nodes=1", "--ntasks=1", f"--nodelist={head}", "hostname", "-I").split()
        found += sorted(own, key=lambda address: ":" in address)
    if not any(map(_resolves, found)):
        raise LaunchError(
            f"{head}: none of its addresses ({', '.join(found)}) can be resolved on {os.uname().nodename};"
            " ranks cannot meet there. Ask the site for names of nodes that resolve on nodes"
        )
    return list(dict.fromkeys(found))


def pick(candidates: Sequence[str] = ()) -> str:
    """The first of the candidates (default: of the environment) that this node can resolve. `LaunchError`: none."""
    candidates = candidates or os.environ[MASTERS].split()
    for address in candidates:
        if _resolves(address):
            return address
    raise LaunchError(f"{os.uname().nodename}: can resolve none of {', '.join(candidates)}, where ranks meet")


def free_port(job_id: int, restart: int) -> int:
    """A port for this start of a job: another one for other jobs, and free on this machine."""
    for attempt in range(100):
        port = _FIRST_PORT + (job_id + 7919 * restart + 101 * attempt) % _NUM_PORTS
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise LaunchError(f"{os.uname().nodename}: a hundred ports were tried, none of them is free")


def can_reach(address: str, port: int, *, timeout_s: float) -> bool:
    """Whether somebody listens there, or does so in time. torch's store tries for nearly twice its timeout instead."""
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
