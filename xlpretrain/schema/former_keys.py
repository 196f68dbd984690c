"""Renamed config keys: former keys are still read, with a warning."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from xlpretrain.schema.sections import FormerKey, Section, kind_of, named_item, section_of


def current_keys(section: type[Section], data: Mapping[str, Any]) -> dict[str, Any]:
    """Replace former keys in the `data` of a `section`, without warnings; for files written by this program.

    A former key stays if the new one is present, too; `validate` refuses that.
    """
    renamed: dict[str, Any] = rename_keys(section, data, "", [])
    return renamed


def rename_keys(kind: Any, value: Any, prefix: str, renamed: list[tuple[str, str]]) -> Any:
    if isinstance(value, list):
        return [rename_keys(kind, item, f"{prefix}{index}.", renamed) for index, item in enumerate(value)]
    section = section_of(kind, value) if isinstance(value, Mapping) else None
    if section is None:
        return value
    value = _with_items(section, value)
    names = {key: current_key(section, key, item) for key, item in value.items()}
    result = {}
    for key, name in names.items():
        if name != key and names.get(name) == name:
            name = key
        if name != key:
            renamed.append((f"{prefix}{key}", f"{prefix}{name}"))
        result[name] = rename_keys(kind_of(section, name), value[key], f"{prefix}{name}.", renamed)
    return result


def drop_ignored_keys(kind: Any, value: Any, prefix: str, dropped: list[str]) -> Any:
    """The data without the `ignored_keys` of its sections, whose paths are added to `dropped`."""
    if isinstance(value, list):
        return [drop_ignored_keys(kind, item, f"{prefix}{index}.", dropped) for index, item in enumerate(value)]
    section = section_of(kind, value) if isinstance(value, Mapping) else None
    if section is None:
        return value
    ignored = {key for key, item in value.items() if item in section.ignored_keys.get(key, ())}
    dropped += [f"{prefix}{key}" for key in ignored]
    return {
        key: drop_ignored_keys(kind_of(section, key), item, f"{prefix}{key}.", dropped)
        for key, item in value.items()
        if key not in ignored
    }


def warn_of_ignored_keys(dropped: Sequence[str], source: str) -> None:
    """Print a line for each ignored key, once in this process, and on one rank only."""
    for path in dropped:
        if path not in _ignored and os.environ.get("RANK", "0") == "0":
            print(f"warning: {source}: {path} means nothing here and is ignored; remove it", file=sys.stderr)
        _ignored.add(path)


_ignored: set[str] = set()


def _with_items(section: type[Section], value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The data of a section with each key that stands for an item of a list put there, unless the list has it."""
    for key in value:
        name = named_item(section, key)
        if name is None or not isinstance(value[key], Mapping):
            continue
        items = value.get(name, [])
        if isinstance(items, list) and all(not isinstance(item, Mapping) or item.get("type") != key for item in items):
            value = {**value, name: [{**value[key], "type": key}, *items]}
            del value[key]
    return value


_warned: set[str] = set()


def warn_of_former_keys(renamed: Sequence[tuple[str, str]], source: str) -> None:
    """Print a warning for each former key, once per process, on rank 0."""
    for then, now in renamed:
        then, now = (re.sub(r"\.\d+(?=\.|$)", "[]", path) for path in (then, now))
        if then != now and then not in _warned and os.environ.get("RANK", "0") == "0":
            print(f"warning: {source}: {then} is now called {now}; the next version removes {then}", file=sys.stderr)
        _warned.add(then)


def current_key(section: type[Section], key: str, value: Any) -> str:
    """Current name of a field that is given as `key` with this value."""
    for name, field in section.model_fields.items():
        for former in field.metadata:
            if isinstance(former, FormerKey) and former.key == key and value in (former.values or (value,)):
                return name
    return key
