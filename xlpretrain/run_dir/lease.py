"""The lease of a run folder: only the latest attempt of a run may write to it. Torch-free.

lease/00000003    written by the third attempt, which owns the folder until 00000004 exists; names the owner

Network file systems do not reliably support locks. Instead, an attempt acquires the lease by creating the next number,
which only one attempt can do, and then removes all temporary files and folders of earlier attempts. Every write goes to
a temporary name, checks the lease, and renames: an older owner either sees the new number or finds nothing to rename.
The modification time of the owner's file is its heartbeat.
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
"""Environment variable with the launch id under which a launcher's ranks acquire the lease."""
HEARTBEAT_S = 2.0
STALE_S = 60.0
"""Age of a heartbeat, in seconds, from which another attempt may take over the run."""
_LEAVING_S = 0.5  # for the main thread to remove a file that it was about to rename
_RELEASED = (0.0, 0.0)


class Process(NamedTuple):
    """Unique identity of a process.

    machine: boot id of the host and PID namespace; empty if unknown (not on Linux).
    started: start time in ticks since boot.
    """

    machine: str
    pid: int
    started: str | None

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process with this id on this machine."""
        return cls(_machine(), pid, _started(pid))

    @classmethod
    def this(cls) -> Process:
        """The current process."""
        return cls.of(os.getpid())

    @property
    def is_same_machine(self) -> bool:
        """True if the process id is valid on this machine."""
        return bool(self.machine) and self.machine == _machine()

    @property
    def is_dead(self) -> bool:
        """True if the process ran on this machine and has ended; False if unknown."""
        return self.is_same_machine and _started(self.pid) != self.started


@dataclass(frozen=True)
class Owner:
    """Owner of a lease. launch_id: shared by all attempts of one launcher; empty without one."""

    host: str
    process: Process
    launch_id: str
    taken_at: float


class Lease:
    """An attempt's ownership of a run folder. Every rank has it; only rank 0 sends heartbeats."""

    def __init__(self, folder: Path, number: int, owner: str):
        """owner: content of the lease file."""
        self.number = number
        self._folder, self._owner = folder, owner
        self._path = _path(folder, number)
        self._keeping: tuple[threading.Thread, threading.Event] | None = None

    def check(self) -> None:
        """Raise `LeaseLostError` if another attempt has taken over the run. OSError: unknown at present.

        Sends the heartbeat first: a write gets a fresh answer from the file server, bypassing the client's cache. The
        content is compared because the run may have been deleted and started again under the same name.
        """
        with suppress(FileNotFoundError):
            os.utime(self._path)
            if max(_numbers(self._folder), default=0) == self.number and self._path.read_text() == self._owner:
                return
        raise LeaseLostError(f"{self._folder.parent}: another attempt has taken over the run; this one exits")

    def start_heartbeat(self) -> None:
        """Start the heartbeat. If the lease is lost, the process exits within seconds, even if it hangs."""
        closed = threading.Event()
        self._keeping = threading.Thread(target=self._beat, args=(closed,), name="lease", daemon=True), closed
        self._keeping[0].start()

    def close(self) -> None:
        """Stop the heartbeat and release the lease, if this process sends heartbeats."""
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
                pass  # a file system error is no proof that the lease is lost


def leave(error: LeaseLostError) -> NoReturn:
    """Exit this process at once, without cleanup: it must not write to the run any more."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(FENCED)


def check_available(folder: Path, *, launch_id: str, take_over: bool) -> int:
    """Number of the last lease (0: none) if the run can be acquired, else raises `LaunchError`.

    A lease can be replaced if it belongs to the same launcher, was released, its owner is known to be dead, its
    heartbeat is older than `STALE_S`, or the user forces a takeover.
    """
    number = max(_numbers(folder), default=0)
    if number == 0:
        return 0
    owner, age = _read(_path(folder, number)), _age(folder, number)
    if take_over or age > STALE_S or (owner and (owner.process.is_dead or owner.launch_id == launch_id != "")):
        return number
    who = f"on {owner.host} (process {owner.process.pid}, heartbeat {age:.0f} s ago)" if owner else f"({age:.0f} s ago)"
    raise LaunchError(
        f"{folder.parent}: is in use {who}; `xlpretrain stop {folder.parent}` stops it. If that process is gone, wait"
        f" until its heartbeat is {STALE_S:.0f} s old; if it hangs, use --force-takeover"
    )


def acquire(folder: Path, *, launch_id: str, take_over: bool) -> Lease:
    """Acquire the lease of a run. Rank 0 calls it before it reads or writes anything in the run folder.

    Removes temporary files of earlier owners next to `folder` and in `profiles/`; `checkpoints/` is left to the caller.
    Raises `LaunchError` if another process owns the run or acquires it first.
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
        raise LaunchError(f"{folder.parent}: another process acquired the run first") from None
    older = [_path(folder, n) for n in _numbers(folder) if n < number]
    begun = [*folder.parent.glob(".*.tmp"), *folder.parent.glob("profiles/.*.tmp")]
    for left in [*older, *filter(is_temporary, begun)]:
        left.unlink(missing_ok=True)
    return lease


def is_lost(folder: Path, *, launch_id: str, since: int) -> bool:
    """True if an attempt by another launcher has acquired the run since lease number `since`."""
    number = max(_numbers(folder), default=0)
    owner = _read(_path(folder, number))
    return number > since and owner is not None and owner.launch_id != launch_id


def last_heartbeat(folder: Path) -> tuple[Owner | None, float] | None:
    """Last owner of the lease, and the time of its last heartbeat in seconds since 1970.

    The time is 0 if it has released the lease. None if there never was an owner. Read-only.
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
        # The process name may contain spaces and brackets; state, parent, ... follow the last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}"


def _numbers(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []


def _read(path: Path) -> Owner | None:
    """Owner of a lease; None if the file is incomplete."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Owner(**{**content, "process": Process(*content["process"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _age(folder: Path, number: int) -> float:
    """Seconds since the last heartbeat, on the file server's clock, which all hosts share."""
    os.utime(folder)
    try:
        return folder.stat().st_mtime - _path(folder, number).stat().st_mtime
    except FileNotFoundError:  # replaced this instant, so its owner is alive
        return 0.0
