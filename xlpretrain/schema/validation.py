"""Validate data as a typed section, reporting all mistakes at once; dump sections as YAML."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from xlpretrain.errors import ConfigError
from xlpretrain.schema.former_keys import (
    current_key,
    drop_ignored_keys,
    rename_keys,
    warn_of_former_keys,
    warn_of_ignored_keys,
)
from xlpretrain.schema.overrides import apply_overrides
from xlpretrain.schema.sections import (
    ONE,
    PLUGIN,
    SEVERAL,
    Problem,
    Section,
    alternatives,
    is_section,
    kind_of,
    named_item,
    union_of,
)
from xlpretrain.schema.yaml_text import format_problems, read_yaml, show_value

S = TypeVar("S", bound=Section)


def validate(section: type[S], data: Mapping[str, Any], source: str) -> S:
    """Validate `data` as a `section`, with a warning for former keys.

    Raises a `ConfigError` that lists every mistake, with `source` in its first line.
    """
    renamed: list[tuple[str, str]] = []
    data = rename_keys(section, data, "", renamed)
    warn_of_former_keys(renamed, source)
    dropped: list[str] = []
    data = drop_ignored_keys(section, data, "", dropped)
    warn_of_ignored_keys(dropped, source)
    try:
        # Through JSON: strict types, but lists for tuples and strings for paths.
        value = section.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raised: list[dict[str, Any]] = [dict(e) for e in error.errors(include_url=False)]
        errors = [e for e in raised if not _is_echo(e)]
        found = [_explain_error(section, data, e) for e in errors]
        found += _problems_of_sound_parts(section, data, unsound={e["loc"][0] for e in errors if e["loc"]})
        raise ConfigError(format_problems(source, found)) from None
    found = list(_walk_problems(value))
    if found:
        raise ConfigError(format_problems(source, found))
    return value


def read_section(section: type[Section], path: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Read the keys of a `section` from a YAML file, replacing former keys.

    quiet: no warnings for former or ignored keys; for files that xlpretrain wrote.
    """
    renamed: list[tuple[str, str]] = []
    data: dict[str, Any] = rename_keys(section, read_yaml(path), "", renamed)
    if quiet:
        data = drop_ignored_keys(section, data, "", [])
    else:
        warn_of_former_keys(renamed, str(path))
    return data


def load(section: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """Load a `section` from a YAML file and overrides. Raises `ConfigError`."""
    return validate(section, apply_overrides(read_section(section, path), overrides, section), str(path))


def dump(value: Section) -> str:
    """Format a complete section, with defaults, as YAML that `load` can read."""
    return yaml.safe_dump(value.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100)


def format_value(value: Any) -> str:
    """Format a value as YAML in one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
        .removesuffix("...\n")
        .strip()
    )


def explain(value: Section, prefix: str = "", default: Any = None) -> Iterator[tuple[str, Any, bool, str]]:
    """Yield (dotted path, value, True if it is the default, description) for every key of a section.

    default: of the section, if the field that holds it has one; otherwise each key has its own.
    """
    dumped = value.model_dump(mode="json")
    is_same_type = type(default) is type(value)
    for name, field in type(value).model_fields.items():
        item = getattr(value, name)
        usual = field.get_default(call_default_factory=True, validated_data={})
        usual = getattr(default, name) if is_same_type else usual
        if isinstance(item, Section):
            yield from explain(item, f"{prefix}{name}.", usual)
        elif item and isinstance(item, tuple) and all(isinstance(part, Section) for part in item):
            for index, part in enumerate(item):
                other = usual[index] if isinstance(usual, tuple) and index < len(usual) else _NONE
                yield from explain(part, f"{prefix}{name}.{index}.", other)
        else:
            chosen = name == "type" and isinstance(default, Section) and not is_same_type
            is_default = item == usual and not chosen
            yield f"{prefix}{name}", dumped[name], is_default, " ".join((field.description or "").split())


_NONE = Section()
"""The default of a list item that only the user has."""


def _walk_problems(value: Section, prefix: str = "") -> Iterator[Problem]:
    for name in type(value).model_fields:
        item = getattr(value, name)
        for index, part in enumerate(item) if isinstance(item, tuple | list) else [(None, item)]:
            if isinstance(part, Section):
                yield from _walk_problems(part, f"{prefix}{name}." if index is None else f"{prefix}{name}.{index}.")
    for path, what in value.problems():
        yield f"{prefix}{path}", what


def _problems_of_sound_parts(
    section: type[Section], data: Mapping[str, Any], *, unsound: set[int | str]
) -> Iterator[Problem]:
    """Yield contradictions within valid subsections, when the section itself is invalid."""
    for name in section.model_fields:
        if name in data and name not in unsound:
            part = TypeAdapter(kind_of(section, name)).validate_json(json.dumps(data[name]), strict=True)
            if isinstance(part, Section):
                yield from _walk_problems(part, f"{name}.")


def _is_echo(error: dict[str, Any]) -> bool:
    """True if an error only reports a list as too short since its invalid items, reported separately, were dropped."""
    return bool(error["type"] == "too_short" and len(error["input"]) > error["ctx"]["actual_length"])


def _explain_error(section: type[Section], data: Any, error: dict[str, Any]) -> Problem:
    path, here, kind = _locate(section, error["loc"])
    known = list(here.model_fields) if here is not None else []
    got, context = error["input"], error.get("ctx", {})
    key = path.rsplit(".", 1)[-1]
    if here is not None and (now := current_key(here, key, got)) != key:
        return path, f"conflicts with {now}, whose former key it is; remove {key}"
    match error["type"]:
        case "extra_forbidden":
            if here is not None and (name := named_item(here, key)) is not None:
                return path, f"is short for the settings of {name}.{key}; give either, and as `key: value`"
            close = _closest(key, known)
            hint = f"did you mean {close}?" if close else f"expected one of {', '.join(known)}"
            return path, f"unknown key; {hint}"
        case "missing":
            return path, "required key is missing"
        case "union_tag_not_found":
            return f"{path}.type", "required key is missing"
        case "union_tag_invalid":
            union = union_of(kind)
            known = list(union.variants) if union else context["expected_tags"].replace("'", "").split(", ")
            if not known:
                return f"{path}.type", f"no installed package provides one, got {show_value(context['tag'])}"
            close = _closest(str(context["tag"]), known)
            hint = f"; did you mean {close}?" if close else ""
            return f"{path}.type", f"must be one of {', '.join(known)}, got {show_value(context['tag'])}{hint}"
        case "plugin":
            return f"{path}.type", str(context["problem"])
        case "string_type" if got is None:
            return path, "must be text, got nothing"
        case "string_type" if isinstance(got, bool | int | float):
            return (
                path,
                f"must be text, got {show_value(got)}; put it in quotes",
            )
        case "json_invalid":
            return path or "(whole file)", f"invalid data: {context.get('error', error['msg'])}"
        case _:
            message = re.sub(
                r"^(Input should be|Value error,|String should|List should|Tuple should) ?", "", error["msg"]
            )
            lead = "must be " if error["msg"].startswith("Input should be") else ""
            return path, f"{lead}{message[:1].lower()}{message[1:]}, got {show_value(got)}"


def _locate(section: type[Section], loc: tuple[int | str, ...]) -> tuple[str, type[Section] | None, Any]:
    """Dotted path of an error, without pydantic's tags.

    Also returns the section of the path's last key, if known, and the type of its field.
    """
    path: list[str] = []
    owner: type[Section] | None = None
    kind: Any = section
    for part in loc:
        union = union_of(kind)
        if part in (ONE, SEVERAL, PLUGIN):
            continue
        if union is not None and part in union.variants:
            kind = union.variants[str(part)]
            continue
        path.append(str(part))
        owner = next(filter(is_section, alternatives(kind)), None)
        if owner is not None:
            kind = kind_of(owner, str(part))
        else:  # an item of a list
            lists = (choice for choice in alternatives(kind) if get_origin(choice) in (tuple, list))
            kind = next((get_args(choice)[0] for choice in lists), None)
    return ".".join(path), owner, kind


def _closest(key: str, known: Sequence[str]) -> str | None:
    """The known key that was probably meant: among similar ones, the one with the longest common prefix."""

    def shared_start(other: str) -> int:
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(key, other, strict=False)))

    return max(difflib.get_close_matches(key, known, n=3), key=shared_start, default=None)
