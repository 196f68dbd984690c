"""`key.sub=value` overrides of a config."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from xlpretrain.errors import ConfigError
from xlpretrain.schema.former_keys import current_key, current_keys, warn_of_former_keys
from xlpretrain.schema.sections import Section, kind_of, section_of
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
            current = _put(result, section, path.split("."), parse_yaml(text, override))
        except (ValueError, IndexError):
            wrong.append((path, "no such list item; items are numbered from 0"))
            continue
        for now, then in zip(_and_parents(current), _and_parents(path), strict=True):
            if spelled.setdefault(now, then) != then:
                wrong.append((then, f"conflicts with {spelled[now]}: one is the former key of the other"))
                break
        warn_of_former_keys([(path, current)], "command line")
    if wrong:
        raise ConfigError(format_problems("command line", wrong))
    return result


def _put(place: Any, kind: Any, keys: Sequence[str], value: Any) -> str:
    """Set a key of data of this `kind`; returns its dotted path in current keys. Raises ValueError or IndexError."""
    current = []
    for number, key in enumerate(keys, 1):
        is_last = number == len(keys)
        section = section_of(kind, place) if isinstance(place, dict) else None
        if section is not None:
            key = current_key(section, key, value if is_last else None)
            kind = kind_of(section, key)
        current.append(key)
        if is_last:
            place[int(key) if isinstance(place, list) else key] = value
        elif isinstance(place, list):
            place = place[int(key)]
        else:
            if not isinstance(place.get(key), dict | list):
                place[key] = {}
            place = place[key]
    return ".".join(current)


def _and_parents(path: str) -> list[str]:
    return list(itertools.accumulate(path.split("."), "{}.{}".format))
