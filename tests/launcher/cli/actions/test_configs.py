"""`xlpretrain config --explain`, in a pipe and on terminals of any width."""

from pathlib import Path

import commands
import pytest
from repository import ROOT

from launcher.cli.actions.configs import explain_lines
from xlpretrain import schema
from xlpretrain.config import run_config

CONFIG = ROOT / "configs" / "quickstart.yaml"


def test_a_pipe_gets_one_line_per_key_with_its_full_description(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(commands.EXTRA, "COLUMNS", "60")
    out, _ = commands.run("config", CONFIG, "data.retry_s=7", "--explain")
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    explained = {key: meaning for key, _, _, meaning in schema.explain(run_config.load(CONFIG))}
    assert list(lines) == list(explained)
    for key, meaning in explained.items():
        assert lines[key].endswith(f"  # {meaning}")
    assert lines["data.retry_s"].startswith("7.0  (set)  # ")
    assert lines["init_from"].startswith("null  # ")
    assert lines["optimizer.betas"].startswith("[0.9, 0.")
    assert "None" not in out and "True" not in out


@pytest.mark.parametrize("width", [40, 60, 200])
def test_on_a_terminal_meanings_are_wrapped_to_its_width(width: int):
    config = run_config.load(CONFIG)
    lines = "\n".join(explain_lines(config, width=width)).splitlines()
    meanings = [line for line in lines if line.startswith("    ")]
    assert max(map(len, meanings)) <= width
    words = " ".join(meanings).split()
    assert words == " ".join(meaning for *_, meaning in schema.explain(config)).split()


def test_values_are_written_as_yaml(tmp_path: Path):
    for value, text in [(None, "null"), (True, "true"), (1e-4, "0.0001"), ("a b", "a b"), ([1, 2], "[1, 2]")]:
        assert schema.format_value(value) == text
