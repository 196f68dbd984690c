"""Sections: what is valid, every mistake in one report, and overrides.

Modules: overrides.py, sections.py, validation.py, yaml_text.py.
"""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from xlpretrain import schema
from xlpretrain.errors import ConfigError
from xlpretrain.schema import Section, TaggedUnion


class Circle(Section):
    type: Literal["circle"] = "circle"
    radius: float = Field(1.0, gt=0)
    """How wide."""


class Square(Section):
    type: Literal["square"] = "square"
    side_len: int = 2

    def problems(self):
        if self.side_len == 13:
            yield "side_len", "13 brings bad luck"


Shape = Annotated[Circle | Square, TaggedUnion({"circle": Circle, "square": Square})]


class Drawing(Section):
    name: str
    shape: Shape = Circle()
    shapes: tuple[Shape, ...] = ()
    offsets: tuple[float, float] = (0.0, 0.0)
    path: Path | None = None


def problems_of(data) -> str:
    with pytest.raises(ConfigError) as caught:
        schema.validate(Drawing, data, "drawing.yaml")
    return str(caught.value)


def test_every_mistake_is_in_one_report():
    report = problems_of({"shape": {"radius": -1, "raduis": 2}, "nmae": "x", "offsets": "far"})
    lines = report.splitlines()
    assert lines[0] == "drawing.yaml: 5 problems"
    found = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:]}
    assert found == {
        "name": "required key is missing",
        "nmae": "unknown key; did you mean name?",
        "shape.radius": "must be greater than 0, got -1",
        "shape.raduis": "unknown key; did you mean radius?",
        "offsets": 'must be a valid array, got "far"',
    }


def test_unknown_variant_is_answered_with_those_that_exist():
    report = problems_of({"name": "x", "shape": {"type": "hexagon"}})
    assert "shape.type" in report and "must be one of circle, square" in report and '"hexagon"' in report


def test_keys_of_the_chosen_variant_are_suggested_also_in_lists():
    report = problems_of({"name": "x", "shapes": [{"type": "square", "side_length": 3}]})
    assert "shapes.0.side_length  unknown key; did you mean side_len?" in report


def test_problems_between_keys_are_reported_with_their_path():
    assert "shapes.1.side_len  13 brings bad luck" in problems_of(
        {"name": "x", "shapes": [{}, {"type": "square", "side_len": 13}]}
    )


@pytest.mark.parametrize("value", ["3", True, 1.5, [1]])
def test_types_are_strict(value):
    assert "shape.side_len" in problems_of({"name": "x", "shape": {"type": "square", "side_len": value}})


def test_nan_and_infinity_are_refused():
    for value in (float("nan"), float("inf")):
        assert "shape.radius" in problems_of({"name": "x", "shape": {"radius": value}})


def test_dump_is_read_back_equal(tmp_path: Path):
    drawing = Drawing(name="x", shape=Square(side_len=5), shapes=(Circle(radius=1e-7), Square()), path=Path("a/b"))
    path = tmp_path / "drawing.yaml"
    path.write_text(schema.dump(drawing))
    assert schema.load(Drawing, path) == drawing


def test_overrides_reach_into_sections_and_are_read_as_yaml(tmp_path: Path):
    path = tmp_path / "drawing.yaml"
    path.write_text("name: x\nshape: {radius: 1e-4}\n")
    drawing = schema.load(Drawing, path, ["shape.radius=2e-3", "offsets=[1, 2.5]", "path=null"])
    assert drawing.shape.radius == 2e-3
    assert drawing.offsets == (1.0, 2.5)


def test_overrides_reach_into_lists():
    data = {"shapes": [{"type": "circle"}, {"radius": 2.0}]}
    assert schema.apply_overrides(data, ["shapes.1.radius=5"], Drawing)["shapes"][1] == {"radius": 5}
    named = schema.apply_overrides(data, ["shapes.circle.radius=3", "shapes.square.side_len=4"], Drawing)["shapes"]
    assert named == [{"type": "circle", "radius": 3}, {"radius": 2.0}, {"type": "square", "side_len": 4}]
    for path in ("shapes.2.radius", "shapes.x.radius", "shapes.7"):
        with pytest.raises(ConfigError, match="no such list item"):
            schema.apply_overrides(data, [f"{path}=5"], Drawing)


def test_a_list_of_wrong_items_is_not_called_empty_as_well():
    class Gallery(Section):
        shapes: tuple[Shape, ...] = Field(min_length=1)

    with pytest.raises(ConfigError, match="1 problem\n") as caught:
        schema.validate(Gallery, {"shapes": [{"type": "hexagon"}]}, "x")
    assert "must be one of circle, square" in str(caught.value)
    with pytest.raises(ConfigError, match="shapes"):
        schema.validate(Gallery, {"shapes": []}, "x")


def test_a_malformed_override_is_named():
    with pytest.raises(ConfigError, match="expected key=value"):
        schema.apply_overrides({}, ["radius"], Drawing)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"not valid YAML \(line"),
        ("a: 1\na: 2\n", "duplicate key 'a'"),
        ("- a\n", "expected `key: value` lines"),
        ("name: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ],
)
def test_bad_yaml_is_one_clear_message(tmp_path: Path, text: str, message: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        schema.load(Drawing, path)


def test_missing_file_directory_and_binary_are_refused(tmp_path: Path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, message in [(tmp_path / "no.yaml", "no such file"), (tmp_path, "cannot be read"), (binary, "not UTF-8")]:
        with pytest.raises(ConfigError, match=message):
            schema.load(Drawing, path)


def test_numbers_are_read_as_people_write_them():
    read = schema.parse_yaml("[1e-4, 1.0e-3, 1_000, .5, 2., -3E5, 2024-01-01, 1.2.3]", "x")
    assert read == [1e-4, 1e-3, 1000, 0.5, 2.0, -3e5, "2024-01-01", "1.2.3"]


def test_describe_tells_defaults_from_what_was_set():
    rows = {path: (value, default, meaning) for path, value, default, meaning in schema.explain(Drawing(name="x"))}
    assert rows["shape.radius"] == (1.0, True, "How wide.")
    assert rows["name"][1] is False


def test_explain_reaches_into_lists_and_tells_what_was_chosen():
    class Gallery(Section):
        frame: Shape = Circle(radius=3.0)
        shapes: tuple[Shape, ...] = (Circle(radius=2.0),)
        more: tuple[Shape, ...] = ()

    def chosen(**keys: object) -> dict[str, bool]:
        return {path: not usual for path, _, usual, _ in schema.explain(schema.validate(Gallery, keys, "x"))}

    assert chosen() == {
        "frame.type": False,
        "frame.radius": False,
        "shapes.0.type": False,
        "shapes.0.radius": False,
        "more": False,
    }
    found = chosen(frame={"type": "square"}, shapes=[{"radius": 1.0}], more=[{"type": "circle"}])
    assert found == {
        "frame.type": True,
        "frame.side_len": False,
        "shapes.0.type": False,
        "shapes.0.radius": True,
        "more.0.type": True,
        "more.0.radius": False,
    }
