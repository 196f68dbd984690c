"""The base class of configuration sections, and annotations of their fields."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

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

    ignored_keys: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Keys of other types of section that are ignored here, with a warning, and with which values."""

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions between keys that are each valid by themselves; paths are relative to this section."""
        yield from ()


ONE, SEVERAL = "(one)", "(several)"
"""Tags that pydantic puts into the place of an error in a `OneOrMany`."""


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
        choices: dict[Any, CoreSchema] = {ONE: one, SEVERAL: handler(source)}
        return core_schema.tagged_union_schema(
            choices, discriminator=lambda value: SEVERAL if isinstance(value, list | tuple) else ONE
        )


class Matching:
    """Annotates a string field with a pattern that the whole of it must match, and what that means for people."""

    def __init__(self, pattern: str, meaning: str):
        self.pattern, self.meaning = re.compile(pattern), meaning

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: str | None) -> str | None:
            if value is not None and not self.pattern.fullmatch(value):
                raise ValueError(f"must {self.meaning}")
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))


@dataclass(frozen=True)
class FormerKey:
    """Annotates a field with the key it had before, which is still read as this field, with a warning.

    values: needed if another field has that key by now: the only values with which the former meaning is intended.
    """

    key: str
    values: tuple[str, ...] | None = None


def kind_of(section: type[Section], name: str) -> Any:
    """The type of a field with its annotations; None if there is no such field."""
    field = section.model_fields.get(name)
    if field is None:
        return None
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def section_of(kind: Any, value: Mapping[str, Any]) -> type[Section] | None:
    """The section that a mapping stands for in a field of this type, or as an item of it; None if that is unknown."""
    if is_section(kind):
        section: type[Section] = kind
        return section
    for union in getattr(kind, "__metadata__", ()):
        if isinstance(union, TaggedUnion):
            tag = value.get("type", next(iter(union.variants)))
            return union.variants.get(tag) if isinstance(tag, str) else None
    return next((found for part in get_args(kind) if (found := section_of(part, value)) is not None), None)


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)
