"""Former flags work like the new ones, with a warning, and are not in `--help`."""

from __future__ import annotations

from typing import Any

import commands
import pytest
from click.testing import CliRunner
from typer.main import get_command

from launcher.cli.main import app
from launcher.cli.renamed_flags import FORMER_FLAGS, replace_former_flags
from xlpretrain.errors import XLPretrainError

FORMER = [
    ("import", ["DIR", "--as", "back"], ["DIR", "--name", "back"]),
    ("finetune", ["R", "--train", "a", "--valid", "b", "--as=c"], ["R", "--train", "a", "--valid", "b", "--name", "c"]),
    ("generate", ["R", "--on", "--tokens", "3"], ["R", "--ignore-eod", "--tokens", "3"]),
    ("train", ["a.yaml", "--take-over"], ["a.yaml", "--force-takeover"]),
    ("resume", ["R", "--take-over"], ["R", "--force-takeover"]),
    ("finetune", ["R", "--train=a", "--valid=b", "--take-over"], ["R", "--train=a", "--valid=b", "--force-takeover"]),
    ("score", ["R", "--data", "f.csv"], ["R", "--input", "f.csv"]),
    ("predict", ["R", "--data=f.csv"], ["R", "--input=f.csv"]),
]  # fmt: skip


def command(name: str) -> Any:
    return get_command(app).commands[name]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "former", "new"), FORMER)
def test_a_former_flag_means_the_new_one_and_warns(
    name: str, former: list[str], new: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    replaced = replace_former_flags(command(name), former)
    [warning] = capsys.readouterr().err.splitlines()
    old = next(old for old in FORMER_FLAGS if any(argument.partition("=")[0] == old for argument in former))
    assert warning == f"warning: {old} is now {FORMER_FLAGS[old]}; the next version removes {old}"
    parsed, expected = (command(name).make_context(name, list(given)).params for given in (replaced, new))
    assert parsed == expected
    assert replace_former_flags(command(name), new) == new
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", sorted({name for name, _, _ in FORMER}))
def test_help_shows_the_new_flags_only(name: str) -> None:
    shown = CliRunner().invoke(get_command(app), [name, "--help"], env={"COLUMNS": "200"}).output.split()
    used = {flag for each, former, _ in FORMER if each == name for flag in FORMER_FLAGS if flag in " ".join(former)}
    assert used and not used & set(shown)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("eval", ["R", "--data", "d"]),  # has a flag of that name
        ("import", ["DIR", "--name", "x", "--data", "d"]),
        ("generate", ["R", "--prompt", "--on"]),  # a value
        ("predict", ["R", "--to", "--data"]),
        ("train", ["a.yaml", "--", "--take-over"]),
        ("stop", ["--as"]),  # never had it
    ],
)
def test_other_arguments_are_left_alone(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert replace_former_flags(command(name), arguments) == arguments
    assert capsys.readouterr().err == ""


def test_the_command_line_accepts_former_flags() -> None:
    err = commands.refused("train", "no.yaml", "--take-over")
    assert err.splitlines()[0].startswith("warning: --take-over is now --force-takeover")
    assert "no.yaml: no such file" in err
    done = CliRunner().invoke(get_command(app), ["import", "/nowhere", "--as", "x"])
    assert isinstance(done.exception, XLPretrainError)


def test_ranks_accept_the_former_flag() -> None:
    _, err = commands.run("-m", "xlpretrain", "no.yaml", "--take-over", program="python", expect=2)
    assert err.splitlines()[0] == "warning: --take-over is now --force-takeover; the next version removes --take-over"
