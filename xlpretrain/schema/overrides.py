"""`key.sub=value` overrides of a config."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from xlpretrain.errors import ConfigError
from xlpretrain.schema.former_keys import current_key, current_keys, warn_of_former_keys
from xlpretrain.schema.sections import (
    Section,
    default_items,
    kind_of,
    named_item,
    section_of,
    union_of_items,
)
from xlpretrain.schema.yaml_text import format_problems, parse_yaml


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str], section: type[Section]) -> dict[str, Any]:
    """Apply `key.sub=value` overrides to the `data` of a `section`; values are parsed as YAML.

    Former keys are replaced, with a warning if an override has one. Raises `ConfigError`.
    """
    result: dict[str, Any] = json.loads(json.dumps(current_keys(section, data)))
    spelled: dict[str, str] = {}
    wrong = []
    for override in overrides:
        path, equals, text = override.partition("=")
        path = path.strip()
        if not equals or not path:
            wrong.append((override, "expected key=value, for instance optimizer.lr=1e-3"))
            continue
        try:
            current, path = _put(result, section, path.split("."), parse_yaml(text, override))
        except (ValueError, IndexError):
            wrong.append((path, "no such list item; items are numbered from 0, or named by their type"))
            continue
        for now, then in zip(_and_parents(current), _and_parents(path), strict=True):
            if spelled.setdefault(now, then) != then:
                wrong.append((then, f"conflicts with {spelled[now]}: one is the former key of the other"))
                break
        warn_of_former_keys([(path, current)], "command line")
    if wrong:
        raise ConfigError(format_problems("command line", wrong))
    return result


def _put(place: Any, kind: Any, keys: Sequence[str], value: Any) -> tuple[str, str]:
    """Set a key of data of this `kind`. Raises ValueError or IndexError.

    Returns its dotted path in current keys, and as it was given; a short form (`ItemKey`) is written out in both.
    """
    current, given, left = [], [], list(keys)
    while left:
        key = then = left.pop(0)
        section = section_of(kind, place) if isinstance(place, dict) else None
        if section is not None:
            if (name := named_item(section, key)) is not None:
                left.insert(0, key)
                key = then = name
            key = current_key(section, key, None if left else value)
            kind = kind_of(section, key)
            if left and key not in place and union_of_items(kind) is not None and not left[0].isdecimal():
                place[key] = default_items(section, key)
        current.append(key)
        given.append(then)
        at: Any = key
        if isinstance(place, list):
            at = _index(place, kind, key)
            if not left and not key.isdecimal() and isinstance(value, Mapping):
                value = {**value, "type": key}
        elif left and not isinstance(place.get(key), dict | list):
            place[key] = {}
        if left:
            place = place[at]
        else:
            place[at] = value
    return ".".join(current), ".".join(given)


def _index(items: list[Any], kind: Any, key: str) -> int:
    """The index of an item, given by its number, or by its type; one of a new type is added."""
    union = union_of_items(kind)
    if key.isdecimal() or union is None or key not in union.variants:
        return int(key)
    found = [number for number, item in enumerate(items) if isinstance(item, dict) and item.get("type") == key]
    if len(found) > 1:
        raise ValueError(key)
    if not found:
        items.append({"type": key})
    return found[0] if found else len(items) - 1


def _and_parents(path: str) -> list[str]:
    return list(itertools.accumulate(path.split("."), "{}.{}".format))
