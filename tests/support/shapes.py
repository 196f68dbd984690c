"""Sections with a registry of their own, to which test packages add types."""

from typing import Annotated, Literal

from pydantic import Field

from xlpretrain.schema import Registry, Section, TaggedUnion


class Shape(Section):
    type: str


class Circle(Shape):
    type: Literal["circle"] = "circle"
    radius: float = Field(1.0, gt=0)


SHAPES: Registry[Shape] = Registry("shape", Shape, {"circle": Circle})
AnyShape = Annotated[Shape, TaggedUnion(SHAPES)]


class Drawing(Section):
    shape: AnyShape = Circle()
    more: tuple[AnyShape, ...] = ()
