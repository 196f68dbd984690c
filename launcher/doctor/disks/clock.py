"""The clock of this machine against the time stamps of the file server, and their granularity. Torch-free."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from launcher.doctor.disks.places import OTHER_DISK, Place, examine
from launcher.doctor.findings import Finding, failure, passed, warning
from launcher.doctor.request import Request
from xlpretrain.run_dir.lease import HEARTBEAT_S, STALE_S

_COARSE_S = 1.5
_TICKS = 5


def check(request: Request) -> Iterator[Finding]:
    """Check the clock against each file system that holds runs or data."""

    def compare(place: Place, folder: Path) -> Iterator[Finding]:
        yield judge(place.name, off_s=offset(folder), tick_s=granularity(folder))

    return examine(request, compare, shared_only=True, remedy=OTHER_DISK)


def judge(name: str, *, off_s: float, tick_s: float) -> Finding:
    """Judge a clock that is `off_s` seconds ahead of time stamps whose granularity is `tick_s` seconds."""
    if abs(off_s) > HEARTBEAT_S:
        direction = "ahead of" if off_s > 0 else "behind"
        text = f"{name}: this machine's clock is {abs(off_s):.1f} s {direction} the time stamps of the disk"
        remedy = "set the clock (NTP: `timedatectl`, `chronyc tracking`); logs, Slurm and logins compare times"
        return failure(text, remedy) if abs(off_s) > STALE_S else warning(text, remedy)
    if tick_s > _COARSE_S:
        return warning(
            f"{name}: time stamps have steps of {tick_s:.1f} s", "heartbeats and rebuilds lag; use another disk"
        )
    return passed(f"{name}: clock and time stamps agree within {max(abs(off_s), 0.01):.2f} s; steps of {tick_s:.2g} s")


def offset(folder: Path) -> float:
    """Seconds by which this machine's clock is ahead of time stamps, 0 if it agrees within the duration of a write."""
    path = folder / "stamp"
    before = time.time()
    path.write_text("stamp")
    stamp = path.stat().st_mtime
    after = time.time()
    return before - stamp if stamp < before else min(0.0, after - stamp)


def granularity(folder: Path) -> float:
    """Smallest difference of two time stamps that follow each other, in seconds; measured for 3 s at most."""
    path = folder / "stamp"
    steps: list[float] = []
    last, deadline = path.stat().st_mtime, time.monotonic() + 3.0
    while len(steps) < _TICKS and time.monotonic() < deadline:
        os.utime(path)
        if (now := path.stat().st_mtime) != last:
            steps.append(now - last)
            last = now
        else:
            time.sleep(1e-3)
    return min(steps, default=3.0)
