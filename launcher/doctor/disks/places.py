"""The folders to check, one per file system, and folders in them that checks make. Torch-free."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from launcher.doctor import channel
from launcher.doctor.findings import Finding, failure, skipped
from launcher.doctor.request import SCRATCH, Request
from xlpretrain.file_system.urls import is_url


class Place(NamedTuple):
    """A file system that a run uses.

    folder: an existing folder. uses: `runs`, `TMPDIR` or keys of data. writable: True if this user may write there.
    """

    folder: Path
    uses: tuple[str, ...]
    writable: bool

    @property
    def name(self) -> str:
        """The folder and its uses, for messages."""
        return f"{self.folder} ({', '.join(self.uses)})"

    @property
    def is_shared(self) -> bool:
        """True if it holds runs or data, which several processes or nodes use."""
        return self.uses != ("TMPDIR",)


OTHER_DISK = "use another disk for runs_dir"


def places(request: Request) -> list[Place]:
    """The file systems of runs, data and temporary files; a folder that does not exist yet stands for its parent."""
    config = request.load_config()
    used = {"runs": request.runs_folder, "TMPDIR": Path(os.environ.get("TMPDIR") or "/tmp")}
    for key, where in config.data.places().items() if config else ():
        if not is_url(where):
            used[f"data.{key}"] = Path(where)
    found: dict[int, Place] = {}
    for use, wanted in used.items():
        folder = existing_folder(wanted)
        device = folder.stat().st_dev
        first = found.get(device) or Place(folder, (), os.access(folder, os.W_OK | os.X_OK))
        found[device] = first._replace(uses=(*first.uses, use))
    return list(found.values())


def existing_folder(path: Path) -> Path:
    """The path if it is a folder, else its nearest parent that is one."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def examine(
    request: Request, judge: Callable[[Place, Path], Iterator[Finding]], *, shared_only: bool, remedy: str
) -> Iterator[Finding]:
    """Judge each file system by means of a folder made in it.

    judge: yields findings, given the place and the folder. shared_only: leave out one that holds only temporary files.
    remedy: for one that cannot be written.
    """
    for place in places(request):
        if shared_only and not place.is_shared:
            continue
        if not place.writable:
            yield skipped(f"{place.name}: this user may not write there")
            continue
        try:
            with scratch(place.folder, request) as folder:
                yield from judge(place, folder)
        except OSError as error:
            yield failure(f"{place.name}: cannot be written: {error.strerror}", remedy)


@contextmanager
def scratch(folder: Path, request: Request) -> Iterator[Path]:
    """Make a folder for a check and remove it in the end. Raises OSError."""
    made = folder / f"{SCRATCH}{request.token}-{secrets.token_hex(4)}"
    channel.send(made=str(made))
    made.mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
