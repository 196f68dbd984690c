"""Durations and sizes for people. Torch-free."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Such as "42 s", "5 min", "3 h 20 min" and "2 d 4 h"."""
    for length, unit, part, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} {seconds % length // part:.0f} {small}"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def format_bytes(num_bytes: float) -> str:
    """Such as "512 B", "1.2 kB" and "34 GB"; decimal units."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"
