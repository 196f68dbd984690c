"""Registries: types of installed packages, found by name, imported on use, and refused by name.

Modules: registry.py.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import plugins
import pytest
from repository import ROOT
from shapes import SHAPES, Circle, Drawing

from xlpretrain import schema
from xlpretrain.errors import ConfigError

TRIANGLE = """
from typing import Literal
from pydantic import Field
from shapes import Shape

class Triangle(Shape):
    type: Literal["triangle"] = "triangle"
    sides: tuple[float, ...] = (3.0, 4.0, 5.0)
    \"\"\"Lengths.\"\"\"
    height: float = Field(1.0, gt=0)

    def problems(self):
        if len(self.sides) != 3:
            yield "sides", f"a triangle has 3, got {len(self.sides)}"

class Circle(Triangle):
    type: Literal["circle"] = "circle"

class Untyped(Shape):
    sides: int = 5

NUMBER = 5
"""
POINTS = {
    "shape.triangle": "shapes_of_mine:Triangle",
    "shape.circle": "shapes_of_mine:Circle",
    "shape.untyped": "shapes_of_mine:Untyped",
    "shape.number": "shapes_of_mine:NUMBER",
    "shape.broken": "shapes_that_break:Anything",
    "other.hexagon": "shapes_of_mine:Triangle",
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    files = {"shapes_of_mine.py": TRIANGLE, "shapes_that_break.py": "import a_package_that_is_not_there"}
    folder = plugins.install(tmp_path / "site", "my-shapes", files, POINTS, version="1.2")
    SHAPES._loaded.clear()
    with plugins.on_path(folder, monkeypatch):
        yield folder
    SHAPES._loaded.clear()
    sys.modules.pop("shapes_of_mine", None)


def read(data: dict[str, Any]) -> Drawing:
    return schema.validate(Drawing, data, "drawing.yaml")


def refusal(data: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        read(data)
    return str(caught.value)


def test_a_plugins_type_is_validated_explained_and_dumped_as_ours(installed: Path):
    data = {"shape": {"type": "triangle", "sides": [1, 2, 2.5]}, "more": [{"radius": 2.0}, {"type": "triangle"}]}
    drawing = read(data)
    assert [shape.type for shape in (drawing.shape, *drawing.more)] == ["triangle", "circle", "triangle"]
    assert drawing.shape.model_dump() == {"type": "triangle", "sides": (1.0, 2.0, 2.5), "height": 1.0}
    assert schema.validate(Drawing, schema.parse_yaml(schema.dump(drawing), "dump"), "dump") == drawing
    explained = {key: (value, meaning) for key, value, _, meaning in schema.explain(drawing)}
    assert explained["shape.sides"] == ([1.0, 2.0, 2.5], "Lengths.")
    changed = schema.apply_overrides(data, ["shape.height=2", "more.1.height=3"], Drawing)
    assert read(changed).model_dump()["more"][1]["height"] == 3.0
    assert schema.plugins_of(drawing) == {"shape.triangle": "my-shapes 1.2"}
    assert schema.plugins_of(read({})) == {}


def test_mistakes_in_a_plugins_section_are_reported_as_in_ours(installed: Path):
    report = refusal(
        {
            "shape": {"type": "triangle", "hieght": 2, "height": -1},
            "more": [{"type": "triangle", "sides": "long"}, {"type": "triangel"}, {"radius": 0}],
        }
    )
    found = {line.split()[0]: line.split(maxsplit=1)[1] for line in report.splitlines()[1:]}
    assert found == {
        "shape.hieght": "unknown key; did you mean height?",
        "shape.height": "must be greater than 0, got -1",
        "more.0.sides": 'must be a valid array, got "long"',
        "more.1.type": "must be one of circle, triangle, untyped, number, broken, "
        'got "triangel"; did you mean triangle?',
        "more.2.radius": "must be greater than 0, got 0",
    }
    assert "shape.sides  a triangle has 3, got 1" in refusal({"shape": {"type": "triangle", "sides": [1]}})


def test_built_in_names_win(installed: Path):
    assert type(read({"shape": {"type": "circle"}}).shape) is Circle


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken", "the plug-in my-shapes 1.2 cannot be imported (shapes_that_break:Anything: ModuleNotFoundError: No"),
        ("untyped", 'must declare `type: Literal["untyped"] = "untyped"`'),
        ("number", "must be a subclass of shapes.Shape, got 5"),
    ],
)
def test_a_broken_plugin_is_one_line_and_hurts_only_configs_that_name_it(name: str, reason: str, installed: Path):
    report = refusal({"shape": {"type": name}, "more": [{"type": "triangle"}, {"radius": -1}]})
    assert len(report.splitlines()) == 3 and report.startswith("drawing.yaml: 2 problems") and "more.1.radius" in report
    (line,) = [line for line in report.splitlines() if line.startswith("  shape.type")]
    assert f"{name}: " in line and reason in line
    assert read({"shape": {"type": "triangle"}})
    assert set(SHAPES) == {"circle", "triangle", "untyped", "number", "broken"}


def test_a_name_of_two_packages_is_refused(installed: Path, tmp_path: Path):
    plugins.install(installed, "other-shapes", {}, {"shape.triangle": "elsewhere:Triangle"}, version="3")
    schema.registry._found.cache_clear()
    SHAPES._loaded.clear()
    assert "provided by my-shapes 1.2 and other-shapes 3; uninstall all but one" in refusal(
        {"shape": {"type": "triangle"}}
    )


def test_help_and_listing_import_no_plugin(tmp_path: Path):
    touch = "import pathlib; pathlib.Path(__file__).with_name('imported').touch()"
    folder = plugins.install(tmp_path, "my-package", {"mine.py": touch}, {"optimizer.mine": "mine:Mine"})
    environment = commands.environment() | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}

    def output(*arguments: str) -> str:
        run = [sys.executable, "-c", "from launcher.cli.main import main; main()", *arguments]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    assert output("config", "--plugins").split() == ["optimizer.mine", "my-package", "0.1"]
    assert "Usage" in output("train", "--help")
    assert not (folder / "imported").exists()
