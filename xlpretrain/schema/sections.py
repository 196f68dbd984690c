"""Base class of config sections, and annotations of their fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from xlpretrain.schema.registry import PluginError, Registry

Problem = tuple[str, str]
"""A dotted path and what is wrong there."""


class Section(BaseModel):
    """Base class of config sections. Immutable; refuses unknown keys, wrong types, infinities and NaN."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    ignored_keys: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Keys of other types of section that are ignored here, with a warning, and with which values."""

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions between keys that are each valid by themselves; paths are relative to this section."""
        yield from ()


ONE, SEVERAL, PLUGIN = "(one)", "(several)", "(plug-in)"
"""Tags in the error paths of pydantic for a `OneOrMany` or a `TaggedUnion`."""


class TaggedUnion:
    """Annotates a field as one of several sections, selected by their key `type` (default: the first built-in one).

    `Annotated[Base, TaggedUnion({"a": A, "b": B})]`, or a `Registry`, to which installed packages can add types.
    """

    def __init__(self, variants: Mapping[str, type[Section]]):
        self.variants = variants

    def tag(self, value: Any) -> Any:
        """Name of a value's variant."""
        if isinstance(value, Mapping):
            return value["type"] if "type" in value else next(iter(self._builtin), None)
        return getattr(value, "type", None)

    @property
    def _builtin(self) -> Mapping[str, type[Section]]:
        return self.variants.builtin if isinstance(self.variants, Registry) else self.variants

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices: dict[Any, CoreSchema] = {name: handler.generate_schema(v) for name, v in self._builtin.items()}
        if isinstance(self.variants, Registry):
            choices[PLUGIN] = core_schema.no_info_after_validator_function(
                partial(_validate_plugin, self.variants), core_schema.any_schema()
            )
        return core_schema.tagged_union_schema(
            choices, discriminator=self._choose, serialization=core_schema.simple_ser_schema("any")
        )

    def _choose(self, value: Any) -> Any:
        name = self.tag(value)
        if isinstance(self.variants, Registry) and name not in self.variants.builtin and name in self.variants:
            return PLUGIN
        return name


def _validate_plugin(variants: Registry[Any], value: Any) -> Section:
    """Validate a plug-in's section, whose type is only known now."""
    if isinstance(value, Section):
        return value
    try:
        name = value["type"]
        section = variants[name]
    except PluginError as error:
        raise PydanticCustomError("plugin", "{problem}", {"problem": str(error)}) from error
    # A union of one type, so that error paths contain the tag as for built-in variants.
    one: TypeAdapter[Section] = TypeAdapter(Annotated[Section, TaggedUnion({name: section})])
    return one.validate_json(json.dumps(value))


class OneOrMany:
    """Annotates a tuple of sections that may be abbreviated: a plain value is one section with that value as `key`."""

    def __init__(self, section: type[Section], key: str):
        self.section, self.key = section, key

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        one = core_schema.no_info_after_validator_function(
            lambda value: (self.section(**{self.key: value}),),
            handler.generate_schema(self.section.model_fields[self.key].annotation),
        )
        choices: dict[Any, CoreSchema] = {ONE: one, SEVERAL: handler(source)}
        return core_schema.tagged_union_schema(
            choices, discriminator=lambda value: SEVERAL if isinstance(value, list | tuple) else ONE
        )


class Matching:
    """Annotates a string field with a pattern that it must match fully, and a description for error messages."""

    def __init__(self, pattern: str, meaning: str):
        self.pattern, self.meaning = re.compile(pattern), meaning

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: str | None) -> str | None:
            if value is not None and not self.pattern.fullmatch(value):
                raise ValueError(f"must {self.meaning}")
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))


class CountOr:
    """Annotates a field that is a positive integer or a word."""

    def __init__(self, word: str):
        self.word = word

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.union_schema(
            [core_schema.int_schema(gt=0, strict=True), core_schema.literal_schema([self.word])],
            custom_error_type="count_or_word",
            custom_error_message=f"Input should be a positive integer or {self.word}",
        )


@dataclass(frozen=True)
class FormerKey:
    """Annotates a field with its former key, which is still accepted, with a warning.

    values: needed if another field now has that key: the only values that select the former meaning.
    """

    key: str
    values: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ItemKey:
    """Annotates a tuple of tagged sections with a type that is also a key: `a: {...}` is short for the item of type a.

    The item is added to those given, or to the default ones.
    """

    key: str


def named_item(section: type[Section], key: str) -> str | None:
    """The field of which `key` stands for an item, by an `ItemKey`."""
    fields = section.model_fields.items()
    return next((name for name, field in fields if ItemKey(key) in field.metadata), None)


def default_items(section: type[Section], name: str) -> list[Any]:
    """The default value of a tuple of sections, as data."""
    default = section.model_fields[name].get_default(call_default_factory=True, validated_data={})
    return [item.model_dump(mode="json") for item in default or ()]


def kind_of(section: type[Section], name: str) -> Any:
    """Type of a field with its annotations; None if there is no such field."""
    field = section.model_fields.get(name)
    if field is None:
        return None
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def section_of(kind: Any, value: Mapping[str, Any]) -> type[Section] | None:
    """Section type of a mapping in a field of this type, or in an item of it; None if unknown."""
    if is_section(kind):
        section: type[Section] = kind
        return section
    if (union := union_of(kind)) is not None:
        tag = union.tag(value)
        try:
            return union.variants.get(tag) if isinstance(tag, str) else None
        except PluginError:  # reported where the value is validated
            return None
    return next((found for part in get_args(kind) if (found := section_of(part, value)) is not None), None)


def union_of(kind: Any) -> TaggedUnion | None:
    """Tagged union among the alternatives of a field's type; None if there is none."""
    marks = (mark for choice in alternatives(kind) for mark in getattr(choice, "__metadata__", ()))
    return next((mark for mark in marks if isinstance(mark, TaggedUnion)), None)


def union_of_items(kind: Any) -> TaggedUnion | None:
    """The tagged union that the items of a list of this type are of."""
    lists = (choice for choice in alternatives(kind) if get_origin(choice) in (tuple, list))
    return next((union for choice in lists if (union := union_of(get_args(choice)[0])) is not None), None)


def alternatives(kind: Any) -> Iterator[Any]:
    """Types that a field accepts: the members of a union, or its single type."""
    if isinstance(kind, UnionType) or get_origin(kind) is Union:
        for choice in get_args(kind):
            yield from alternatives(choice)
    else:
        yield kind
        if hasattr(kind, "__metadata__"):
            yield from alternatives(kind.__origin__)


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)
