"""Exclusive creation, and the time until another process sees new names, new content and heartbeats. Torch-free.

Leases rely on both: an attempt owns a run by creating the next number, and finds a later owner by listing the folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from launcher.doctor.disks.places import places, scratch
from launcher.doctor.disks.witness import LocalWitness, Witness, create
from launcher.doctor.findings import Finding, failure, passed, skipped, warning
from launcher.doctor.request import Request
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.run_dir.lease import HEARTBEAT_S

_RACES = 20
_LONGEST_S = 4.0
"""Time for which a change is waited for."""
_MOUNT_OPTIONS = "for NFS, mount it with lookupcache=none or positive, and small acdirmax and acregmax"


def check(request: Request) -> Iterator[Finding]:
    """Check each file system that holds runs or data, with another process of this machine."""
    for place in places(request):
        if not place.is_shared:
            continue
        if not place.writable:
            yield skipped(f"{place.name}: this user may not write there")
            continue
        try:
            with scratch(place.folder, request) as folder, LocalWitness(folder) as witness:
                yield check_exclusive(place.name, folder, witness)
                yield check_visible(place.name, folder, witness)
        except OSError as error:
            yield failure(f"{place.name}: cannot be written: {error.strerror}", "use another disk for runs_dir")


def check_exclusive(name: str, folder: Path, witness: Witness, *, prefix: str = "") -> Finding:
    """Create names that exist, and race for names that do not: exactly one process may succeed.

    prefix: of the files, so that several witnesses can be asked about one folder.
    """
    broken = 0
    for number in range(_RACES):
        first, second, raced = (f"{prefix}{kind}-{number}" for kind in ("first", "second", "raced"))
        broken += not witness.ask("create", first)() or create(folder / first)
        broken += not create(folder / second) or witness.ask("create", second)()
        theirs = witness.ask("create", raced)
        broken += create(folder / raced) + theirs() != 1
    if broken:
        return failure(
            f"{name}: exclusive creation does not hold: {broken} of {3 * _RACES} times it was not exactly one of two"
            " processes that created a file",
            "two attempts could own one run: set runs_dir to a disk with O_EXCL (not an object store or NFS 2)",
        )
    return passed(f"{name}: exclusive creation holds between this process and {witness.name} ({3 * _RACES} times)")


def check_visible(name: str, folder: Path, witness: Witness, *, prefix: str = "") -> Finding:
    """Measure the time until a witness sees new names, replaced files and heartbeats that it has looked for before.

    prefix: as in `check_exclusive`.
    """
    new, named, replaced, beat = (f"{prefix}{kind}" for kind in ("new", "named", "replaced", "beat"))
    atomic_write(folder / replaced, "old")
    (folder / beat).write_text("beat")
    os.utime(folder / beat, (0, 0))
    waits = {
        "a new name in a listing": _wait(witness, "listed", new, bool, _maker(folder / new)),
        "a new name": _wait(witness, "exists", named, bool, _maker(folder / named)),
        "a replaced file": _wait(
            witness, "read", replaced, lambda seen: seen == "new", lambda: atomic_write(folder / replaced, "new")
        ),
        "a heartbeat": _wait(witness, "modified", beat, bool, lambda: os.utime(folder / beat)),
    }
    slowest = max((took for took in waits.values() if took is not None), default=0.0)
    hidden = [what for what, took in waits.items() if took is None or took > HEARTBEAT_S]
    if "a new name in a listing" in hidden:
        return failure(
            f"{name}: names stay hidden: {witness.name} does not list a new file within {_LONGEST_S:g} s",
            f"an attempt could not see that another has taken over its run: {_MOUNT_OPTIONS}; or use another disk",
        )
    if hidden:
        return warning(
            f"{name}: names stay hidden: {witness.name} does not see {' or '.join(hidden)} within {HEARTBEAT_S:g} s",
            f"`xlpretrain status` and takeovers of runs lag behind: {_MOUNT_OPTIONS}",
        )
    return passed(
        f"{name}: {witness.name} sees new names, replaced files and heartbeats within"
        f" {1000 * max(slowest, 1e-3):.3g} ms"
    )


def _maker(path: Path) -> Callable[[], None]:
    """Make a file under a temporary name and rename it, as a checkpoint is committed."""

    def make() -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("made")
        temporary.rename(path)

    return make


def _wait(
    witness: Witness, question: str, file: str, seen: Callable[[object], bool], change: Callable[[], object]
) -> float | None:
    """Seconds from a change until the witness sees it; None if it does not. It looks once before, to fill its cache."""
    witness.ask(question, file)()
    change()
    started = time.monotonic()
    while not seen(witness.ask(question, file)()):
        if time.monotonic() - started > _LONGEST_S:
            return None
        time.sleep(0.01)
    return time.monotonic() - started
