"""Free space, against the config's checkpoints, and free inodes. Torch-free at import."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.doctor.disks.places import Place, places
from launcher.doctor.findings import Finding, failure, passed, skipped, warning
from launcher.doctor.request import Request
from launcher.units import format_bytes

if TYPE_CHECKING:
    from xlpretrain.config.run_config import RunConfig

_LITTLE_BYTES = 1 << 30
_FEW_INODES = 10_000
_MASTER_AND_MOMENTS = 12
"""Bytes of a parameter in a checkpoint: fp32 weight and two moments, those of AdamW and LAMB."""


def check(request: Request) -> Iterator[Finding]:
    """Check the space of each file system; that of runs must hold the checkpoints to keep and the one being written."""
    config = request.load_config()
    one = checkpoint_bytes(config) if config else None
    for place in places(request):
        if "runs" in place.uses and config and one:
            yield check_space(place, needed=one * (config.checkpoint.keep + 1), smallest=one)
        else:
            yield check_space(place, needed=_LITTLE_BYTES, smallest=0)
    if config and one is None:
        yield skipped("space for checkpoints: the vocabulary, and so the model's size, is not known without its data")


def check_space(place: Place, *, needed: int, smallest: int) -> Finding:
    """Check free bytes and inodes. needed: bytes that a run comes to use; smallest: bytes without which it fails."""
    stats = os.statvfs(place.folder)
    free = stats.f_bavail * stats.f_frsize
    kind = f"{file_system_of(place.folder)}, {format_bytes(free)} free"
    for_what = f", {format_bytes(needed)} for checkpoints" if smallest else ""
    text = f"{place.name}: {kind}{for_what}"
    if stats.f_files and stats.f_favail == 0:
        return failure(f"{place.name}: no inode is free, so no file can be made", "remove files, or use another disk")
    if free < max(smallest, 1 << 20):
        return failure(text, "free space there, or set runs_dir (for temporary files: TMPDIR) to another disk")
    if free < needed:
        lower = ", or lower checkpoint.keep" if smallest else ""
        return warning(text, f"free space there{lower}")
    if stats.f_files and stats.f_favail < _FEW_INODES:
        return warning(f"{text}; only {stats.f_favail} inodes are free", "remove small files, or use another disk")
    return passed(text)


def checkpoint_bytes(config: RunConfig) -> int | None:
    """Bytes of a checkpoint: weights and optimizer state in fp32, without memories. None if the data is missing."""
    import torch

    from xlpretrain.data.tokenizers.open import load_tokenizer
    from xlpretrain.errors import XLPretrainError

    try:
        size = load_tokenizer(config.data.tokenizer_path()).vocabulary.size
    except (XLPretrainError, OSError):
        return None
    with torch.device("meta"):
        return _MASTER_AND_MOMENTS * sum(p.numel() for p in config.build_model(size).parameters())


def file_system_of(folder: Path) -> str:
    """Type of a folder's file system, such as ext4 or nfs4."""
    folder = folder.resolve()
    kinds = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        kinds[before.split()[4]] = after.split()[0]  # a later mount hides an earlier one
    for parent in (folder, *folder.parents):
        if (kind := kinds.get(str(parent))) is not None:
            return kind
    return "unknown file system"
