"""A collective between all ranks of this machine, started as `train` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from launcher.doctor.findings import Finding, failure, parse_findings, skipped
from launcher.doctor.machine.devices import num_ranks
from launcher.doctor.network.ports import loopback_problem
from launcher.doctor.network.ranks import JOIN_S
from launcher.doctor.request import Request
from launcher.local import torchrun

_GRACE_S = 3
_MODULE = "launcher.doctor.network.ranks"


def check(request: Request) -> Iterator[Finding]:
    """Start the ranks through torchrun and report what rank 0 finds."""
    if why := loopback_problem():
        yield skipped(f"ranks of this machine cannot connect to each other: {why}")
        return
    asked = num_ranks(request)
    number = min(asked, torch.cuda.device_count() or len(os.sched_getaffinity(0)))
    if number < asked:
        yield skipped(f"{asked} ranks: only {number} are started, one per device (see `devices`)")
    said = os.memfd_create("ranks")
    kept = os.dup(1), os.dup(2)
    try:
        os.dup2(said, 1)  # the ranks inherit these
        os.dup2(said, 2)
        ended = torchrun.launch(_MODULE, [], num_processes=number, grace_s=_GRACE_S)
    finally:
        for number, descriptor in enumerate(kept, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        text = os.pread(said, 1 << 20, 0).decode(errors="replace")
        os.close(said)
    findings, others = parse_findings(text)
    yield from findings
    if ended.code or not findings:
        last = f": {others[-1]}" if others else ""
        yield failure(
            f"the ranks did not finish an all-reduce; {ended.describe()}{last}",
            f"see the check `network`; ranks wait {JOIN_S:g} s for each other. GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME"
            " may name an interface that is not there",
        )
