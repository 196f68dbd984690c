"""Exclusive creation, and the time until another process sees new names, new content and heartbeats. Torch-free.

Leases rely on both: an attempt owns a run by creating the next number, and finds a later owner by listing the folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from launcher.doctor.disks.places import OTHER_DISK, Place, examine
from launcher.doctor.disks.witness import LocalWitness, Witness, create
from launcher.doctor.findings import Finding, failure, passed, warning
from launcher.doctor.request import Request
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.run_dir.lease import HEARTBEAT_S

_RACES = 20
_IN_LISTING = "a new name in a listing"
_MOUNT_OPTIONS = "for NFS, mount it with lookupcache=none or positive, and small acdirmax and acregmax"


class Change(NamedTuple):
    """A change of a file, and the question whose answer shows that it is seen."""

    question: str
    file: Path
    is_seen: Callable[[Any], bool]
    make: Callable[[], object]


def check(request: Request) -> Iterator[Finding]:
    """Check each file system that holds runs or data, with another process of this machine."""

    def ask(place: Place, folder: Path) -> Iterator[Finding]:
        with LocalWitness(folder) as witness:
            yield check_exclusive(place.name, folder, witness)
            yield check_visible(place.name, folder, witness)

    return examine(request, ask, shared_only=True, remedy=OTHER_DISK)


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
    new, named, replaced, beat = (folder / f"{prefix}{kind}" for kind in ("new", "named", "replaced", "beat"))
    atomic_write(replaced, "old")
    beat.write_text("beat")
    os.utime(beat, (0, 0))
    hidden, slowest = _unseen(
        witness,
        {
            _IN_LISTING: Change("listed", new, bool, _maker(new)),
            "a new name": Change("exists", named, bool, _maker(named)),
            "a replaced file": Change("read", replaced, "new".__eq__, lambda: atomic_write(replaced, "new")),
            "a heartbeat": Change("modified", beat, bool, lambda: os.utime(beat)),
        },
    )
    if _IN_LISTING in hidden:
        return failure(
            f"{name}: names stay hidden: {witness.name} does not list a new file within {HEARTBEAT_S:g} s",
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


def _unseen(witness: Witness, changes: dict[str, Change]) -> tuple[list[str], float]:
    """Make changes and ask for them for `HEARTBEAT_S`. Returns those that are not seen, and the slowest other's time.

    The witness looks once before, to fill its cache.
    """
    for change in changes.values():
        witness.ask(change.question, change.file.name)()
    for change in changes.values():
        change.make()
    started, left, slowest = time.monotonic(), dict(changes), 0.0
    while True:
        waited = time.monotonic() - started
        for name, change in list(left.items()):
            if change.is_seen(witness.ask(change.question, change.file.name)()):
                del left[name]
                slowest = waited
        if not left or waited > HEARTBEAT_S:
            return list(left), slowest
        time.sleep(0.01)
