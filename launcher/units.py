"""Human-readable sizes; for durations see `xlpretrain.tracking.console`. Torch-free."""

from __future__ import annotations


def format_bytes(num_bytes: float) -> str:
    """Format a size in decimal units, such as "512 B", "1.2 kB" and "34 GB"."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"
