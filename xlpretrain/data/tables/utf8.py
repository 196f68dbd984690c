"""Reads a file of UTF-8 text, with one message for every fault. Torch-free."""

from __future__ import annotations

import sys
from pathlib import Path

from xlpretrain.errors import DataError


def read_utf8(path: Path | None) -> str:
    """The text of a file, or of standard input. Raises `DataError`."""
    name = "standard input" if path is None else str(path)
    try:
        return (sys.stdin.buffer.read() if path is None else path.read_bytes()).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text (byte {error.start})") from None
