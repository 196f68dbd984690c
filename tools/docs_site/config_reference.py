"""Reference of the config keys, made from the schema: a page for each kind of config file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from data_pipelines.config import DataConfig
from launcher.slurm.profile import ClusterConfig
from xlpretrain.config.run_config import RunConfig
from xlpretrain.schema import FormerKey, Matching, Registry, Section, format_value
from xlpretrain.schema.sections import OneOrMany, TaggedUnion, alternatives, is_section, kind_of, union_of

ROOTS: dict[str, tuple[type[Section], str, str]] = {
    "run": (RunConfig, "Config of a run", "`xlpretrain train`, `submit`"),
    "dataset": (DataConfig, "Config of a dataset", "`xlpretrain data build`"),
    "cluster": (ClusterConfig, "Profile of a Slurm cluster", "`--cluster` of `xlpretrain submit`"),
}
"""Pages by name: the section, the title, and what reads such files."""
_WORDS = {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path", NoneType: "null"}
_SIGNS = {Gt: ("gt", ">"), Ge: ("ge", "≥"), Lt: ("lt", "<"), Le: ("le", "≤")}


def page(name: str) -> str:
    """The page on a kind of config file, as Markdown."""
    root, title, used_by = ROOTS[name]
    lines = [
        f"# {title}",
        f"Made from the schema. Read by {used_by}; `xlpretrain config FILE --explain` shows the values of your own.",
        "A key without a default is required. Sections can be left out, like any key that has a default.",
    ]
    seen: dict[type[Section], str] = {}
    return "\n\n".join([*lines, *_section(root, "", seen)]) + "\n"


def _section(section: type[Section], path: str, seen: dict[type[Section], str], choice: str = "") -> Iterator[str]:
    """Yield the heading, text and table of a section, then those of the sections in it, each once."""
    if path:
        label = f"{path}: {choice}" if choice else path
        seen[section] = label
        yield f"## {label} {{ #{_anchor(label)} }}"
        yield _prose(section.__doc__ or "")
    rows = [_row(section, name, field, f"{path}.{name}" if path else name, seen) for name, field in _fields(section)]
    if rows:
        table = "\n".join(["| key | value | default | |", "|---|---|---|---|", *rows])
        yield f'<div class="keys" markdown>\n\n{table}\n\n</div>'
    for name, _ in _fields(section):
        below = f"{path}.{name}" if path else name
        for choice, inner in _inner(kind_of(section, name)).items():
            if inner not in seen:
                yield from _section(inner, below, seen, choice)


def _fields(section: type[Section]) -> list[tuple[str, FieldInfo]]:
    return list(section.model_fields.items())


def _inner(kind: Any) -> dict[str, type[Section]]:
    """Sections that a field of this type may hold, by the `type` that selects them; empty if there is no choice."""
    found: dict[str, type[Section]] = {}
    if (union := union_of(kind)) is not None:
        return dict(_variants(union))
    for choice in alternatives(kind):
        if is_section(choice):
            found[""] = choice
        elif get_origin(choice) in (tuple, list, dict):
            for part in get_args(choice):
                found |= _inner(part)
        for mark in getattr(choice, "__metadata__", ()):
            if isinstance(mark, OneOrMany):
                found[""] = mark.section
    return found


def _variants(union: TaggedUnion) -> dict[str, type[Section]]:
    """The types that come with xlpretrain; those of installed packages belong to their documentation."""
    return dict(union.variants.builtin if isinstance(union.variants, Registry) else union.variants)


def _row(section: type[Section], name: str, field: FieldInfo, path: str, seen: dict[type[Section], str]) -> str:
    kind = kind_of(section, name)
    text = _prose(field.description or "")
    links = []
    for choice, inner in _inner(kind).items():
        label = seen.get(inner) or (f"{path}: {choice}" if choice else path)
        links.append(f"[{choice or path}](#{_anchor(label)})")
    if links:
        text = f"{text} See {', '.join(links)}.".strip()
    former = [mark.key for mark in field.metadata if isinstance(mark, FormerKey)]
    if former:
        text += f" (Formerly `{former[0]}`.)"
    return f"| `{name}` | {_value(kind, field)} | {_default(field)} | {text} |"


def _value(kind: Any, field: FieldInfo) -> str:
    """Type and bounds in words."""
    words = _words(kind)
    marks = [*field.metadata, *(mark for choice in alternatives(kind) for mark in getattr(choice, "__metadata__", ()))]
    bounds = []
    for mark in marks:
        for bound, (attribute, sign) in _SIGNS.items():
            if isinstance(mark, bound):
                bounds.append(f"{sign} {format_value(getattr(mark, attribute))}")
        if isinstance(mark, MinLen):
            bounds.append("not empty" if mark.min_length == 1 else f"at least {mark.min_length}")
        if isinstance(mark, MaxLen):
            bounds.append(f"at most {mark.max_length}")
        if isinstance(mark, Matching):
            bounds.append(f"must {mark.meaning}")
    return ", ".join([words, *(_prose(bound) for bound in dict.fromkeys(bounds))])


def _words(kind: Any) -> str:
    if (union := union_of(kind)) is not None:
        names = ", ".join(f"`{name}`" for name in _variants(union))
        return f"section, `type`: {names}" if names else "section of an installed package"
    found: list[str] = []
    for choice in alternatives(kind):
        origin, inner = get_origin(choice), get_args(choice)
        if choice in _WORDS:
            found.append(_WORDS[choice])
        elif is_section(choice):
            found.append("section")
        elif origin is Literal:
            found += [f"`{format_value(value)}`" for value in inner]
        elif origin in (tuple, list):
            lengths = () if Ellipsis in inner or origin is list else (f" ({len(inner)})",)
            found.append(f"list of {_words(inner[0]).replace('section', 'sections', 1)}{''.join(lengths)}")
        elif origin is dict:
            found.append(f"mapping of {_words(inner[0])} to {_words(inner[1])}")
        elif choice is Any:
            found.append("any")
    return " or ".join(dict.fromkeys(found)) or "section"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return ""
    if isinstance(value, Section):
        name = getattr(value, "type", None)
        return f"`{name}`" if name else ""
    if isinstance(value, tuple) and value and all(isinstance(item, Section) for item in value):
        return ", ".join(f"`{getattr(item, 'type', '...')}`" for item in value)
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, bool | int | float | str | list | dict | NoneType):
        return f"`{format_value(value)}`"
    return f"`{value}`"


def _prose(text: str) -> str:
    """A docstring in one line of Markdown, with the characters escaped that mean something in tables."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()).replace("|", "\\|"))
    return "".join(part if part.startswith("`") else re.sub(r"([*<\[\]])", r"\\\1", part) for part in parts)


def _anchor(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
