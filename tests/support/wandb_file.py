"""Read W&B's offline files: a LevelDB log of protocol buffers, in blocks of 32 KiB."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 32 * 1024
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read_history(path: Path) -> Iterator[dict]:
    """Logged rows of a `run-*.wandb` file."""
    from wandb.proto.wandb_internal_pb2 import Record

    for data in _records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            yield {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


def read_run_history(folder: Path) -> list[dict]:
    """Rows of all offline segments of a run, in the order of its attempts."""
    files = sorted(
        folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: (path.parent.name, path.stat().st_mtime)
    )
    return [row for file in files for row in read_history(file)]


def _records(data: bytes) -> Iterator[bytes]:
    assert data.startswith(b":W&B")
    position, parts = 7, []
    while position + 7 <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if kind == 0 or position + 7 + length > len(data):  # preallocated, or incomplete
            return
        parts.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []
