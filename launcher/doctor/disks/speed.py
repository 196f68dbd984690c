"""Rate of writing, and times of fsync and rename. Torch-free."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from launcher.doctor.disks.places import Place, examine
from launcher.doctor.findings import Finding, passed, warning
from launcher.doctor.request import Request
from launcher.units import format_bytes
from xlpretrain.file_system.atomic_files import atomic_write

_SLOW_BYTES_PER_S = 30e6
_SLOW_FSYNC_S = 0.5
_LARGEST = 128 << 20
_ENOUGH_S = 1.0
"""A write that takes longer is not followed by a larger one."""
_FSYNCS = 5


def check(request: Request) -> Iterator[Finding]:
    """Write, flush and rename files on each file system that a run writes to."""

    def measure(place: Place, folder: Path) -> Iterator[Finding]:
        yield _judge(place.name, rate(folder), *times_of_small_files(folder))

    remedy = "free space or raise the quota there, or use another disk (runs_dir; for temporary files: TMPDIR)"
    return examine(request, measure, shared_only=False, remedy=remedy)


def _judge(name: str, bytes_per_s: float, fsync_s: float, replace_s: float) -> Finding:
    text = (
        f"{name}: writes {format_bytes(bytes_per_s)}/s, fsync {1000 * fsync_s:.3g} ms,"
        f" replaces a file in {1000 * replace_s:.3g} ms"
    )
    if bytes_per_s < _SLOW_BYTES_PER_S:
        return warning(
            text,
            f"slower than {format_bytes(_SLOW_BYTES_PER_S)}/s: save less often (checkpoint.every_s), or use a faster"
            " disk for runs_dir or TMPDIR",
        )
    if fsync_s > _SLOW_FSYNC_S:
        return warning(text, "another user may load this disk; status files and saves wait for it")
    return passed(text)


def rate(folder: Path) -> float:
    """Bytes per second written to a file and flushed to disk: that of the largest of growing files."""
    piece, number = os.urandom(1 << 20), 1
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    while True:
        started = time.perf_counter()
        path = folder / "large"
        with path.open("wb", buffering=0) as file:
            for _ in range(number):
                file.write(piece)
            os.fsync(file.fileno())
        took = time.perf_counter() - started
        path.unlink()
        size = number << 20
        if took > _ENOUGH_S or 4 * size >= min(_LARGEST * 2, free):
            return size / took
        number *= 4


def times_of_small_files(folder: Path) -> tuple[float, float]:
    """Median seconds of an fsync of 4 KiB, and of replacing a file as the status of a run is replaced."""
    fsyncs, replaces = [], []
    with (folder / "small").open("wb", buffering=0) as file:
        for _ in range(_FSYNCS):
            file.write(bytes(4096))
            started = time.perf_counter()
            os.fsync(file.fileno())
            fsyncs.append(time.perf_counter() - started)
    for number in range(_FSYNCS):
        started = time.perf_counter()
        atomic_write(folder / "replaced", str(number))
        replaces.append(time.perf_counter() - started)
        if (found := (folder / "replaced").read_text()) != str(number):
            raise OSError(0, f"a replaced file has the content {found!r}, expected {number!r}")
    return statistics.median(fsyncs), statistics.median(replaces)
