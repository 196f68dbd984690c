"""Renamed keys: the former ones are read as those of today, with one warning."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pytest

from xlpretrain import schema
from xlpretrain.errors import ConfigError
from xlpretrain.schema import FormerKey, Section, TaggedUnion, former_keys


class Wheel(Section):
    type: Literal["wheel"] = "wheel"
    diameter_m: Annotated[float, FormerKey("size")] = 1.0


class Gear(Section):
    type: Literal["gear"] = "gear"
    teeth: Annotated[Literal["few", "many"], FormerKey("size", values=("few", "many"))] = "few"
    size: Annotated[Literal["small", "large"] | None, FormerKey("volume")] = None


Part = Annotated[Wheel | Gear, TaggedUnion({"wheel": Wheel, "gear": Gear})]


class Machine(Section):
    main_wheel: Annotated[Wheel | None, FormerKey("wheel")] = None
    parts: Annotated[tuple[Part, ...], FormerKey("pieces")] = ()


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(former_keys, "_warned", set())
    monkeypatch.delenv("RANK", raising=False)
    yield


FORMER = "wheel: {size: 2.0}\npieces: [{size: 3.0}, {type: gear, size: many, volume: large}, {size: 4.0}]\n"
TODAY = """
main_wheel: {diameter_m: 2.0}
parts: [{diameter_m: 3.0}, {type: gear, teeth: many, size: large}, {diameter_m: 4.0}]
"""


def load(folder: Path, text: str, *overrides: str) -> Machine:
    path = folder / "machine.yaml"
    path.write_text(text)
    return schema.load(Machine, path, overrides)


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return str(caught.value)


def test_former_keys_are_read_as_those_of_today_at_any_depth(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert load(tmp_path, TODAY) == Machine(
        main_wheel=Wheel(diameter_m=2.0),
        parts=(Wheel(diameter_m=3.0), Gear(teeth="many", size="large"), Wheel(diameter_m=4.0)),
    )
    assert capsys.readouterr().err == ""
    assert load(tmp_path, FORMER) == load(tmp_path, TODAY)


def test_each_former_key_is_named_once_in_a_process_and_on_one_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    load(tmp_path, FORMER)
    load(tmp_path, FORMER)
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {tmp_path}/machine.yaml: {then} is now called {now}; the next version removes {then}"
        for then, now in (
            ("wheel", "main_wheel"),
            ("main_wheel.size", "main_wheel.diameter_m"),
            ("pieces", "parts"),
            ("parts[].size", "parts[].diameter_m"),
            ("parts[].volume", "parts[].size"),
        )
    ]
    monkeypatch.setattr(former_keys, "_warned", set())
    monkeypatch.setenv("RANK", "1")
    load(tmp_path, FORMER)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", [FORMER, TODAY], ids=["former", "of today"])
@pytest.mark.parametrize("key", ["wheel.size", "wheel.diameter_m", "main_wheel.size", "main_wheel.diameter_m"])
def test_an_override_may_use_either_key_over_either(
    text: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    load(tmp_path, text)
    capsys.readouterr()
    assert load(tmp_path, text, f"{key}=9").main_wheel == Wheel(diameter_m=9.0)
    warned = f"warning: command line: {key} is now called main_wheel.diameter_m" in capsys.readouterr().err
    assert warned or key == "main_wheel.diameter_m" or text == FORMER  # which has named the key already


def test_an_override_with_a_former_key_replaces_a_whole_section_or_an_item(tmp_path: Path):
    assert load(tmp_path, TODAY, "wheel={size: 7.0}").main_wheel == Wheel(diameter_m=7.0)
    assert load(tmp_path, TODAY, "wheel=null").main_wheel is None
    assert load(tmp_path, TODAY, "pieces.1.volume=small", "pieces.1.size=few").parts[1] == Gear(size="small")
    assert load(tmp_path, "{}", "wheel.size=3").main_wheel == Wheel(diameter_m=3.0)


@pytest.mark.parametrize(
    ("text", "overrides", "report"),
    [
        ("wheel: null\nmain_wheel: null\n", (), "  wheel  conflicts with main_wheel, whose former key it is;"),
        (
            "main_wheel: {size: 1.0, diameter_m: 1.0}\n",
            (),
            "main_wheel.size  conflicts with diameter_m, whose former key it is",
        ),
        (
            "parts: [{type: gear, teeth: few, size: few}]",
            (),
            "parts.0.size  conflicts with teeth, whose former key it is",
        ),
        ("{}", ("wheel.size=1", "main_wheel.size=2"), "main_wheel  conflicts with wheel: one is the former"),
    ],
)
def test_both_keys_at_once_are_an_error_that_names_both(
    text: str, overrides: tuple[str, ...], report: str, tmp_path: Path
):
    assert report in refusal(tmp_path, text, *overrides)


def test_mistakes_and_suggestions_name_the_keys_of_today(tmp_path: Path):
    report = refusal(tmp_path, "wheel: {size: big}\npices: []\n")
    assert 'main_wheel.diameter_m  must be a valid number, got "big"' in report
    assert "pices" in report and "did you mean parts" not in report and "expected one of main_wheel, parts" in report
    keys = [key for key, *_ in schema.explain(load(tmp_path, FORMER))]
    assert keys[:2] == ["main_wheel.type", "main_wheel.diameter_m"]
    assert {key.partition(".")[0] for key in keys[2:]} == {"parts"} and {"parts.0.diameter_m"} <= {*keys}
    assert schema.dump(load(tmp_path, FORMER)) == schema.dump(load(tmp_path, TODAY))


def test_what_we_wrote_ourselves_is_read_in_silence(capsys: pytest.CaptureFixture[str]):
    former = {"pieces": [{"type": "gear", "size": "few", "volume": None}]}
    today = {"parts": [{"type": "gear", "teeth": "few", "size": None}]}
    assert schema.current_keys(Machine, former) == schema.current_keys(Machine, today) == today
    assert capsys.readouterr().err == ""
