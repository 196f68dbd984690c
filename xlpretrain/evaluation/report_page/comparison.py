"""Configs of several runs side by side. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from xlpretrain import schema

_OWN = ("name",)
"""Keys that identify a run and so differ always."""


class ConfigRow(NamedTuple):
    """A key and its values by run, formatted; None where a run's config lacks it (another version wrote it)."""

    key: str
    values: tuple[str | None, ...]

    @property
    def differs(self) -> bool:
        """True if two runs have different values."""
        return len({value for value in self.values if value is not None}) > 1


class Comparison(NamedTuple):
    """Keys of configs: those with different values, those that only some runs have, and all others."""

    differing: list[ConfigRow]
    partial: list[ConfigRow]
    common: list[ConfigRow]


def compare(configs: Sequence[Mapping[str, Any]]) -> Comparison:
    """Compare configs key by key, in the order of the configs. Runs without a config count as agreeing."""
    flat = [dict(flatten(config)) for config in configs]
    keys = dict.fromkeys(key for config in flat for key in config if key not in _OWN)
    rows = [ConfigRow(key, tuple(config.get(key) for config in flat)) for key in keys]
    partial = [row for row in rows if not row.differs and _lacks(row, configs)]
    return Comparison(
        [row for row in rows if row.differs],
        partial,
        [row for row in rows if not row.differs and row not in partial],
    )


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys with formatted values. Items of lists are named by their `type`, if they have one."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        types = [item.get("type") if isinstance(item, Mapping) else None for item in value]
        for index, item in enumerate(value):
            name = types[index] if types[index] is not None and types.count(types[index]) == 1 else index
            yield from flatten(item, f"{prefix}.{name}")
    elif prefix:
        yield prefix, value if isinstance(value, str) else schema.format_value(value)


def _lacks(row: ConfigRow, configs: Sequence[Mapping[str, Any]]) -> bool:
    return any(value is None and config for value, config in zip(row.values, configs, strict=True))
