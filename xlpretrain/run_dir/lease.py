"""The lease of a run folder: only the latest attempt of a run may write to it. Torch-free.

lease/00000003    made by the third start, which owns the folder until there is a 00000004; says who that is

No locks, which network file systems do not keep: a start takes the lease by creating the next number, which only one
can, and then takes away every temporary file and folder of those before it. Whoever writes creates something
temporary, looks at the lease, and renames: an older owner either sees the new number, or finds nothing to rename. The
time of change of an owner's file is its heartbeat.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

from xlpretrain.errors import FENCED, LaunchError, LeaseLostError
from xlpretrain.file_system.atomic_files import is_temporary

LAUNCH_ID_ENV = "XLPRETRAIN_LAUNCH_ID"
"""Environment variable by which a launcher gives its ranks the id that a lease is acquired with."""
HEARTBEAT_S = 2.0
STALE_S = 60.0
"""Age of a heartbeat, in seconds, from which another attempt may take over the run."""
_LEAVING_S = 0.5  # for the main thread to remove what it was just about to rename
_RELEASED = (0.0, 0.0)


class Process(NamedTuple):
    """A process, so told that no other is mistaken for it.

    machine: this boot of this host, seen from this container; empty where that cannot be told (not on Linux).
    started: ticks since boot.
    """

    machine: str
    pid: int
    started: str | None

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process of this machine that has this number now."""
        return cls(_machine(), pid, _started(pid))

    @classmethod
    def this(cls) -> Process:
        """This one."""
        return cls.of(os.getpid())

    @property
    def is_same_machine(self) -> bool:
        """True if its process id is valid on this machine."""
        return bool(self.machine) and self.machine == _machine()

    @property
    def is_dead(self) -> bool:
        """True if it is known to have ended: it ran on this machine, and does no longer."""
        return self.is_same_machine and _started(self.pid) != self.started


@dataclass(frozen=True)
class Owner:
    """The holder of a lease. launch_id: equal for all attempts by one launcher; empty without one."""

    host: str
    process: Process
    launch_id: str
    taken_at: float


class Lease:
    """A start's claim to a run folder. On every rank of it; rank 0 alone keeps it alive."""

    def __init__(self, folder: Path, number: int, owner: str):
        """owner: what the lease's file says."""
        self.number = number
        self._folder, self._owner = folder, owner
        self._path = _path(folder, number)
        self._keeping: tuple[threading.Thread, threading.Event] | None = None

    def check(self) -> None:
        """Raise `LeaseLostError` if another start has taken the run over. OSError: it cannot be told at present.

        The heartbeat comes first: a change is answered by the server, whatever this machine had in its cache. The
        content is read because somebody may have removed the whole run and begun another by its name.
        """
        with suppress(FileNotFoundError):
            os.utime(self._path)
            if max(_numbers(self._folder), default=0) == self.number and self._path.read_text() == self._owner:
                return
        raise LeaseLostError(f"{self._folder.parent}: another start of the run has taken over; this one ends")

    def start_heartbeat(self) -> None:
        """Start the heartbeat. Once the lease is lost, the process ends within seconds, wherever it hangs."""
        closed = threading.Event()
        self._keeping = threading.Thread(target=self._beat, args=(closed,), name="lease", daemon=True), closed
        self._keeping[0].start()

    def close(self) -> None:
        """End the heartbeat, if it is kept here, and let anyone take the run over at once."""
        if self._keeping is None:
            return
        thread, closed = self._keeping
        closed.set()
        thread.join()
        with suppress(OSError, LeaseLostError):
            self.check()
            os.utime(self._path, _RELEASED)

    def _beat(self, closed: threading.Event) -> None:
        while not closed.wait(HEARTBEAT_S):
            try:
                self.check()
            except LeaseLostError as error:
                time.sleep(_LEAVING_S)
                leave(error)
            except OSError:
                pass  # the file system has a bad time; what is certain is enough to end a run, nothing less


def leave(error: LeaseLostError) -> NoReturn:
    """End this process here and now: nothing that it might still do is its business."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(FENCED)


def check_available(folder: Path, *, launch_id: str, take_over: bool) -> int:
    """The number of the last lease in the folder (0: none), if its owner may be replaced. Raises `LaunchError`.

    It may, if the same launcher starts again, if it has released it, if it is known to be dead, if its heartbeat is
    older than `STALE_S`, or if the user says so.
    """
    number = max(_numbers(folder), default=0)
    if number == 0:
        return 0
    owner, age = _read(_path(folder, number)), _age(folder, number)
    if take_over or age > STALE_S or (owner and (owner.process.is_dead or owner.launch_id == launch_id != "")):
        return number
    who = f"on {owner.host} (process {owner.process.pid}, heartbeat {age:.0f} s ago)" if owner else f"({age:.0f} s ago)"
    raise LaunchError(
        f"{folder.parent}: is in use {who}; `xlpretrain stop {folder.parent}` ends it. If that process is gone, wait"
        f" until its heartbeat is {STALE_S:.0f} s old; if it hangs, --force-takeover takes the run over"
    )


def acquire(folder: Path, *, launch_id: str, take_over: bool) -> Lease:
    """Become the owner of the run whose lease folder this is. For rank 0, before it reads or writes anything there.

    What older owners left half-written beside `folder` is removed; `checkpoints/` is the caller's. Raises
    `LaunchError`: somebody else has it, or was quicker.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = check_available(folder, launch_id=launch_id, take_over=take_over) + 1
    owner = Owner(os.uname().nodename, Process.this(), launch_id, time.time())
    lease = Lease(folder, number, json.dumps(asdict(owner)))
    try:
        with _path(folder, number).open("x", encoding="utf-8") as file:
            file.write(json.dumps(asdict(owner)))
            file.flush()
            os.fsync(file.fileno())
        lease.check()
    except (FileExistsError, LeaseLostError):
        raise LaunchError(f"{folder.parent}: another start of the run was quicker; it has the run now") from None
    older = [_path(folder, n) for n in _numbers(folder) if n < number]
    for left in [*older, *filter(is_temporary, folder.parent.glob(".*.tmp"))]:
        left.unlink(missing_ok=True)
    return lease


def is_lost(folder: Path, *, launch_id: str, since: int) -> bool:
    """True if an attempt by another launcher has acquired the run since lease number `since`."""
    number = max(_numbers(folder), default=0)
    owner = _read(_path(folder, number))
    return number > since and owner is not None and owner.launch_id != launch_id


def last_heartbeat(folder: Path) -> tuple[Owner | None, float] | None:
    """The last holder of the lease, and the time of its last heartbeat in seconds since 1970.

    The time is 0 if it has released the run. None: nobody ever had it. Changes nothing, so anyone may look.
    """
    try:
        last = _path(folder, max(_numbers(folder)))
        return _read(last), last.stat().st_mtime
    except (ValueError, OSError):
        return None


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    try:
        # The name may hold spaces and brackets; after the last one: state, parent, ...
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}"


def _numbers(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []


def _read(path: Path) -> Owner | None:
    """The holder of a lease; None if it is just being written, or its process died while writing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Owner(**{**content, "process": Process(*content["process"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _age(folder: Path, number: int) -> float:
    """Seconds since the last heartbeat, by the clock of the file system, which all hosts share."""
    os.utime(folder)
    try:
        return folder.stat().st_mtime - _path(folder, number).stat().st_mtime
    except FileNotFoundError:  # replaced this instant, so somebody is alive
        return 0.0
