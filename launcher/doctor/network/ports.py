"""Connections of this machine to itself, as ranks make them: host name, loopback, ports. Torch-free."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

from launcher.doctor.findings import Finding, failure, passed, warning
from launcher.doctor.request import Request
from launcher.slurm.job.allocation import free_port
from xlpretrain.errors import LaunchError

_CONNECT_S = 3.0
_LOOPBACK = "127.0.0.1"
_REMEDY = (
    "a firewall, VPN or sandbox blocks it: bring loopback up (`ip link set lo up`) and allow TCP between this machine's"
    " own addresses, ports 12000 to 65535 (`iptables -L -n`, `nft list ruleset`)"
)


def check(request: Request) -> Iterator[Finding]:
    """Check the host name, then connections to this machine's addresses."""
    host = socket.gethostname()
    own = addresses_of(host)
    if own:
        yield passed(f"host name {host} resolves to {', '.join(own)}")
    else:
        yield warning(
            f"host name {host} does not resolve here",
            f'add a line "{_LOOPBACK} {host}" to /etc/hosts; gloo and torchrun look it up',
        )
    blocked = {address: why for address in dict.fromkeys((_LOOPBACK, *own[:1])) if (why := blocked_port(address))}
    for address, why in blocked.items():
        yield failure(f"no connection to {address}: {why}", _REMEDY)
    if not blocked:
        yield passed(f"ports of {' and '.join(dict.fromkeys((_LOOPBACK, *own[:1])))} accept connections")


def loopback_problem() -> str:
    """Reason why ranks of this machine cannot connect to each other, or empty."""
    return blocked_port(_LOOPBACK)


def blocked_port(address: str) -> str:
    """Reason why a port of this machine cannot be reached: one of Slurm jobs, or a free one. Empty: all can."""
    try:
        ports = [0, free_port(os.getpid(), 0)]
    except LaunchError as error:
        return str(error)
    return next((why for port in ports if (why := _connect(address, port))), "")


def addresses_of(host: str) -> list[str]:
    """IPv4 and IPv6 addresses of a host name, without repetition; none if it does not resolve."""
    with suppress(OSError, UnicodeError):
        return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, None)))
    return []


def _connect(address: str, port: int) -> str:
    """Listen on a port (0: any) and connect to it. Returns the problem, or empty."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(("", port))
            listener.listen(1)
        except OSError as error:
            return f"port {port} cannot be opened: {error.strerror}"
        port = listener.getsockname()[1]
        listener.settimeout(_CONNECT_S)
        answering = threading.Thread(target=_answer, args=(listener,), daemon=True)
        answering.start()
        try:
            with socket.create_connection((address, port), timeout=_CONNECT_S) as connection:
                return "" if connection.recv(1) == b"." else f"port {port} answers with something else"
        except TimeoutError:
            return f"port {port} does not answer within {_CONNECT_S:g} s"
        except OSError as error:
            return f"port {port}: {error.strerror}"


def _answer(listener: socket.socket) -> None:
    with suppress(OSError):
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b".")
