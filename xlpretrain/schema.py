"""Configuration files: YAML and `key.sub=value` overrides into typed sections, every mistake in one report.

A section is a frozen pydantic model that lives beside the code it configures; `xlpretrain.config.run_config` and
`data_pipelines.config` compose them. Torch-free.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from xlpretrain.errors import ConfigError

Problem = tuple[str, str]
"""A dotted path and what is wrong there."""


class Section(BaseModel):
    """A part of a configuration. Unknown keys, wrong types, infinities and NaN are refused; values never change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions between keys that are each valid by themselves; paths are relative to this section."""
        yield from ()


S = TypeVar("S", bound=Section)
_ONE, _SEVERAL = "(one)", "(several)"  # pydantic puts them into the place of an error


class TaggedUnion:
    """Annotates a field as one of several sections, told apart by their key `type` (default: the first).

    `Annotated[Base, Choice({"a": A, "b": B})]`: adding a variant is one line in the mapping.
    """

    def __init__(self, variants: Mapping[str, type[Section]]):
        self.variants = variants

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        default = next(iter(self.variants))

        def tag(value: Any) -> Any:
            return value.get("type", default) if isinstance(value, dict) else getattr(value, "type", None)

        choices: dict[Any, CoreSchema] = {name: handler.generate_schema(v) for name, v in self.variants.items()}
        return core_schema.tagged_union_schema(choices, discriminator=tag)


class OneOrMany:
    """Annotates a tuple of sections: a plain value stands for one section, of which it is the value of `key`."""

    def __init__(self, section: type[Section], key: str):
        self.section, self.key = section, key

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        one = core_schema.no_info_after_validator_function(
            lambda value: (self.section(**{self.key: value}),),
            handler.generate_schema(self.section.model_fields[self.key].annotation),
        )
        choices: dict[Any, CoreSchema] = {_ONE: one, _SEVERAL: handler(source)}
        return core_schema.tagged_union_schema(
            choices, discriminator=lambda value: _SEVERAL if isinstance(value, list | tuple) else _ONE
        )


class _Loader(yaml.SafeLoader):
    """YAML with 1e-4 as a number, without dates, and with repeated keys refused."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, regexp)
        for tag, regexp in resolvers
        if tag not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?$|^[-+]?\.inf$|^\.nan$", re.IGNORECASE
    ),
    list("-+0123456789."),
)


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if key.value in seen:
            raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} appears twice", problem_mark=key.start_mark)
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repeats)


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML document. Raises `ConfigError` with line and column."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{source}: not valid YAML{where}: {problem or error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `ConfigError` if it cannot be read or holds something else."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); a config is a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    data = parse_yaml(text, str(path))
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"{path}: expected `key: value` lines, got {_show(data)}")
    return data


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`data` with each `key.sub=value` put in its place; values are read as YAML. Raises `ConfigError`."""
    result: dict[str, Any] = json.loads(json.dumps(data))
    wrong = []
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            wrong.append((override, "expected key=value, for instance optimizer.lr=1e-3"))
            continue
        *parents, last = path.strip().split(".")
        place: Any = result
        try:
            for parent in parents:
                place = _step_into(place, parent)
            place[int(last) if isinstance(place, list) else last] = parse_yaml(text, override)
        except (ValueError, IndexError):
            wrong.append((path, "there is no such item in this list; items are numbered from 0"))
    if wrong:
        raise ConfigError(format_problems("command line", wrong))
    return result


def _step_into(place: Any, key: str) -> Any:
    """The section or list at `key`, made if it is not there. Raises ValueError or IndexError for no item of a list."""
    if isinstance(place, list):
        return place[int(key)]
    if not isinstance(place.get(key), dict | list):
        place[key] = {}
    return place[key]


def validate(section: type[S], data: Mapping[str, Any], source: str) -> S:
    """`data` as a `section`. Raises `ConfigError` with every mistake in one report, headed by `source`."""
    try:
        # By way of JSON: strict types, with lists for tuples and strings for paths.
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


def load(section: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """A `section` from a YAML file and overrides. Raises `ConfigError`."""
    return validate(section, apply_overrides(read_yaml(path), overrides), str(path))


def dump(value: Section) -> str:
    """The whole section, defaults included, as YAML that `load` reads back."""
    return yaml.safe_dump(value.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100)


def format_problems(source: str, found: Sequence[Problem]) -> str:
    """`source: N problems`, then a line each."""
    width = max(len(path) for path, _ in found)
    head = f"{source}: {len(found)} problem{'s' if len(found) > 1 else ''}"
    return "\n".join([head, *(f"  {path:<{width}}  {what}" for path, what in found)])


def explain(value: Section, prefix: str = "") -> Iterator[tuple[str, Any, bool, str]]:
    """Every key of a section: dotted path, value, whether it is the default, and what it means."""
    dumped = value.model_dump(mode="json")
    for name, field in type(value).model_fields.items():
        item = getattr(value, name)
        if isinstance(item, Section):
            yield from explain(item, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True, validated_data={})
            yield f"{prefix}{name}", dumped[name], item == default, " ".join((field.description or "").split())


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
    """Yield contradictions between keys of those parts that are valid by themselves: the whole was never made."""
    for name, field in section.model_fields.items():
        if name in data and name not in unsound:
            kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            part = TypeAdapter(kind).validate_json(json.dumps(data[name]), strict=True)
            if isinstance(part, Section):
                yield from _walk_problems(part, f"{name}.")


def _is_echo(error: dict[str, Any]) -> bool:
    """True if an error only reports that a list lost its invalid items, each of which has an error of its own."""
    return bool(error["type"] == "too_short" and len(error["input"]) > error["ctx"]["actual_length"])


def _explain_error(section: type[Section], data: Any, error: dict[str, Any]) -> Problem:
    path, known = _locate(section, data, error["loc"])
    got, context = error["input"], error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            close = _closest(path.rsplit(".", 1)[-1], known)
            hint = f"did you mean {close}?" if close else f"known here: {', '.join(known)}"
            return path, f"unknown key; {hint}"
        case "missing":
            return path, "required, and not given"
        case "union_tag_invalid":
            tags = context["expected_tags"].replace("'", "")
            return f"{path}.type", f"must be one of {tags}, got {_show(context['tag'])}"
        case "json_invalid":
            return path or "(whole file)", f"cannot be read as plain data: {context.get('error', error['msg'])}"
        case _:
            message = re.sub(
                r"^(Input should be|Value error,|String should|List should|Tuple should) ?", "", error["msg"]
            )
            lead = "must be " if error["msg"].startswith("Input should be") else ""
            return path, f"{lead}{message[:1].lower()}{message[1:]}, got {_show(got)}"


def _locate(section: type[Section], data: Any, loc: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """The dotted path of an error, without the tags that pydantic puts into it, and the keys known at that level."""
    path: list[str] = []
    here: type[Section] | None = section
    variants: Mapping[str, type[Section]] | None = None
    for part in loc:
        if part in (_ONE, _SEVERAL):
            continue
        if variants is not None and part in variants:
            here, variants = variants[str(part)], None
            continue
        known = here.model_fields if here is not None else {}
        path.append(str(part))
        if isinstance(part, str) and part in known and part != str(loc[-1]):
            choice = next((m for m in known[part].metadata if isinstance(m, TaggedUnion)), None)
            variants = choice.variants if choice else None
            inner = [t for t in (known[part].annotation, *get_args(known[part].annotation)) if _is_section(t)]
            element = [
                m.variants
                for t in get_args(known[part].annotation)
                for m in getattr(t, "__metadata__", ())
                if isinstance(m, TaggedUnion)
            ]
            variants = variants or (element[0] if element else None)
            here = None if variants else (inner[0] if inner else None)
    return ".".join(path), list(here.model_fields) if here is not None else []


def _closest(key: str, known: Sequence[str]) -> str | None:
    """The known key that was likely meant: of those that resemble it, the one that begins most alike."""

    def shared_start(other: str) -> int:
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(key, other, strict=False)))

    return max(difflib.get_close_matches(key, known, n=3), key=shared_start, default=None)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _show(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
