"""Sweeps: one run for every combination of values. Torch-free."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from xlpretrain.errors import ConfigError

_BRACKETS = {"[": 1, "{": 1, "]": -1, "}": -1}


@dataclass(frozen=True)
class Variant:
    """One run of a sweep. suffix: appended to its name. overrides: its config changes."""

    suffix: str
    overrides: tuple[str, ...]


def variants(sweeps: Sequence[str]) -> list[Variant]:
    """All combinations of `key=value,value,...`; a single empty one without sweeps. Raises `ConfigError`."""
    axes = [_axis(sweep) for sweep in sweeps]
    keys = [key for key, _ in axes]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"--sweep: duplicate key in {', '.join(keys)}; put its values into one list")
    made: list[Variant] = []
    for values in itertools.product(*(values for _, values in axes)):
        pairs = list(zip(keys, values, strict=True))
        name = "".join(f"-{key.rpartition('.')[2]}{value}" for key, value in pairs)
        # Valid in a run name (see RunConfig.name), and short enough for file systems.
        suffix = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:120]
        taken = {variant.suffix for variant in made}
        unique = next(
            s for s in itertools.chain([suffix], (f"{suffix}-{n}" for n in itertools.count(2))) if s not in taken
        )
        made.append(Variant(unique, tuple(f"{key}={value}" for key, value in pairs)))
    return made


def _axis(sweep: str) -> tuple[str, list[str]]:
    key, equals, text = sweep.partition("=")
    key = key.strip()
    values = _split(text)
    if not equals or not key or not all(value.strip() for value in values):
        raise ConfigError(f"--sweep {sweep!r}: expected key=value,value,..., such as optimizer.lr=1e-4,3e-4")
    if key in ("name", "runs_dir"):
        raise ConfigError(f"--sweep {key}: runs of a sweep are named after their values; choose another key")
    if len(set(values)) < len(values):
        raise ConfigError(f"--sweep {sweep!r}: duplicate value")
    return key, values


def _split(text: str) -> list[str]:
    """Split at commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        depth += 0 if quote else _BRACKETS.get(char, 0)
        if char == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return parts
